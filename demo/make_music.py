"""Synthesize songs that a model can learn to continue: the music of `make demo`.

    python demo/make_music.py                      # demo/music/song_NN.wav
    python demo/make_music.py --num_tracks 100     # more songs

There are eight riffs, each with its own tempo, key, chords, bass and drums. A song is a random walk over them: after
each riff a coin decides between two successors. Each song also has an improvised melody that never repeats. So copying
the input or predicting the average does not work, but a model that has learned the riffs can predict everything except
the coin and the melody. No song begins with the last half of another. The seed determines everything.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.arguments import file_path, number, parse_settings, seed_setting, setting
from common.errors import run_script

SAMPLE_RATE = 44100
NUM_RIFFS = 8
STEPS = (1, 3)  # the coin: move on by one riff or by three, in a circle
PROGRESSIONS = [(0, 5), (0, 3), (5, 3), (0, 4), (1, 4), (3, 4), (2, 5), (0, 6)]  # degrees of the scale, one per bar
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)


@dataclass(frozen=True)
class Settings:
    output_dir: str = setting("demo/music", "folder for the songs", type=file_path)
    num_tracks: int = setting(32, "number of songs", type=number(int, at_least=1, at_most=10000))
    riff_s: int = setting(4, "length of a riff in seconds", type=number(int, at_least=1, at_most=60))
    riffs: int = setting(8, "number of riffs in a song", type=number(int, at_least=2, at_most=1000))
    seed: int = seed_setting("the songbook")


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    book = [Riff(np.random.default_rng([settings.seed, 0, k]), k, settings.riff_s) for k in range(NUM_RIFFS)]
    walks = draw_walks(np.random.default_rng([settings.seed, 1]), settings.num_tracks, settings.riffs)
    for count, walk in enumerate(walks):
        song = play(np.random.default_rng([settings.seed, 2, count]), [book[k] for k in walk])
        soundfile.write(folder / f"song_{count:02d}.wav", song, SAMPLE_RATE)
    print(f"{folder}: {len(walks)} songs of {settings.riffs * settings.riff_s} s")
    return 0


# ------------------------------------------------------------------ the order of the riffs


def draw_walks(rng: np.random.Generator, count: int, length: int) -> list[list[int]]:
    """Random walks over the riffs. A walk that shares half of itself with another is drawn again."""
    walks: list[list[int]] = []
    for _ in range(count):
        for _attempt in range(1000):
            walk = [int(rng.integers(NUM_RIFFS))]
            while len(walk) < length:
                walk.append((walk[-1] + int(rng.choice(STEPS))) % NUM_RIFFS)
            if not any(is_same_recording(walk, other) for other in walks):
                break
        walks.append(walk)
    return walks


def is_same_recording(first: list[int], second: list[int]) -> bool:
    """Whether the two walks are equal over at least half of their length, at any shift."""
    length = len(first)
    shifts = range(-(length // 2), length // 2 + 1)
    return any(first[max(0, -s) : length - max(0, s)] == second[max(0, s) : length - max(0, -s)] for s in shifts)


# ------------------------------------------------------------------ sounds


def tone(frequency: float, seconds: float, overtones: np.ndarray, attack: float, decay: float) -> np.ndarray:
    """One note, float64 [seconds * 44100]: harmonics with an attack and an exponential decay (both in seconds)."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waves = [a * np.sin(2 * np.pi * frequency * (n + 1) * time) for n, a in enumerate(overtones)]
    release = np.clip((seconds - time) / 0.02, 0, 1)
    return sum(waves) * np.minimum(time / attack, 1) * np.exp(-time / decay) * release


def drum(rng: np.random.Generator, kind: str) -> np.ndarray:
    """One drum hit: a falling sine for the kick, noise for snare and hi-hat."""
    time = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    if kind == "kick":
        return np.sin(2 * np.pi * (50 * time + 8 * (1 - np.exp(-time * 30)))) * np.exp(-time * 14)
    noise = rng.standard_normal(len(time))
    if kind == "snare":
        return 0.5 * (noise + np.sin(2 * np.pi * 190 * time)) * np.exp(-time * 18)
    return 0.3 * np.diff(noise, prepend=0) * np.exp(-time * 60)


class Track:
    """Stereo samples to which sounds are added."""

    def __init__(self, seconds: float):
        self.mix = np.zeros((round(seconds * SAMPLE_RATE), 2))

    def add(self, sound: np.ndarray, at: float, level: float, pan: float = 0.5) -> None:
        start = int(at * SAMPLE_RATE)
        sound = sound[: max(0, len(self.mix) - start)]
        self.mix[start : start + len(sound)] += level * sound[:, None] * (1 - pan, pan)


class Riff:
    """A few seconds with their own tempo, key, chords, bass and drums, the same in every song."""

    def __init__(self, rng: np.random.Generator, number: int, seconds: int):
        self.seconds, self.beat = seconds, 60 / rng.uniform(84, 168)
        self.root, self.scale = 40 + int(rng.integers(0, 12)), (MAJOR, MINOR)[rng.integers(2)]
        self.chords = PROGRESSIONS[number % len(PROGRESSIONS)]
        track, pad = Track(seconds), rng.random(6) / np.arange(1, 7)
        bass, kicks, snares = rng.random(8) < 0.6, rng.random(8) < 0.35, rng.random(8) < 0.3
        strokes = {kind: drum(rng, kind) for kind in ("kick", "snare", "hat")}
        for half in range(int(2 * seconds / self.beat) + 1):  # half beats, eight per bar
            at, place = half * self.beat / 2, half % 8
            if place == 0:
                for third in (0, 2, 4):
                    chord = tone(self.pitch(self.degree(at) + third, 1), 4 * self.beat, pad, 0.05, 3.0)
                    track.add(chord, at, 0.09, 0.3 + 0.1 * third)
            if bass[place] or place == 0:
                track.add(
                    tone(self.pitch(self.degree(at)), self.beat / 2, np.array([1, 0.5, 0.2]), 0.005, 0.5), at, 0.2
                )
            track.add(strokes["hat"], at, 0.12, 0.55)
            if kicks[place] or place == 0:
                track.add(strokes["kick"], at, 0.4)
            if snares[place]:
                track.add(strokes["snare"], at, 0.35)
        self.mix = track.mix

    def degree(self, at: float) -> int:
        """The scale degree of the chord at a time in seconds."""
        return self.chords[int(at / (4 * self.beat)) % len(self.chords)]

    def pitch(self, step: int, octave: int = 0) -> float:
        """The frequency in Hz of a step of the scale."""
        return 440 * 2 ** ((self.root + 12 * (octave + step // 7) + self.scale[step % 7] - 69) / 12)


def play(rng: np.random.Generator, riffs: list[Riff]) -> np.ndarray:
    """One song, float32 [samples, 2]: the riffs in sequence, with its own melody."""
    song = Track(sum(riff.seconds for riff in riffs))
    lead, start = rng.random(4) / np.arange(1, 5), 0.0
    for riff in riffs:
        first = round(start * SAMPLE_RATE)
        song.mix[first : first + len(riff.mix)] += riff.mix
        for half in range(int(2 * riff.seconds / riff.beat)):
            at = half * riff.beat / 2
            if rng.random() < 0.3:
                note = riff.pitch(riff.degree(at) + int(rng.integers(0, 5)), 2)
                song.add(tone(note, riff.beat * 0.6, lead, 0.005, 0.25), start + at, rng.uniform(0.03, 0.08), 0.6)
        start += riff.seconds
    return (rng.uniform(0.8, 1.5) * song.mix).clip(-1, 1).astype(np.float32)


if __name__ == "__main__":
    run_script(main)
