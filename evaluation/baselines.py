"""What the model must beat: predictions that need no gradient descent. Used by comparison.py.

Each is fitted to training pairs only, or to the input that it continues.

    repeat the input        x
    the input's average     mean of x over time
    regression by channel   μ + g (x − μ) with a gain g per channel, which is what the untrained model predicts
    the last moment         μ + g (mean of the last frames − μ) with a gain g per output frame
    ridge                   each output frame from the input frame at the same position and the input's mean
    the loop                repeats the input at its own period, which is found and tested inside the input
    the training mean       μ, one vector; or one vector per position. Neither depends on the input
    the linear map          of the whole clip, in clip_ridge.py
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from common.progress import Progress
from evaluation.clip_ridge import ClipRidge, Pairs
from evaluation.measures import one_thread

LOOP_CANDIDATES = 25  # 0.8 of 16 s contains 25 multiples of 0.5 s, and multiples of a period are peaks, too
LOOP_SHORTEST_S = 0.5
LOOP_LONGEST_SHARE = 0.8  # of the input: a longer lag would leave too little for testing it
RIDGE_FOLDS = 5
LAST_FRAMES = (1, 4)  # the last moment is the mean of one of these numbers of frames
RIDGE_PENALTIES = np.logspace(-5, 2, 15)  # as shares of the number of frames


# ------------------------------------------------------------------ inside the input


@one_thread()
def loop(embedding: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Continue [C, T] by repeating it at its own period, [C, T].

    Candidates are the 25 highest peaks of the normalized autocorrelation at lags from 0.5 s to 0.8 T. Each predicts a
    frame as the mean of all earlier frames at multiples of the lag, times a least-squares gain in [0, 1]. The lag with
    the least error ÷ energy in the input's second half is used for the continuation. All this is relative to the
    input's average over time. If no lag helps, the prediction is that average.
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


def candidate_lags(x: torch.Tensor, frame_rate: float) -> list[int]:
    """The lags (frames) at the highest local peaks of the autocorrelation of [C, T], the highest peak first.

    x has mean 0 over time. The autocorrelation is Σ x_t · x_{t+lag} ÷ √(Σ |x_t|² Σ |x_{t+lag}|²) over the overlap.
    """
    frames = x.shape[1]
    shortest, longest = round(LOOP_SHORTEST_S * frame_rate), int(LOOP_LONGEST_SHARE * frames)
    spectrum = torch.fft.rfft(x, n=2 * frames, dim=1).abs().square().sum(dim=0)
    products = torch.fft.irfft(spectrum, n=2 * frames)[:frames]
    energy = x.square().sum(dim=0)
    first = energy.flip(0).cumsum(0).flip(0)  # Σ over frames t to T: the later side at lag t
    last = energy.cumsum(0).flip(0)  # Σ over the first T − t frames: the earlier side
    correlation = products / (first * last).sqrt().clamp_min(1e-30)
    peak = (correlation[1:-1] > correlation[:-2]) & (correlation[1:-1] >= correlation[2:])
    lags = [lag for lag in (torch.nonzero(peak)[:, 0] + 1).tolist() if shortest <= lag <= longest]
    return sorted(lags, key=lambda lag: -float(correlation[lag]))[:LOOP_CANDIDATES]


def phase_means(x: torch.Tensor, lag: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each frame, the mean of all frames of x [C, T] that lie a multiple of `lag` before it.

    Returns the means for the frames of x from `lag` on, [C, T − lag], and for the T frames after x, [C, T].
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
class FittedBaselines:
    """What was fitted to the training pairs. Weights and centers are for standardized channels."""

    mean: torch.Tensor  # [C, 1]
    std: torch.Tensor  # [C, 1]
    weights: torch.Tensor  # [2C, C]: of the frame's channels, then of the input's mean
    penalty: float  # as a share of the number of frames
    center_in: torch.Tensor  # [2C, T]: ridge subtracts it from its inputs
    center_out: torch.Tensor  # [C, T]: ridge adds it to its outputs
    last_frames: int  # number of frames in the last moment, whichever explains more
    fading: torch.Tensor  # [T]: gain of the last moment
    by_position: torch.Tensor  # [C, T]: the mean output at each position
    clip_ridge: ClipRidge

    @one_thread()
    def ridge(self, embedding: torch.Tensor) -> torch.Tensor:
        """Predict [C, T] -> [C, T]."""
        moved = self.weights.T @ (_features(embedding, self.mean, self.std) - self.center_in)
        return (self.mean + self.std * (self.center_out + moved)).float()

    def last_moment(self, embedding: torch.Tensor) -> torch.Tensor:
        """Predict [C, T] -> [C, T]."""
        return (self.mean + (_last(embedding.double(), self.last_frames) - self.mean) * self.fading).float()


@dataclass
class _Sums:
    """Sums over the standardized pairs of a fold: products over all frames, and x and y at each position."""

    count: int = 0
    x: torch.Tensor | float = 0.0  # [2C, T]
    y: torch.Tensor | float = 0.0  # [C, T]
    xx: torch.Tensor | float = 0.0  # [2C, 2C]
    xy: torch.Tensor | float = 0.0  # [2C, C]
    yy: torch.Tensor | float = 0.0  # [C, C]

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.count += 1
        self.x, self.y = self.x + x, self.y + y
        self.xx, self.xy, self.yy = self.xx + x @ x.T, self.xy + x @ y.T, self.yy + y @ y.T

    def about(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The products xx, xy, yy after x [2C, T] is subtracted from every input and y [C, T] from every output."""

        def moved(product, first_sum, first, second_sum, second):
            return product - first_sum @ second.T - first @ second_sum.T + self.count * first @ second.T

        return (
            moved(self.xx, self.x, x, self.x, x),
            moved(self.xy, self.x, x, self.y, y),
            moved(self.yy, self.y, y, self.y, y),
        )


def _total(folds: list[_Sums]) -> _Sums:
    return _Sums(*(sum(getattr(fold, field.name) for fold in folds) for field in fields(_Sums)))


@one_thread()
def fit(pairs: Pairs, tracks: list[str], mean: torch.Tensor, std: torch.Tensor, progress: Progress) -> FittedBaselines:
    """Fit the baselines to training pairs. Holds one pair in memory, or two blocks of pairs for the linear map.

    tracks: the track of each training pair. Ridge minimizes |Y − XW|² + λ|W|² (Hoerl and Kennard 1970), with X and Y
    relative to μ or to the means by position. Cross-validation chooses one of the two, and λ. Its five folds are of
    tracks, or of pairs if there is only one track.
    """
    mean, std = mean.double().cpu(), std.double().cpu()
    numbers = {track: number for number, track in enumerate(dict.fromkeys(tracks))}
    folds = [_Sums() for _ in range(min(RIDGE_FOLDS, len(numbers) if len(numbers) > 1 else len(pairs)))]
    # For each number of last frames: Σ last · y by output frame, and Σ |last|².
    moments, held = dict.fromkeys(LAST_FRAMES, 0.0), dict.fromkeys(LAST_FRAMES, 1e-12)
    for index, track in enumerate(tracks):
        source, target = pairs[index]
        x, y = _features(source, mean, std), (target.double() - mean) / std
        folds[(numbers[track] if len(numbers) > 1 else index) % len(folds)].add(x, y)
        for count in LAST_FRAMES:
            last = _last(x[: len(mean)], count)
            moments[count] = moments[count] + (last * y).sum(dim=0)
            held[count] += float(last.square().sum())
        progress(index + 1, len(tracks), "training pairs read for the baselines")
    explained = {count: float((moments[count] ** 2).sum()) / held[count] for count in LAST_FRAMES}
    last_frames = max(LAST_FRAMES, key=explained.get)
    total = _total(folds)
    frames = total.count * total.y.shape[1]
    subtract_positions, penalty = _best_ridge(folds) if len(folds) > 1 else (False, 1.0)
    center_in, center_out = subtract_positions * total.x / total.count, subtract_positions * total.y / total.count
    xx, xy, _ = total.about(center_in, center_out)
    return FittedBaselines(
        mean=mean,
        std=std,
        weights=_solve(xx, xy, [penalty * frames])[0],
        penalty=penalty,
        center_in=center_in,
        center_out=center_out,
        last_frames=last_frames,
        fading=moments[last_frames] / held[last_frames],
        by_position=mean + std * total.y / total.count,
        clip_ridge=ClipRidge(pairs, tracks, std, progress),
    )


def _features(embedding: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """[C, T] -> the standardized frames and their mean over time, [2C, T]."""
    x = (embedding.double() - mean) / std
    return torch.cat([x, x.mean(dim=1, keepdim=True).expand_as(x)])


def _last(embedding: torch.Tensor, count: int) -> torch.Tensor:
    """[C, T] -> the mean of its last `count` frames, [C, 1]."""
    return embedding[:, -count:].mean(dim=1, keepdim=True)


def _solve(xx: torch.Tensor, xy: torch.Tensor, penalties: list[float]) -> list[torch.Tensor]:
    """Ridge weights [2C, C] for each penalty from XᵀX and XᵀY, with one eigendecomposition for all."""
    values, vectors = torch.linalg.eigh(xx)
    rotated = vectors.T @ xy
    return [vectors @ (rotated / (values.clamp_min(0) + penalty)[:, None]) for penalty in penalties]


def _best_ridge(folds: list[_Sums]) -> tuple[bool, float]:
    """Whether to subtract the means by position, and λ ÷ frames, with the least error in cross-validation."""
    errors = {}
    for left_out in folds:
        rest = _total([fold for fold in folds if fold is not left_out])
        frames = (rest.count + left_out.count) * rest.y.shape[1]
        for subtract_positions in (False, True):
            center = subtract_positions * rest.x / rest.count, subtract_positions * rest.y / rest.count
            weights = _solve(*rest.about(*center)[:2], list(RIDGE_PENALTIES * frames))
            xx, xy, yy = left_out.about(*center)
            for penalty, w in zip(RIDGE_PENALTIES, weights, strict=True):
                error = float(yy.trace() + (w * (xx @ w)).sum() - 2 * (w * xy).sum())
                key = subtract_positions, float(penalty)
                errors[key] = errors.get(key, 0.0) + error
    return min(errors, key=errors.get)
