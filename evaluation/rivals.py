"""What the model must beat: predictions that need no gradient descent.

Each is fitted on training pairs only, or inside the very input it continues; none sees what it is measured on.

    repeat the input        x
    the input's average     mean of x over time
    the shrunk copy         μ + g (x − μ), a gain a channel: what the untrained model predicts
    ridge                   every output frame a linear function of the input frame in its place and of the input's mean
    the loop                the input's own period, found and tested inside the input, played on
    the training mean       μ, one vector; and by position, one vector for each frame (neither sees the input)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from common.progress import Progress
from evaluation.measures import one_thread

LOOP_CANDIDATES = 12
LOOP_SHORTEST_S = 0.5
LOOP_LONGEST_SHARE = 0.8  # of the input: a longer lag leaves too little to test it on
RIDGE_FOLDS = 5
RIDGE_PENALTIES = np.logspace(-5, 2, 15)  # as shares of the number of frames


class Pairs(Protocol):
    """Pairs of embeddings, as dataset_wav_pairs.WavPairsDataset gives them: (input, output), [128, T] each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]: ...


# ------------------------------------------------------------------ inside the input


@one_thread()
def loop(embedding: torch.Tensor, frame_rate: int) -> torch.Tensor:
    """Continue [128, T] by its own repetition, [128, T].

    Candidates are the 12 highest peaks of the normalised autocorrelation at lags from 0.5 s to 0.8 T. For each, every
    frame is predicted by the mean of the frames whole lags before it, times a gain in [0, 1] by least squares; the
    lag that predicts the input's second half best (error ÷ energy, over the frames with a lag before them) continues
    it. All of it is about the input's average over time; where no lag helps, the gain is 0 and the average remains.
    """
    mean = embedding.double().mean(dim=1, keepdim=True)
    x = embedding.double() - mean
    frames = x.shape[1]
    best_share, best = 1.0, torch.zeros_like(x)
    for lag in candidate_lags(x, frame_rate):
        prediction, continued = phase_means(x, lag)
        start = max(lag, frames // 2)
        prediction, tested = prediction[:, start - lag :], x[:, start:]
        gain = float(((tested * prediction).sum() / prediction.square().sum().clamp_min(1e-30)).clamp(0, 1))
        share = float((tested - gain * prediction).square().sum() / tested.square().sum().clamp_min(1e-30))
        if share < best_share:
            best_share, best = share, gain * continued
    return (mean + best).float()


def candidate_lags(x: torch.Tensor, frame_rate: int) -> list[int]:
    """The lags (frames) at which [128, T], of mean 0 over time, is most like itself: local peaks, the highest first.

    Likeness is Σ x_t · x_{t+lag} ÷ √(Σ |x_t|² Σ |x_{t+lag}|²) over the frames that overlap.
    """
    frames = x.shape[1]
    shortest, longest = round(LOOP_SHORTEST_S * frame_rate), int(LOOP_LONGEST_SHARE * frames)
    spectrum = torch.fft.rfft(x, n=2 * frames, dim=1).abs().square().sum(dim=0)
    products = torch.fft.irfft(spectrum, n=2 * frames)[:frames]
    energy = x.square().sum(dim=0)
    first = energy.flip(0).cumsum(0).flip(0)  # Σ of the frames t.. to the end: the later side of lag t
    last = energy.cumsum(0).flip(0)  # Σ of the first T − t frames: the earlier side
    likeness = products / (first * last).sqrt().clamp_min(1e-30)
    peak = (likeness[1:-1] > likeness[:-2]) & (likeness[1:-1] >= likeness[2:])
    lags = [lag for lag in (torch.nonzero(peak)[:, 0] + 1).tolist() if shortest <= lag <= longest]
    return sorted(lags, key=lambda lag: -float(likeness[lag]))[:LOOP_CANDIDATES]


def phase_means(x: torch.Tensor, lag: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each frame of [128, T] from `lag` on as the mean of all frames whole lags before it, and T frames more.

    Returns [128, T − lag] inside the input and [128, T] after it.
    """
    frames = x.shape[1]
    rounds = -(-frames // lag)
    padded = torch.nn.functional.pad(x, (0, rounds * lag - frames)).unflatten(1, (rounds, lag))
    sums = padded.cumsum(dim=1)
    inside = (sums[:, :-1] / torch.arange(1, rounds, dtype=x.dtype)[:, None]).flatten(1)[:, : frames - lag]
    phase = torch.arange(frames, 2 * frames) % lag
    seen = torch.bincount(torch.arange(frames) % lag, minlength=lag)
    return inside, (sums[:, -1] / seen)[:, phase]


# ------------------------------------------------------------------ from the training pairs


@dataclass(frozen=True)
class Fitted:
    """What was learned from the training pairs, about μ and in units of the deviation of each channel."""

    mean: torch.Tensor  # [128, 1]
    std: torch.Tensor  # [128, 1]
    weights: torch.Tensor  # [256, 128]: the frame's channels, then the input's mean
    penalty: float  # a share of the number of frames
    by_position: torch.Tensor  # [128, T]: the mean output, frame by frame
    components: torch.Tensor  # [128, 128]: principal directions of outputs about μ, a column each, strongest first

    @one_thread()
    def ridge(self, embedding: torch.Tensor) -> torch.Tensor:
        """[128, T] -> [128, T]"""
        return (self.mean + self.std * (self.weights.T @ _features(embedding, self.mean, self.std))).float()


@one_thread()
def fit(pairs: Pairs, tracks: list[str], mean: torch.Tensor, std: torch.Tensor, progress: Progress) -> Fitted:
    """Fit ridge, the mean by position and the principal components, one pair at a time in memory.

    tracks: of each training pair. Ridge minimises |Y − XW|² + λ|W|² (Hoerl and Kennard 1970); λ is the one with the
    least error on tracks it was not fitted on (five folds of tracks, of pairs if there is one track only).
    """
    mean, std = mean.double().cpu(), std.double().cpu()
    numbers = {track: number for number, track in enumerate(dict.fromkeys(tracks))}
    folds = min(RIDGE_FOLDS, len(numbers) if len(numbers) > 1 else len(pairs))
    channels = len(mean)
    xx = torch.zeros(folds, 2 * channels, 2 * channels, dtype=torch.float64)
    xy = torch.zeros(folds, 2 * channels, channels, dtype=torch.float64)
    yy = torch.zeros(channels, channels, dtype=torch.float64)
    position_sum, frames = 0, 0
    for index, track in enumerate(tracks):
        source, target = pairs[index]
        fold = (numbers[track] if len(numbers) > 1 else index) % folds
        x, y = _features(source, mean, std), (target.double() - mean) / std
        xx[fold] += x @ x.T
        xy[fold] += x @ y.T
        yy += y @ y.T
        position_sum = position_sum + target.double()
        frames += x.shape[1]
        progress(index + 1, len(tracks), "training pairs read for the rivals")
    penalty = frames * (_best_penalty(xx, xy, frames) if folds > 1 else 1.0)
    covariance = std * yy * std.T
    return Fitted(
        mean,
        std,
        _solve(xx.sum(dim=0), xy.sum(dim=0), [penalty])[0],
        penalty / frames,
        position_sum / len(tracks),
        torch.linalg.eigh(covariance).eigenvectors.flip(1),
    )


def _features(embedding: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """[128, T] -> standardised, with its mean over time beneath, [256, T]."""
    x = (embedding.double() - mean) / std
    return torch.cat([x, x.mean(dim=1, keepdim=True).expand_as(x)])


def _solve(xx: torch.Tensor, xy: torch.Tensor, penalties: list[float]) -> list[torch.Tensor]:
    """Ridge weights [256, 128] for each penalty, from XᵀX and XᵀY: one eigendecomposition for all."""
    values, vectors = torch.linalg.eigh(xx)
    rotated = vectors.T @ xy
    return [vectors @ (rotated / (values.clamp_min(0) + penalty)[:, None]) for penalty in penalties]


def _best_penalty(xx: torch.Tensor, xy: torch.Tensor, frames: int) -> float:
    """The share λ ÷ frames with the least error on the folds that were left out."""
    errors = np.zeros(len(RIDGE_PENALTIES))
    for fold in range(len(xx)):
        weights = _solve(xx.sum(dim=0) - xx[fold], xy.sum(dim=0) - xy[fold], list(RIDGE_PENALTIES * frames))
        # |Y − XW|² but for |Y|², which all penalties share.
        errors += [float((w * (xx[fold] @ w)).sum() - 2 * (w * xy[fold]).sum()) for w in weights]
    return float(RIDGE_PENALTIES[errors.argmin()])
