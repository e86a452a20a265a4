"""Synthesise a few minutes of music with structure: what `make demo` trains on.

    python demo/make_music.py                      # demo/music/track_NN.wav
    python demo/make_music.py --num_tracks 12      # more of it

Each track has its own key, one of two tempi, a chord progression and sounds: pads, bass, drums and a melody
that wanders from bar to bar. What comes next can be guessed from what was heard, but never copied.
All of it follows from the seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import arguments
from common.arguments import file_path
from common.errors import run_script

SAMPLE_RATE = 44100
PROGRESSIONS = [(0, 5, 3, 4), (0, 3, 4, 0), (5, 3, 0, 4), (0, 4, 5, 3), (1, 4, 0, 5)]  # degrees of the scale
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)


def tone(frequency: float, seconds: float, overtones: np.ndarray, attack: float, decay: float) -> np.ndarray:
    """One note, float64 [seconds * 44100]: a harmonic sum under an attack and an exponential decay (seconds)."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waves = [a * np.sin(2 * np.pi * frequency * (n + 1) * time) for n, a in enumerate(overtones)]
    release = np.clip((seconds - time) / 0.02, 0, 1)
    return sum(waves) * np.minimum(time / attack, 1) * np.exp(-time / decay) * release


def drum(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A drum stroke: a falling sine for the kick, noise for snare and hi-hat."""
    time = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    if kind == "kick":
        return np.sin(2 * np.pi * (50 * time + 8 * (1 - np.exp(-time * 30)))) * np.exp(-time * 14)
    noise = rng.standard_normal(len(time))
    if kind == "snare":
        return 0.5 * (noise + np.sin(2 * np.pi * 190 * time)) * np.exp(-time * 18)
    return 0.3 * np.diff(noise, prepend=0) * np.exp(-time * 60)


def make_track(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """One track, float32 [seconds * 44100, 2]."""
    beat = 60 / (90, 120)[rng.integers(2)]  # 6 or 8 bars in 16 s: what comes next starts on the beat
    root, scale = 45 + int(rng.integers(0, 12)), (MAJOR, MINOR)[rng.integers(2)]
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    pad, lead = (rng.random(6) / np.arange(1, 7) for _ in range(2))
    motif = rng.integers(0, 5, size=8)  # steps of the scale above the chord, one each half beat
    strokes = {kind: drum(rng, kind) for kind in ("kick", "snare", "hat")}
    mix = np.zeros((int((seconds + 4) * SAMPLE_RATE), 2))

    def add(sound: np.ndarray, at: float, level: float, pan: float = 0.5) -> None:
        start = int(at * SAMPLE_RATE)
        length = min(len(sound), len(mix) - start)
        mix[start : start + length] += level * sound[:length, None] * (1 - pan, pan)

    def pitch(step: int, octave: int = 0) -> float:
        note = root + 12 * (octave + step // 7) + scale[step % 7]
        return 440 * 2 ** ((note - 69) / 12)

    for bar in range(int(seconds / (4 * beat)) + 1):
        start, degree = bar * 4 * beat, progression[bar % 4]
        motif[rng.integers(8)] = rng.integers(0, 5)  # the melody wanders: no bar comes back as it was
        for third in (0, 2, 4):
            add(tone(pitch(degree + third, 1), 4 * beat, pad, 0.08, 3.0), start, 0.06, 0.3 + 0.1 * third)
        for half in range(8):
            at, accent = start + half * beat / 2, rng.uniform(0.6, 1.2)
            if half % 2 == 0:
                fifth = 4 if half == 6 and rng.random() < 0.4 else 0
                add(tone(pitch(degree + fifth), beat * 0.9, np.array([1, 0.5, 0.2]), 0.005, 0.5), at, 0.16)
            if (half + motif[half]) % 3:
                add(tone(pitch(degree + int(motif[half]), 2), beat * 0.6, lead, 0.005, 0.25), at, 0.09 * accent, 0.6)
            add(strokes["hat"], at, 0.15 * accent, 0.55)
        for kind, beats in (("kick", (0, 2, 2.5)), ("snare", (1, 3, 3.75)[: 2 + (rng.random() < 0.3)])):
            for position in beats:
                add(strokes[kind], start + position * beat, 0.35)
    mix = mix[: int(seconds * SAMPLE_RATE)]
    return (0.7 * mix / np.abs(mix).max()).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=file_path, default="demo/music", help="(default: %(default)s)")
    parser.add_argument(
        "--num_tracks", type=arguments.number(int, at_least=1, at_most=10000), default=14, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=arguments.number(int, at_least=1, at_most=3600),
        default=50,
        help="of each track (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=arguments.number(int, at_least=0, below=2**63), default=7, help="(default: %(default)s)"
    )
    args = parser.parse_args()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(args.num_tracks):
        track = make_track(np.random.default_rng([args.seed, number]), args.seconds)
        soundfile.write(folder / f"track_{number:02d}.wav", track, SAMPLE_RATE)
    print(f"{folder}: {args.num_tracks} tracks of {args.seconds} s")
    return 0


if __name__ == "__main__":
    run_script(main)
