"""Recognize the same recording in two files by fingerprints, even if it was trimmed, re-encoded or made louder.

The method is from Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002). Each frame gives a
print of 32 bits: the signs of energy differences between 33 neighboring bands (200 to 1100 Hz) and over time. Copies of
one recording that are cut and encoded differently differ in up to a fifth of the bits. Two recordings differ in 40% or
more. Other speeds, mixes and performances are not recognized. Used by gathering.py and segmentation.py.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import scipy.fft
import soxr

RATE = 2400  # Hz; tracks are resampled to it, and it is enough for the highest band
FRAME, HOP = 3072, 307  # samples at this rate. Frames of 1.28 s every 0.128 s tolerate a cut at any position.
SILENT = 1e-2  # energy of a frame below which its signs are noise; a full-scale sine has 6e5
WINDOW = np.hanning(FRAME).astype(np.float32)
# The first bin of each band, and the end of the last.
EDGES = np.ceil(np.geomspace(200, 1100, 34) * FRAME / RATE).astype(int)

MAX_DIFFERENT = 10  # prints that differ in at most this many of 32 bits count as equal
MIN_EQUAL = 0.95  # share of equal prints where two tracks overlap; copies had 0.99 or more
MIN_OVERLAP = 94  # prints: 12 s
MIN_SHARED = 352  # prints: 45 s. Loop-based music shares many shorter stretches
IGNORED_BITS = 8  # of 32 when prints are looked up, which finds more copies
MIN_HITS = 3  # matching prints at one lag that make a comparison worthwhile
MAX_ALIGNMENTS = 8  # alignments tried for two tracks, most hits first
MAX_COMMON = 64  # prints found in more tracks than this mean little: hum, a drum machine
BLOCK = 500  # tracks looked up at a time, to limit memory
LAG_ZERO = 1 << 21  # prints: 75 h


class Fingerprint:
    """Computes the prints of a track as its samples arrive."""

    def __init__(self, sample_rate: int) -> None:
        self._resampler = soxr.ResampleStream(sample_rate, RATE, 1, "float32", "LQ")
        self._signal = np.zeros(0, np.float32)  # at RATE
        self._energies = np.zeros((0, 33), np.float32)  # the last frame's
        self._prints: list[np.ndarray] = []

    def add(self, samples: np.ndarray) -> None:
        """Add the next float32 [samples] of the track."""
        signal = np.concatenate([self._signal, self._resampler.resample_chunk(samples)])
        count = max(0, (len(signal) - FRAME) // HOP + 1)
        self._signal = signal[count * HOP :]
        if count == 0:
            return
        frames = np.lib.stride_tricks.sliding_window_view(signal, FRAME)[: count * HOP : HOP] * WINDOW
        spectra = scipy.fft.rfft(frames)[:, EDGES[0] : EDGES[-1]]
        powers = np.add.reduceat(spectra.real**2 + spectra.imag**2, EDGES[:-1] - EDGES[0], axis=1)
        energies = np.concatenate([self._energies, powers])  # [frames, 33]
        self._energies = energies[-1:]
        bits = np.diff(np.diff(energies, axis=1), axis=0) > 0  # [frames - 1, 32]
        prints = np.packbits(bits, axis=1).view(np.uint32)[:, 0]
        self._prints.append(np.where(energies[1:].sum(axis=1) > SILENT, prints, 0))

    def prints(self) -> np.ndarray:
        """uint32 [prints], 7.8 per second; 0 means silence."""
        return np.concatenate([np.zeros(0, np.uint32), *self._prints])


def compare_tracks(tracks: list[np.ndarray]) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Find tracks that share audio, by their prints.

    Returns the repeats {index: index of the earlier track that is the same recording}, and the (earlier, later) tracks
    that share a part. Two tracks are the same recording if they have an alignment that overlaps by at least 12 s and
    half of the second track, and nearly all prints in it are nearly equal. They share a part if the same holds for half
    of the first track, or for any 45 s. Only the alignments with the most matching prints are checked.
    """
    repeats: dict[int, int] = {}
    sharing: set[tuple[int, int]] = set()
    tried: Counter[tuple[int, int]] = Counter()
    for first, second, lag in _alignments(tracks):
        tried[first, second] += 1
        if second in repeats or tried[first, second] > MAX_ALIGNMENTS:
            continue
        for shift in (0, -1):  # the two lags of _alignments
            is_same, is_shared = _common(tracks[first], tracks[second], lag + shift)
            if is_same:
                repeats.setdefault(second, first)
            elif is_shared:
                sharing.add((first, second))
    for track in sorted(repeats):
        repeats[track] = repeats.get(repeats[track], repeats[track])
    return repeats, sorted((a, b) for a, b in sharing if a not in repeats and b not in repeats)


def _alignments(tracks: list[np.ndarray]) -> list[tuple[int, int, int]]:
    """(track, later track, lag in prints) with at least MIN_HITS common prints, most hits first.

    Each print that two tracks have in common is a vote for these tracks and the lag between its places in them.
    """
    value, place, owner = _occurrences(tracks)
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for block in range(-(-len(tracks) // BLOCK)):
        votes = [np.zeros(0, np.int64)]
        for distance in range(1, MAX_COMMON):  # between two occurrences of the same print
            earlier, later = slice(None, -distance), slice(distance, None)
            common = (value[earlier] == value[later]) & (owner[earlier] // BLOCK == block)
            lag = place[earlier][common] - place[later][common]
            # 22 bits for the first track, 20 for the second, 22 for the lag: one number is quick to count.
            vote = owner[earlier][common] << 42 | owner[later][common] << 22 | lag + LAG_ZERO
            votes += [vote, vote + 1]  # a cut between two frames gives hits at two lags
        key, hits = np.unique(np.concatenate(votes), return_counts=True)
        keys.append(key[hits >= MIN_HITS])
        counts.append(hits[hits >= MIN_HITS])
    best_first = np.argsort(-np.concatenate(counts), kind="stable")
    unpacked = (
        (int(k >> 42), int(k >> 22 & (1 << 20) - 1), int(k & (1 << 22) - 1)) for k in np.concatenate(keys)[best_first]
    )
    return [(first, second, lag - LAG_ZERO) for first, second, lag in unpacked]


def _occurrences(tracks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prints that occur in 2 to MAX_COMMON tracks: value, first place in a track, and the track's number.

    They are sorted by value and track, so that occurrences of the same print are neighbors.
    """
    values, places, owners = ([np.zeros(0, np.int64)] for _ in range(3))
    for owner, prints in enumerate(tracks):
        sounding = np.flatnonzero(prints)
        distinct, first = np.unique(prints[sounding] >> IGNORED_BITS, return_index=True)
        values.append(distinct)
        places.append(sounding[first])
        owners.append(np.full(len(distinct), owner))
    value, place, owner = map(np.concatenate, (values, places, owners))
    _, group, size = np.unique(value, return_inverse=True, return_counts=True)
    kept = np.flatnonzero((size[group] > 1) & (size[group] <= MAX_COMMON))
    order = kept[np.lexsort((owner[kept], value[kept]))]
    return value[order], place[order], owner[order]


def _common(first: np.ndarray, second: np.ndarray, lag: int) -> tuple[bool, bool]:
    """(is the same recording, shares a part), if print k of the second track is print `lag + k` of the first."""
    a, b = first[max(0, lag) :], second[max(0, -lag) :]
    a, b = a[: len(b)], b[: len(a)]
    sounds = (a != 0) & (b != 0)
    overlap = np.count_nonzero(sounds)
    different = np.unpackbits((a ^ b).view(np.uint8)).reshape(-1, 32).sum(axis=1)
    equal = np.concatenate([[0], np.cumsum((different <= MAX_DIFFERENT) & sounds)])
    if overlap >= MIN_OVERLAP and equal[-1] >= MIN_EQUAL * overlap:
        if overlap >= np.count_nonzero(second) / 2:
            return True, False
        if overlap >= np.count_nonzero(first) / 2:
            return False, True
    stretches = equal[MIN_SHARED:] - equal[:-MIN_SHARED]
    return False, bool((stretches >= MIN_EQUAL * MIN_SHARED).any())
