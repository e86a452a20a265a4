"""The same recording in two files: recognised by fingerprints, across cuts, encodings and levels.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): 32 bits for each frame, the signs
of the differences of energy over 33 neighbouring bands (200 to 1100 Hz) and over time. Of two copies of one recording,
cut and encoded in different ways, up to a fifth of the bits differ; of two recordings, 40% and more. A recording that
was sped up, another mix and another performance are not recognised.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import soxr
import torch

RATE = 2400  # Hz, to which tracks are resampled: enough for the highest band
FRAME, HOP = 3072, 307  # samples at this rate: 1.28 s every 0.128 s, so that it matters little where a cut begins
SILENT = 1e-2  # energy of a frame (that of a full-scale sine is 6e5) below which its signs are noise
WINDOW = np.hanning(FRAME).astype(np.float32)
EDGES = np.geomspace(200, 1100, 34) * FRAME / RATE  # of the bands, in bins
FIRST_BIN, LAST_BIN = math.ceil(EDGES[0]), math.ceil(EDGES[-1])
BINS = np.arange(FIRST_BIN, LAST_BIN)[:, None]
# The product is torch's, as NumPy's takes all cores, and each worker has one.
BANDS = torch.from_numpy(((EDGES[:-1] <= BINS) & (EDGES[1:] > BINS)).astype(np.float32))  # [bins, 33]

MAX_DIFFERENT = 10  # bits of 32 in prints that count as equal
MIN_EQUAL = 0.95  # of the prints where two tracks overlap; of copies it was 0.99 and more
MIN_OVERLAP = 94  # prints: 12 s
MIN_SHARED = 352  # prints: 45 s. Of shorter stretches music that is made of loops has many
IGNORED_BITS = 8  # of 32, where prints are looked up: more copies are found
MIN_HITS = 3  # identical prints at one lag that make it worth comparing
MAX_ALIGNMENTS = 8  # of two tracks; those with the most hits
MAX_COMMON = 64  # a print that stands in more tracks than this says little: hum, a drum machine
BLOCK = 500  # tracks that are looked up at a time, for the sake of memory
LAG_ZERO = 1 << 21  # prints: 75 h


class Fingerprint:
    """The prints of a track whose samples come piece by piece."""

    def __init__(self, sample_rate: int) -> None:
        self._resampler = soxr.ResampleStream(sample_rate, RATE, 1, "float32", "LQ")
        self._signal = np.zeros(0, np.float32)  # at RATE
        self._energies = np.zeros((0, 33), np.float32)  # of the last frame
        self._prints: list[np.ndarray] = []

    def add(self, samples: np.ndarray) -> None:
        """The next float32 [samples] of the track."""
        signal = np.concatenate([self._signal, self._resampler.resample_chunk(samples)])
        count = max(0, (len(signal) - FRAME) // HOP + 1)
        self._signal = signal[count * HOP :]
        if count == 0:
            return
        frames = np.lib.stride_tricks.sliding_window_view(signal, FRAME)[: count * HOP : HOP] * WINDOW
        spectra = torch.fft.rfft(torch.from_numpy(frames))[:, FIRST_BIN:LAST_BIN]
        powers = (spectra.real.square() + spectra.imag.square()) @ BANDS
        energies = np.concatenate([self._energies, powers.numpy()])  # [frames, 33]
        self._energies = energies[-1:]
        bits = np.diff(np.diff(energies, axis=1), axis=0) > 0  # [frames - 1, 32]
        prints = np.packbits(bits, axis=1).view(np.uint32)[:, 0]
        self._prints.append(np.where(energies[1:].sum(axis=1) > SILENT, prints, 0))

    def prints(self) -> np.ndarray:
        """uint32 [7.8 a second]; 0 where there is silence."""
        return np.concatenate([np.zeros(0, np.uint32), *self._prints])


def compare_tracks(tracks: list[np.ndarray]) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Which tracks have audio in common, by their prints.

    Returns those that are the same recording as an earlier one, {index: index of the earlier one}, and those (earlier,
    later) that share a part. The same recording: an alignment in which they overlap by at least 12 s and half of the
    later track, and in which nearly all prints are nearly equal. A part: the same with half of the earlier track, or
    45 s anywhere. Only the alignments at which the most prints are identical are looked at.
    """
    repeats: dict[int, int] = {}
    sharing: set[tuple[int, int]] = set()
    tried: Counter[tuple[int, int]] = Counter()
    for first, second, lag in _alignments(tracks):
        tried[first, second] += 1
        if second in repeats or tried[first, second] > MAX_ALIGNMENTS:
            continue
        for shift in (0, -1):
            is_same, is_shared = _common(tracks[first], tracks[second], lag + shift)
            if is_same:
                repeats.setdefault(second, first)
            elif is_shared:
                sharing.add((first, second))
    for track in sorted(repeats):
        repeats[track] = repeats.get(repeats[track], repeats[track])
    return repeats, sorted((a, b) for a, b in sharing if a not in repeats and b not in repeats)


def _alignments(tracks: list[np.ndarray]) -> list[tuple[int, int, int]]:
    """(track, later track, lag in prints) that have at least MIN_HITS prints in common, most common first."""
    values, places, owners = [], [], []
    for owner, prints in enumerate(tracks):
        sounding = np.flatnonzero(prints)
        distinct, first = np.unique(prints[sounding] >> IGNORED_BITS, return_index=True)
        values.append(distinct)
        places.append(sounding[first])
        owners.append(np.full(len(distinct), owner))
    if not values:
        return []
    value, place, owner = np.concatenate(values), np.concatenate(places), np.concatenate(owners)
    _, group, size = np.unique(value, return_inverse=True, return_counts=True)
    keep = (size[group] > 1) & (size[group] <= MAX_COMMON)
    order = np.lexsort((owner[keep], value[keep]))
    value, place, owner = value[keep][order], place[keep][order], owner[keep][order]
    found, counts = [], []
    for block in range(0, len(tracks), BLOCK):
        keys = [np.zeros(0, np.int64)]
        for distance in range(1, MAX_COMMON):
            equal = (value[distance:] == value[:-distance]) & (owner[:-distance] // BLOCK == block // BLOCK)
            lag = place[:-distance][equal] - place[distance:][equal]
            key = owner[:-distance][equal] << 42 | owner[distance:][equal] << 22 | lag + LAG_ZERO
            keys += [key, key + 1]  # a cut between two frames has hits at two lags
        key, hits = np.unique(np.concatenate(keys), return_counts=True)
        found.append(key[hits >= MIN_HITS])
        counts.append(hits[hits >= MIN_HITS])
    key = np.concatenate(found)[np.argsort(-np.concatenate(counts), kind="stable")]
    mask = (1 << 20) - 1
    return [(int(k >> 42), int(k >> 22 & mask), int(k & (1 << 22) - 1) - LAG_ZERO) for k in key]


def _common(first: np.ndarray, second: np.ndarray, lag: int) -> tuple[bool, bool]:
    """Whether the second track is the same recording, or shares a part, its print k being `lag + k` of the first."""
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
