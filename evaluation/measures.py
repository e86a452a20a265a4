"""Measures on embeddings and intervals over tracks, each with its formula, source and limits.

Used throughout evaluation/. Pairs of one track are not independent, so everything with an interval counts each track
once. `tracks` names the track of each pair. Sums are float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch

BAND_EDGES_HZ = (0.0, 0.25, 1.0, 4.0, 12.0)
BANDS = ("average", "< 0.25 Hz", "0.25–1 Hz", "1–4 Hz", "4–12 Hz", "> 12 Hz")  # "average": 0 Hz, over a clip
TINY = 1e-300
MAX_REACH = 2.0  # limit for the distance of an interval's end, relative to Student's t
MIN_SCALE = 0.1  # smallest error of a track under the training mean, as a share of the median track's, per pair

Errors = dict[str, np.ndarray]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread. More would gain little here and cost a lot if other programs need the cores.

    On two busy cores, a matrix square root took 30 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------ one continuation against the truth


@one_thread()
def compare(prediction: torch.Tensor, target: torch.Tensor, mean: torch.Tensor, frame_rate: float) -> Errors:
    """Measure a prediction [C, T] of `target` [C, T]. Returns float64 arrays.

    seconds, bands: the squared error in each second, and in each modulation band.
    deviation: the prediction's standard deviation over time, averaged over channels.
    slope: Σ(y − μ)(p − μ) and Σ(p − μ)², from which the calibration slope follows.

    mean: μ of the training set, [C, 1].
    """
    prediction, target, mean = prediction.double(), target.double(), mean.double()
    error = prediction - target
    moved = prediction - mean
    errors = {
        "seconds": error_by_second(error, frame_rate),
        "bands": error_by_band(error, frame_rate),
        "deviation": prediction.std(dim=1, correction=0).mean().reshape(1),
        "slope": torch.stack([((target - mean) * moved).sum(), moved.square().sum()]),
    }
    return {name: value.numpy() for name, value in errors.items()}


def error_by_second(error: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Squared error in each second: [C, T] -> [ceil(T / frame_rate)]."""
    return torch.stack([second.square().sum() for second in error.split(round(frame_rate), dim=1)])


def elements_per_second(frames: int, channels: int, frame_rate: float) -> np.ndarray:
    """The number of elements of an embedding [channels, frames] in each second, [seconds]."""
    starts = np.arange(0, frames, round(frame_rate))
    return np.minimum(round(frame_rate), frames - starts).astype(np.float64) * channels


def error_by_band(error: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Squared error in each of BANDS, by modulation frequency: [C, T] -> [6].

    By Parseval's theorem, Σ e² = Σ_k |E_k|² / T over the discrete Fourier transform along time. So the bands add up
    to the squared error. The lowest band above 0 Hz is empty unless clips are longer than 4 s.
    """
    frames = error.shape[1]
    power = torch.fft.rfft(error, dim=1).abs().square().sum(dim=0) / frames  # [T // 2 + 1]
    power[1 : (frames + 1) // 2] *= 2  # for the conjugates
    frequencies = torch.fft.rfftfreq(frames, 1 / frame_rate)
    band = torch.bucketize(frequencies, torch.tensor(BAND_EDGES_HZ[1:]), right=True) + 1
    band[0] = 0
    return torch.zeros(len(BANDS), dtype=torch.float64).index_add_(0, band, power)


# ------------------------------------------------------------------ over pairs and tracks


def by_track(tracks: list[str]) -> dict[str, list[int]]:
    """The pairs of each track, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for index, track in enumerate(tracks):
        groups.setdefault(track, []).append(index)
    return groups


def sum_by_track(values: np.ndarray, tracks: list[str]) -> np.ndarray:
    """Sums over the pairs of each track: [pairs, ...] -> [tracks, ...]."""
    return np.stack([values[group].sum(axis=0) for group in by_track(tracks).values()])


class Estimate(NamedTuple):
    """A value and the two ends of its 95% interval, which are nan if there is no interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ratio_over_tracks(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Σ numerators ÷ Σ denominators over tracks, [tracks, ...] each, with its 95% interval.

    The interval is that of the mean of the linearized values v + (a_t − v b_t) ÷ mean(b) (Cochran 1977, chapter
    6). With equal denominators, these are the tracks' own values and the interval is exact. nan if Σb is 0.
    """
    total = denominators.sum(axis=0)
    value = np.where(total > 0, numerators.sum(axis=0) / np.where(total > 0, total, 1), np.nan)
    center = np.where(total > 0, total / len(denominators), np.nan)
    return Estimate(value, *interval_of_mean(value + (numerators - value * denominators) / center))


def interval_of_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the mean over tracks: [tracks, ...] -> two [...]; nan for a single track.

    Each end is the farther one of two: Student's t, and t after Hall's transformation, which removes skewness (Hall
    1992, "On the Removal of Skewness by Transformation"). It is at most twice as far as t, because otherwise one odd
    track in ten would hide what the other nine show.

    Simulations with worthless models and 10 tracks (tests/test_evaluation_intervals.py): if one track in ten goes
    badly wrong, t alone wrongly calls 10% of the models better. If errors have long tails on both sides, Hall's alone
    wrongly calls 4% better. The farther of the two wrongly calls 5% and 2% better, with or without the limit, and
    contains the truth in 94 to 96% of cases. 20 and 40 tracks give the same coverage. The bootstrap of a pooled ratio
    called 14% and 8% better.

    No interval accounts for kinds of tracks that the sample does not contain.
    """
    count = len(values)
    if count < 2:
        nothing = np.full(np.shape(values)[1:], np.nan)
        return nothing, nothing
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    reach = scipy.stats.t.ppf(0.975, count - 1) / np.sqrt(count)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = np.mean((values - mean) ** 3, axis=0) / np.std(values, axis=0) ** 3
        skewness = np.where(np.abs(skewness) > 1e-6, skewness, np.nan)  # without skewness or spread: t alone

        def inverse(y: float) -> np.ndarray:
            """u from y = u + g u² / 3 + g² u³ / 27 + g / 6n, where u = (mean − truth) ÷ deviation."""
            return 3 / skewness * (np.cbrt(1 + skewness * (y - skewness / (6 * count))) - 1)

        below = np.fmax(1, np.minimum(inverse(reach) / reach, MAX_REACH))
        above = np.fmax(1, np.minimum(-inverse(-reach) / reach, MAX_REACH))
    return mean - below * deviation * reach, mean + above * deviation * reach


class TrackErrors:
    """The errors of each row, summed over each track and divided by the track's error under the training mean.

    So every track counts once, however loud or long it is. With some codecs, a quiet track has almost no error under
    the training mean. A small error would then give it a skill of −8, which alone would decide the mean. So errors are
    divided by at least a tenth of the median track's error under the training mean. A quieter track counts for less.
    """

    def __init__(self, errors: dict[str, Errors], tracks: list[str]):
        self.sums = {
            row: {part: sum_by_track(values, tracks) for part, values in parts.items()} for row, parts in errors.items()
        }
        for parts in self.sums.values():
            parts["total"] = parts["seconds"].sum(axis=1)
        scale = self.total("training_mean")
        pairs = np.array([len(group) for group in by_track(tracks).values()])
        least = max(MIN_SCALE * np.median(scale / pairs), 1e-9 * np.mean(scale / pairs), TINY)
        self.scale = np.maximum(scale, least * pairs)

    def total(self, row: str) -> np.ndarray:
        """Squared error of each track, [tracks]."""
        return self.sums[row]["total"]

    def pooled_skill(self, row: str) -> float:
        """1 − Σ error ÷ Σ error of the training mean over all tracks. Long and loud tracks count most."""
        return float(1 - self.total(row).sum() / max(self.total("training_mean").sum(), TINY))

    def skill(self, row: str, part: str = "total") -> Estimate:
        """1 − error ÷ error of the training mean, in total or in each second or band.

        All tracks have the same weight: both errors are divided by the track's total under the training mean.
        """
        mean = self.sums["training_mean"][part]
        scale = self.scale.reshape(-1, *[1] * (mean.ndim - 1))
        return ratio_over_tracks((mean - self.sums[row][part]) / scale, mean / scale)

    def share(self, part: str) -> np.ndarray:
        """The share of the training mean's error in each second or band, with tracks weighted as in `skill`."""
        shares = (self.sums["training_mean"][part] / self.scale[:, None]).sum(axis=0)
        return shares / max(shares.sum(), TINY)

    def lead(self, row: str, over: str) -> Estimate:
        """One row's skill minus another's."""
        return ratio_over_tracks(
            (self.total(over) - self.total(row)) / self.scale, self.total("training_mean") / self.scale
        )

    def slope(self, row: str) -> float | None:
        """Calibration slope Σ(y − μ)(p − μ) ÷ Σ(p − μ)², the regression of truth on prediction.

        Below 1 the model is overconfident: shrinking its predictions would lower the error. None if it predicts μ.
        """
        product, square = self.sums[row]["slope"].sum(axis=0)
        return float(product / square) if square > 1e-9 * self.total("training_mean").sum() else None
