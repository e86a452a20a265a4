"""Random music of many kinds: the training data of `demo/codec/train_codec.py`.

Each track has a random tempo, key, instruments, drums, room, tone and level, so that no two have much in common. It
covers what a codec meets in recordings: plucked, bowed, blown and sung notes, bells, organs, slides, distortion, drums,
noise, rooms and silence, at levels from 0 to -40 dB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import fftconvolve, lfilter

SAMPLE_RATE = 24000
SCALES = [(0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 3, 5, 7, 10), tuple(range(12))]
Instrument = Callable[[np.ndarray], np.ndarray]  # frequency in Hz at every sample -> sound [samples]


def track(seed: int, number: int, seconds: float) -> np.ndarray:
    """Track `number` for a seed: float32 [seconds * 24000] within ±1."""
    rng = np.random.default_rng([seed, number])
    mix = np.zeros(int(seconds * SAMPLE_RATE))
    beat, root = 60 / rng.uniform(55, 190), int(rng.integers(0, 12))
    scale = SCALES[rng.integers(len(SCALES))]
    parts = {part: rng.random() < 0.55 for part in ("drums", "bass", "chords", "lead", "second")}
    if not any(parts.values()):
        parts["lead"] = True
    if parts["drums"]:
        play_drums(rng, mix, beat)
    for part, lowest, most_notes in (("bass", 24, 1), ("chords", 48, 5), ("lead", 60, 1), ("second", 45, 2)):
        if parts[part]:
            play_part(rng, mix, beat, root + lowest, scale, most_notes)
    if rng.random() < 0.15:
        mix += level(rng, -45, -20) * colored_noise(rng, len(mix))
    return finish(rng, mix).astype(np.float32)


# ------------------------------------------------------------------ a band


def play_part(
    rng: np.random.Generator, mix: np.ndarray, beat: float, lowest: int, scale: tuple[int, ...], most_notes: int
) -> None:
    """Add an instrument with its own rhythm to the mix. It plays notes of the scale from MIDI number `lowest` up."""
    instrument, loudness = draw_instrument(rng), level(rng, -18, -4)
    step = beat * rng.choice([0.25, 0.5, 1, 2, 4], p=[0.15, 0.35, 0.25, 0.15, 0.1])
    density, legato, reach = rng.uniform(0.3, 1), rng.uniform(0.3, 1.5), int(rng.integers(3, 16))
    slide, vibrato = rng.random() < 0.2, rng.choice([0, 0, 0.003, 0.012])
    swing, place = rng.uniform(0, 0.02), int(rng.integers(reach))
    for start in np.arange(0, len(mix) / SAMPLE_RATE, step):
        place = int(np.clip(place + rng.integers(-3, 4), 0, reach))
        if rng.random() > density:
            continue
        samples = int(min(step * legato * rng.choice([1, 1, 2]), 4) * SAMPLE_RATE) + 200
        for voice in range(int(rng.integers(1, most_notes + 1))):
            degree = place + 2 * voice
            midi = lowest + 12 * (degree // len(scale)) + scale[degree % len(scale)]
            frequency = 440 * 2 ** ((midi - 69) / 12) * np.ones(samples)
            time = np.arange(samples) / SAMPLE_RATE
            frequency *= 1 + vibrato * np.sin(2 * np.pi * rng.uniform(4, 7) * time)
            if slide:
                frequency *= 2 ** (rng.uniform(-7, 7) / 12 * np.exp(-time / rng.uniform(0.03, 0.3)))
            sound = instrument(frequency) * np.minimum(1, np.arange(samples, 0, -1) / 400)
            add(mix, loudness * rng.uniform(0.5, 1) * sound, start + rng.uniform(0, swing + 1e-6) + 0.012 * voice)


def play_drums(rng: np.random.Generator, mix: np.ndarray, beat: float) -> None:
    """Add patterns of sixteenths in 4/4 on two to five drums. Each drum is a falling sine, noise, or both."""
    for _ in range(int(rng.integers(2, 6))):
        stroke, loudness = draw_drum(rng), level(rng, -20, -3)
        pattern = rng.random(16) < rng.uniform(0.1, 0.7)
        for count, start in enumerate(np.arange(0, len(mix) / SAMPLE_RATE, beat / 4)):
            if pattern[count % 16] or rng.random() < 0.03:
                add(mix, loudness * rng.uniform(0.5, 1) * stroke, start)


def draw_drum(rng: np.random.Generator) -> np.ndarray:
    time = np.arange(int(rng.uniform(0.05, 0.6) * SAMPLE_RATE)) / SAMPLE_RATE
    noise = colored_noise(rng, len(time)) * np.exp(-time * rng.uniform(8, 90))
    lowest, fall = rng.uniform(40, 250), rng.uniform(0, 400)
    phase = 2 * np.pi * (lowest * time + fall / 30 * (1 - np.exp(-time * 30)))
    skin = np.sin(phase) * np.exp(-time * rng.uniform(5, 30))
    share = rng.choice([0, 1, rng.random()])
    return (0.4 * share * noise + (1 - share) * skin) * np.minimum(1, np.arange(len(time), 0, -1) / 200)


def add(mix: np.ndarray, sound: np.ndarray, at: float) -> None:
    """Add a sound to the mix, starting at `at` seconds."""
    start = int(at * SAMPLE_RATE)
    sound = sound[: max(0, len(mix) - start)]
    mix[start : start + len(sound)] += sound


# ------------------------------------------------------------------ instruments


def draw_instrument(rng: np.random.Generator) -> Instrument:
    return (harmonic, harmonic, modulated, plucked, bell, sung, breathy)[rng.integers(7)](rng)


def envelope(samples: int, attack: float, decay: float) -> np.ndarray:
    """An attack and an exponential decay, both in seconds."""
    time = np.arange(samples) / SAMPLE_RATE
    return np.minimum(time / attack, 1) * np.exp(-time / decay)


def harmonic(rng: np.random.Generator) -> Instrument:
    """Overtones that fall off at a random rate, perhaps doubled and detuned: organs, strings, brass, reeds."""
    count = int(rng.integers(1, 25))
    orders = np.arange(1, count + 1)
    strengths = rng.random(count) ** rng.choice([0.3, 2]) / orders ** rng.uniform(0.6, 2.2)
    if rng.random() < 0.25:
        strengths[1::2] *= 0.1  # a clarinet has mostly odd harmonics
    attack, decay = 10 ** rng.uniform(-2.5, -0.7), 10 ** rng.uniform(-0.8, 1.5)
    brightness_decay = 10 ** rng.uniform(-1, 1.5)  # higher overtones may decay faster, as on a piano
    detunings = [1.0] if rng.random() < 0.6 else [1.0, 1 + rng.uniform(0.001, 0.01)]

    def play(frequency: np.ndarray) -> np.ndarray:
        sound, time = np.zeros(len(frequency)), np.arange(len(frequency)) / SAMPLE_RATE
        for detuning in detunings:
            phase, offsets = 2 * np.pi * np.cumsum(frequency * detuning) / SAMPLE_RATE, rng.uniform(0, 6.28, count)
            for order, strength, offset in zip(orders, strengths, offsets, strict=True):
                if order * frequency.max() < 0.47 * SAMPLE_RATE and strength > 0.003 * strengths.max():
                    fading = np.exp(-time * (order - 1) / 8 / brightness_decay)
                    sound += strength * fading * np.sin(order * phase + offset)
        return sound / strengths.sum() * envelope(len(sound), attack, decay)

    return play


def modulated(rng: np.random.Generator) -> Instrument:
    """Frequency modulation: electric pianos, brass, clangs."""
    ratio = rng.choice([0.5, 1, 1, 2, 3, rng.uniform(0.3, 7)])
    index, index_decay = rng.uniform(0.3, 4), 10 ** rng.uniform(-1, 1)
    attack, decay = 10 ** rng.uniform(-2.7, -0.8), 10 ** rng.uniform(-0.7, 1)

    def play(frequency: np.ndarray) -> np.ndarray:
        phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
        depth = index * envelope(len(phase), 0.001, index_decay) * min(1, 1500 / frequency.max())
        return 0.6 * np.sin(phase + depth * np.sin(ratio * phase)) * envelope(len(phase), attack, decay)

    return play


def plucked(rng: np.random.Generator) -> Instrument:
    """A Karplus-Strong string: noise in a delay line that loses its high frequencies."""
    loss, color = rng.uniform(0.98, 0.999), rng.uniform(0.2, 0.95)

    def play(frequency: np.ndarray) -> np.ndarray:
        period = max(2, round(SAMPLE_RATE / frequency[-1] - 0.5))
        burst = np.zeros(len(frequency))
        length = min(period, len(burst))
        burst[:length] = lfilter([1 - color], [1, -color], rng.standard_normal(length))
        loop = np.zeros(period + 2)
        loop[0], loop[period], loop[period + 1] = 1, -0.5 * loss, -0.5 * loss
        sound = lfilter([1.0], loop, burst)
        return 0.5 * sound / (np.abs(sound).max() + 1e-9)

    return play


def bell(rng: np.random.Generator) -> Instrument:
    """Inharmonic partials; the higher ones decay faster: bells, chimes, marimbas, celestas."""
    ratios = np.sort(np.append(1, rng.uniform(1, 9, int(rng.integers(2, 7)))))
    strengths, decay = rng.random(len(ratios)) / ratios**0.5, 10 ** rng.uniform(-0.9, 0.5)

    def play(frequency: np.ndarray) -> np.ndarray:
        phase, time = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE, np.arange(len(frequency)) / SAMPLE_RATE
        sound = np.zeros(len(frequency))
        for ratio, strength in zip(ratios, strengths, strict=True):
            if ratio * frequency.max() < 0.47 * SAMPLE_RATE:
                sound += strength * np.sin(ratio * phase) * np.exp(-time * ratio / decay)
        return sound / strengths.sum() * np.minimum(time / 0.002, 1)

    return play


def sung(rng: np.random.Generator) -> Instrument:
    """A voice: pulses filtered by formants that move from one vowel to another."""
    vowels = rng.uniform([250, 700, 2000, 3000], [850, 1900, 3000, 4200], (2, 4))
    breath, attack = rng.uniform(0, 0.05), rng.uniform(0.01, 0.1)

    def play(frequency: np.ndarray) -> np.ndarray:
        cycles = np.cumsum(frequency) / SAMPLE_RATE
        source = (cycles % 1) ** 3 - 0.25 + breath * rng.standard_normal(len(cycles))
        turn = np.linspace(0, 1, len(cycles))
        sound = sum(weight * mouth(source, vowel) for weight, vowel in zip((1 - turn, turn), vowels, strict=True))
        return 0.4 * sound / (np.abs(sound).max() + 1e-9) * envelope(len(sound), attack, 3)

    def mouth(source: np.ndarray, formants: np.ndarray) -> np.ndarray:
        sound = np.zeros(len(source))
        for count, formant in enumerate(formants):
            radius, angle = np.exp(-np.pi * 90 / SAMPLE_RATE), 2 * np.pi * formant / SAMPLE_RATE
            sound += lfilter([(1 - radius) * 0.6**count], [1, -2 * radius * np.cos(angle), radius**2], source)
        return sound

    return play


def breathy(rng: np.random.Generator) -> Instrument:
    """A sine with narrow-band noise around it: flutes, panpipes, wind."""
    width, share = 10 ** rng.uniform(-2, -0.5), rng.uniform(0.1, 0.9)
    attack, decay = rng.uniform(0.01, 0.2), 10 ** rng.uniform(-0.5, 1)

    def play(frequency: np.ndarray) -> np.ndarray:
        phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
        slowness = np.exp(-2 * np.pi * width * frequency.mean() / SAMPLE_RATE)
        drift = lfilter([1 - slowness], [1, -slowness], rng.standard_normal((2, len(phase))))
        noise = (drift[0] * np.sin(phase) + drift[1] * np.cos(phase)) / (drift.std() + 1e-9)
        return 0.4 * ((1 - share) * np.sin(phase) + share * 0.7 * noise) * envelope(len(phase), attack, decay)

    return play


# ------------------------------------------------------------------ noise, rooms, levels


def level(rng: np.random.Generator, lowest_db: float, highest_db: float) -> float:
    return float(10 ** (rng.uniform(lowest_db, highest_db) / 20))


def colored_noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise with standard deviation 1 and a falling, rising or flat spectrum."""
    pole = rng.choice([0, rng.uniform(0.5, 0.98), rng.uniform(-0.9, 0)], p=[0.2, 0.6, 0.2])
    noise = lfilter([1.0], [1, -pole], rng.standard_normal(samples))
    return noise / (noise.std() + 1e-9)


def finish(rng: np.random.Generator, mix: np.ndarray) -> np.ndarray:
    """Set a mix's level. At random, also add a room, distort it, filter it, and cut a gap into it."""
    if rng.random() < 0.5:
        tail = rng.uniform(0.1, 2.5)  # seconds until the room is 60 dB down
        time = np.arange(int(tail * SAMPLE_RATE)) / SAMPLE_RATE
        room = colored_noise(rng, len(time)) * 10 ** (-3 * time / tail)
        wet = fftconvolve(mix, room)[: len(mix)]
        mix = mix + rng.uniform(0.05, 0.8) * wet * mix.std() / (wet.std() + 1e-9)
    mix = mix / (np.abs(mix).max() + 1e-9)
    if rng.random() < 0.5:
        drive = rng.uniform(1, 6)
        mix = np.tanh(drive * mix) / np.tanh(drive)
    if rng.random() < 0.7:
        pole = rng.uniform(0.2, 0.92)
        mix = lfilter([1 - pole], [1, -pole], mix)
    if rng.random() < 0.15:
        start = int(rng.integers(len(mix)))
        mix[start : start + int(rng.uniform(0.1, 2) * SAMPLE_RATE)] = 0
    loudest = max(np.abs(mix).max(), mix.std() / 0.3)  # -10 dB on average if the peaks allow it
    return mix / (loudest + 1e-9) * level(rng, *rng.choice([(-40, -10), (-10, 0), (-10, 0), (-4, 0)]))
