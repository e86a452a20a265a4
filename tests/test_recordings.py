"""Copies of a recording are recognized even if they are cut. Different music is never taken for a copy."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, noise

from audio.segments import SAMPLE_RATE, read_last_samples
from dataset.recordings import Fingerprint, compare_tracks


def find_repeats(tracks: list[np.ndarray]) -> dict[int, int]:
    repeats, sharing = compare_tracks(tracks)
    assert sharing == [], "no stretch of 45 s"
    return repeats


def prints_of(samples: np.ndarray) -> np.ndarray:
    """The prints of float32 [samples] at 24 kHz, added in pieces of random length."""
    fingerprint, at = Fingerprint(SAMPLE_RATE), 0
    for piece in np.random.default_rng(0).integers(1, 200_000, 1000):
        fingerprint.add(samples[at : at + piece].astype(np.float32))
        at += piece
    return fingerprint.prints()


@pytest.fixture
def songs(rng):
    return [noise(rng, 40 * SAMPLE_RATE)[:, 0] for _ in range(4)]


def test_a_cut_copy_is_recognized_wherever_it_begins(songs, rng):
    tracks = [prints_of(song) for song in songs]
    for start in rng.integers(0, 19 * SAMPLE_RATE, 12):
        copy = 0.3 * songs[2][start:] + 0.01 * rng.standard_normal(len(songs[2]) - start)
        assert find_repeats([*tracks, prints_of(copy)]) == {4: 2}, start
    end_of_it = prints_of(songs[2][25 * SAMPLE_RATE :])
    assert find_repeats([*tracks, end_of_it]) == {4: 2}
    assert compare_tracks([end_of_it, *tracks]) == ({}, [(0, 3)]), "the longer one has more than that"
    mostly_other = prints_of(np.concatenate([songs[2][-13 * SAMPLE_RATE :], noise(rng, 14 * SAMPLE_RATE)[:, 0]]))
    assert find_repeats([*tracks, mostly_other]) == {}, "less than half of it"
    assert find_repeats([tracks[1], tracks[0], tracks[1], tracks[1]]) == {2: 0, 3: 0}


@pytest.mark.parametrize("seconds", [30, 60])
def test_a_shared_part_is_found(rng, seconds):
    """A minute of a song is found in a medley, wherever it is and whatever surrounds it."""
    songs = [noise(rng, 150 * SAMPLE_RATE)[:, 0] for _ in range(3)]
    at, to = rng.integers(0, (150 - seconds) * SAMPLE_RATE, 2)
    part = songs[1][at : at + seconds * SAMPLE_RATE]
    around = noise(rng, 150 * SAMPLE_RATE)[:, 0]
    medley = np.concatenate([around[:to], 0.5 * part, around[to:]])
    repeats, sharing = compare_tracks([prints_of(song) for song in [*songs, medley]])
    assert repeats == {} and sharing == ([(1, 3)] if seconds == 60 else [])


def test_silence_hum_and_nothing_are_not_the_same_recording(songs):
    hum = 0.1 * np.sin(2 * np.pi * 50 * np.arange(40 * SAMPLE_RATE) / SAMPLE_RATE)
    silent = [np.zeros(40 * SAMPLE_RATE), np.zeros(30 * SAMPLE_RATE), np.zeros(0)]
    half = [np.concatenate([song[: 14 * SAMPLE_RATE], silent[0]]) for song in songs[:2]]
    assert find_repeats([prints_of(track) for track in [*silent, *half]]) == {}
    assert find_repeats([prints_of(song + hum) for song in songs]) == {}
    assert find_repeats([]) == {}


@pytest.mark.slow
def test_the_demos_tracks_share_sounds_but_are_different(tmp_path):
    command = [sys.executable, ROOT / "demo/make_music.py", "--output_dir", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    songs = [read_last_samples(path, 3600 * SAMPLE_RATE, SAMPLE_RATE)[0] for path in tmp_path.iterdir()]
    assert find_repeats([prints_of(song) for song in songs]) == {}


def test_one_copy_among_many_tracks_is_found(rng):
    tracks = [rng.integers(1, 2**32, 937, dtype=np.uint64).astype(np.uint32) for _ in range(2000)]
    tracks.append(tracks[700][100:])
    assert find_repeats(tracks) == {2000: 700}
