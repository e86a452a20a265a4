"""How far ahead are the embeddings predictable? The best linear map from the past, for each distance in time.

It needs no trained model, so it is the cheapest test of a codec. The log-mel spectrogram of the same music, measured
in the same way, shows whether the music or its representation is at fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.progress import Progress
from evaluation.clip_ridge import Pairs
from evaluation.comparison import spread_over_tracks
from evaluation.figures import chart
from evaluation.measures import Estimate, interval_of_mean, one_thread, sum_by_track
from evaluation.verdict import LEAST_LEAD

TRAIN_PAIRS, VAL_PAIRS = 300, 100
PAST_FRAMES = 8  # that the linear map sees, besides the mean of all frames so far
STRIDE = 2  # every second frame is predicted from: half the work, and neighbours say nearly the same
PENALTIES = np.logspace(-4, 1, 6)  # as shares of the number of predictions
HELD_OUT = 5  # one of so many training tracks chooses the penalty
FEWEST_FRAMES = 16  # in a segment
SHORT_S = 0.5  # a horizon below this is no basis for continuing music by seconds

CURVES = {"embedding": ("#0b62c4", "embedding"), "log_mel": ("#b85a00", "log-mel spectrogram")}


class Split(NamedTuple):
    """Pairs of embeddings ([C, T], [C, T]), the second following the first, and the track of each pair."""

    pairs: Pairs
    tracks: list[str]


def measure_horizon(
    embedding: tuple[Split, Split], log_mel: tuple[Split, Split], frame_rate: float, progress: Progress
) -> dict[str, object]:
    """The `horizon` of results.json: two curves of skill against seconds ahead, and a sentence.

    embedding, log_mel: the training and the validation split in each representation. Where the dataset is too small,
    there is only a sentence.
    """
    if reason := _too_small(embedding[0]):
        return {"seconds": [], "sentence": f"The horizon was not measured: {reason}."}
    frames = embedding[0].pairs[0][0].shape[1]
    seconds = [lag / frame_rate for lag in lags_of(frames)]
    curves = {
        name: dict(zip(("skill", "low", "high"), measure_curve(*splits, progress, CURVES[name][1]), strict=True))
        for name, splits in (("embedding", embedding), ("log_mel", log_mel))
    }
    return {"seconds": seconds, **curves, "sentence": _sentence(seconds, curves)}


def lags_of(frames: int) -> list[int]:
    """1, 2, 4, ... frames, and a whole segment."""
    return [lag for lag in (2**k for k in range(frames.bit_length())) if lag < frames] + [frames]


@one_thread()
def measure_curve(train: Split, val: Split, progress: Progress, of: str = "") -> Estimate:
    """Skill of the best linear map at each lag of `lags_of(T)`, mean over tracks with its 95% interval: [lags] each.

    The map goes from the last 8 frames and the mean of all frames so far, every frame t of a pair's input being the
    last in turn, to frame t + lag. It is fitted to at most 300 training pairs and measured on at most 100 validation
    pairs, both spread over their tracks. Channels are standardised by the training pairs. Skill is 1 − squared error
    ÷ that of the training mean. The ridge penalty of each lag has the least error on held-out training tracks.

    of: names the curve in the progress.
    """
    fitted = spread_over_tracks(train.tracks, TRAIN_PAIRS, seed=0)
    names = sorted({train.tracks[i] for i in fitted})
    held_out = set(names[::HELD_OUT])
    mean, std = _statistics(train.pairs, fitted)
    lags = lags_of(train.pairs[0][0].shape[1])
    sums = {is_held_out: _Sums(len(mean), len(lags)) for is_held_out in (False, True)}
    for done, index in enumerate(fitted, 1):
        sums[train.tracks[index] in held_out].add(*_samples(train.pairs[index], mean, std, lags))
        progress(done, len(fitted), f"pairs fitted for the horizon {of}".rstrip())
    maps = _solve(sums[False], sums[True], len(lags))

    measured = spread_over_tracks(val.tracks, VAL_PAIRS, seed=0)
    errors, energies = [], []
    for index in measured:
        x, y = _samples(val.pairs[index], mean, std, lags)
        error = (y - (x @ maps).view(y.shape)).double().square().sum(dim=(0, 2))  # [lags]
        errors.append(error.numpy())
        energies.append(y.double().square().sum(dim=(0, 2)).numpy())
    tracks = [val.tracks[index] for index in measured]
    error, energy = sum_by_track(np.stack(errors), tracks), sum_by_track(np.stack(energies), tracks)
    skills = (energy - error) / np.maximum(energy, 0.1 * np.median(energy, axis=0))  # a quiet track must not decide
    return Estimate(skills.mean(axis=0), *interval_of_mean(skills))


class _Sums:
    """Products of the past x and the futures y, summed over samples."""

    def __init__(self, channels: int, num_lags: int) -> None:
        past = (PAST_FRAMES + 1) * channels
        self.count = 0
        self.xx = torch.zeros(past, past, dtype=torch.float64)
        self.xy = torch.zeros(past, num_lags * channels, dtype=torch.float64)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """x [n, 9C], y [n, lags, C]."""
        self.count += len(x)
        self.xx += x.T @ x
        self.xy += x.T @ y.flatten(1)


def _statistics(pairs: Pairs, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over both segments of the chosen pairs, [C, 1] each."""
    count, total, squares = 0, 0.0, 0.0
    for index in chosen:
        both = torch.cat(list(pairs[index]), dim=1).double()
        count += both.shape[1]
        total, squares = total + both.sum(dim=1, keepdim=True), squares + both.square().sum(dim=1, keepdim=True)
    mean = total / count
    return mean.float(), (squares / count - mean**2).clamp_min(1e-12).sqrt().float()


def _samples(
    pair: tuple[torch.Tensor, torch.Tensor], mean: torch.Tensor, std: torch.Tensor, lags: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The past [n, 9C] of frames of a pair's input, and the frames that follow at each lag [n, lags, C]."""
    frames = pair[0].shape[1]
    z = ((torch.cat(list(pair), dim=1) - mean) / std).T  # [2T, C]
    t = torch.arange(PAST_FRAMES - 1, frames, STRIDE)
    so_far = z[:frames].double().cumsum(dim=0)[t] / (t[:, None] + 1)
    past = [*(z[t - k] for k in range(PAST_FRAMES)), so_far.float()]
    return torch.cat(past, dim=1), torch.stack([z[t + lag] for lag in lags], dim=1)


def _solve(fit: _Sums, held_out: _Sums, num_lags: int) -> torch.Tensor:
    """Ridge weights [9C, lags * C]: fitted to all, each lag's penalty chosen by `fit` on `held_out`."""
    errors = []
    ridge = _Ridge(fit.xx, fit.xy, fit.count)
    for penalty in PENALTIES:
        w = ridge.weights(torch.full((fit.xy.shape[1],), penalty))
        # |y − xw|² without |y|², which all penalties share
        error = (w * (held_out.xx @ w)).sum(dim=0) - 2 * (w * held_out.xy).sum(dim=0)
        errors.append(error.view(num_lags, -1).sum(dim=1))
    best = torch.tensor(PENALTIES)[torch.stack(errors).argmin(dim=0)]  # [lags]
    everything = _Ridge(fit.xx + held_out.xx, fit.xy + held_out.xy, fit.count + held_out.count)
    return everything.weights(best.repeat_interleave(fit.xy.shape[1] // num_lags)).float()


class _Ridge:
    """(XᵀX + λn)⁻¹ XᵀY for any penalty λ (Hoerl and Kennard 1970), by one eigendecomposition."""

    def __init__(self, xx: torch.Tensor, xy: torch.Tensor, count: int):
        self.values, self.vectors = torch.linalg.eigh(xx)
        self.rotated, self.count = self.vectors.T @ xy, count

    def weights(self, penalties: torch.Tensor) -> torch.Tensor:
        """[9C, columns of y], each column with its own penalty."""
        return self.vectors @ (self.rotated / (self.values.clamp_min(0)[:, None] + penalties * self.count))


# ------------------------------------------------------------------ in words and as a picture


def _too_small(train: Split) -> str:
    if len(set(train.tracks)) < 2:
        return "it takes two training tracks"
    if train.pairs[0][0].shape[1] < FEWEST_FRAMES:
        return f"it takes segments of {FEWEST_FRAMES} frames"
    return ""


def reach_s(seconds: list[float], curve: dict[str, np.ndarray]) -> float:
    """The last lag in seconds up to which skill counts: its whole interval is above 0.01. 0 if not even one frame."""
    low = np.where(np.isnan(curve["low"]), curve["skill"], curve["low"])  # no interval over a single track
    counts = low > LEAST_LEAD
    return seconds[-1] if counts.all() else ([0.0, *seconds])[int(counts.argmin())]


def _sentence(seconds: list[float], curves: dict[str, dict[str, np.ndarray]]) -> str:
    reaches = {name: reach_s(seconds, curve) for name, curve in curves.items()}

    def up_to(name: str) -> str:
        reach = reaches[name]
        if reach == 0:
            return "not even one frame ahead"
        return f"up to {reach:.2g} s ahead (skill {curves[name]['skill'][seconds.index(reach)]:+.2f} there)"

    embedding, log_mel = reaches["embedding"] >= SHORT_S, reaches["log_mel"] >= SHORT_S
    if embedding and log_mel:
        opening = "both this embedding and the log-mel spectrogram of the music are predictable"
    elif log_mel:
        opening = "the music is predictable, but this embedding of it is not"
    elif embedding:
        opening = "this embedding is predictable, but the log-mel spectrogram of the music is not"
    else:
        opening = "neither this embedding nor the log-mel spectrogram of the music is predictable"
    return (
        f"By a linear map, {opening}: the embedding {up_to('embedding')}, the log-mel spectrogram {up_to('log_mel')}."
    )


def horizon_table(horizon: dict) -> str:
    """The two curves as lines of text."""
    rows = [f"{'ahead':>9}  {'embedding':>24}  {'log-mel spectrogram':>24}"]
    for k, seconds in enumerate(horizon["seconds"]):
        cells = [
            f"{curve['skill'][k]:+.3f} ({curve['low'][k]:+.3f} to {curve['high'][k]:+.3f})"
            for curve in (horizon["embedding"], horizon["log_mel"])
        ]
        rows.append(f"{seconds:7.3f} s  {cells[0]:>24}  {cells[1]:>24}")
    return "\n".join(rows)


def draw_horizon(path: Path, horizon: dict) -> None:
    """Skill against seconds ahead, both representations, and the range that the model has to predict."""
    seconds = horizon["seconds"]
    with chart(path, (3.0,)) as (axes,):
        for name, (color, label) in CURVES.items():
            curve = horizon[name]
            axes.plot(seconds, curve["skill"], color=color, marker="o", markersize=4, linewidth=2, label=label)
            axes.fill_between(seconds, curve["low"], curve["high"], color=color, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlim(seconds[0] / 1.6, seconds[-1] * 1.6)
        axes.set_ylim(min(-0.12, *(np.nanmin(horizon[name]["skill"]) - 0.1 for name in CURVES)), 1.02)
        axes.axhline(0, color="#57606a", linewidth=0.8)
        height = axes.get_ylim()[0] + 0.06
        axes.annotate("", (seconds[0], height), (seconds[-1], height), arrowprops={"arrowstyle": "<->"})
        axes.text(np.sqrt(seconds[0] * seconds[-1]), height, "what the model predicts", ha="center", va="center",
                  fontsize=9.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        ticks = [
            tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if axes.get_xlim()[0] < tick < axes.get_xlim()[1]
        ]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("seconds ahead")
        axes.set_ylabel("skill of a linear map")
