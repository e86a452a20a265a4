"""How far ahead are the embeddings predictable? The best linear map from the past, for each distance in time.

It needs no trained model, so it is the cheapest test of a codec. The log-mel spectrogram of the same music, measured
in the same way, shows whether the music or its representation is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.progress import Progress
from evaluation.clip_ridge import Pairs
from evaluation.comparison import spread_over_tracks
from evaluation.figures import chart
from evaluation.measures import Estimate, interval_of_mean, one_thread, sum_by_track
from evaluation.verdict import MIN_LEAD

TRAIN_PAIRS, VAL_PAIRS = 300, 100
PAST_FRAMES = 8  # that the linear map sees, besides the mean of all frames so far
STRIDE = 2  # predict from every second frame: neighboring frames say nearly the same
PENALTIES = np.logspace(-4, 1, 6)  # as shares of the number of samples
HELD_OUT = 5  # one in five training tracks is held out to choose the penalty
BATCH = 4  # pairs whose products are summed in float32, before they are added in float64
MIN_FRAMES = 16  # in a segment
USEFUL_REACH_S = 0.5  # with less, the embedding is named as the limit

CURVE_STYLES = {"embedding": ("#0b62c4", "embedding"), "log_mel": ("#b85a00", "log-mel spectrogram")}


class Split(NamedTuple):
    """Pairs of embeddings ([C, T], [C, T]), the second following the first, and the track of each pair."""

    pairs: Pairs
    tracks: list[str]


def measure_horizon(
    embedding: tuple[Split, Split], log_mel: tuple[Split, Split], frame_rate: float, progress: Progress
) -> dict[str, object]:
    """The `horizon` of results.json: two curves of skill against seconds ahead, and a sentence.

    embedding, log_mel: the training and the validation split in each representation. If the dataset is too small,
    there is only a sentence.
    """
    if reason := _too_small(embedding[0]):
        return {"seconds": [], "sentence": f"The horizon was not measured: {reason}."}
    frames = embedding[0].pairs[0][0].shape[1]
    seconds = [lag / frame_rate for lag in lags_of(frames)]
    curves = {
        name: dict(zip(("skill", "low", "high"), measure_curve(*splits, progress, CURVE_STYLES[name][1]), strict=True))
        for name, splits in (("embedding", embedding), ("log_mel", log_mel))
    }
    return {"seconds": seconds, **curves, "sentence": _sentence(seconds, curves)}


def lags_of(frames: int) -> list[int]:
    """1, 2, 4, ... frames, and a whole segment."""
    return [lag for lag in (2**k for k in range(frames.bit_length())) if lag < frames] + [frames]


@one_thread()
def measure_curve(train: Split, val: Split, progress: Progress, of: str = "") -> Estimate:
    """Skill of the best linear map at each lag of `lags_of(T)`, mean over tracks with its 95% interval: [lags] each.

    The map predicts frame t + lag from the last 8 frames up to t and the mean of all frames up to t, for every second
    frame t of a pair's input. It is fitted to at most 300 training pairs and measured on at most 100 validation pairs,
    both spread over their tracks. Channels are standardized by the training pairs. Skill is 1 − squared error ÷ that
    of the training mean. The ridge penalty of each lag is the one with the least error on held-out training tracks.

    of: the curve's name in progress messages.
    """
    lags = lags_of(train.pairs[0][0].shape[1])
    maps, mean, std = _fit_maps(train, lags, progress, of)
    measured = spread_over_tracks(val.tracks, VAL_PAIRS, seed=0)
    error, energy = np.zeros((2, len(measured), len(lags)))
    for k, index in enumerate(measured):
        x, y = past_and_future((torch.cat(val.pairs[index], dim=1) - mean) / std, lags)
        error[k], energy[k] = _energy(y - x @ maps, lags), _energy(y, lags)
    tracks = [val.tracks[index] for index in measured]
    error, energy = sum_by_track(error, tracks), sum_by_track(energy, tracks)
    skills = (energy - error) / np.maximum(energy, 0.1 * np.median(energy, axis=0))  # a quiet track must not decide
    return Estimate(skills.mean(axis=0), *interval_of_mean(skills))


def past_and_future(both: torch.Tensor, lags: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair's embedding [C, 2T] -> the past [n, 9C] of frames of its input, and what follows at each lag [n, lags C].

    The past is the last 8 frames, the latest first, and the mean of all frames so far.
    """
    z = both.T.contiguous()  # [2T, C]
    frames = len(z) // 2
    t = torch.arange(PAST_FRAMES - 1, frames, STRIDE)
    so_far = z[:frames].double().cumsum(dim=0)[t] / (t[:, None] + 1)
    past = [*(z[t - k] for k in range(PAST_FRAMES)), so_far.float()]
    return torch.cat(past, dim=1), torch.cat([z[t + lag] for lag in lags], dim=1)


def _energy(y: torch.Tensor, lags: list[int]) -> np.ndarray:
    """Sum of squares at each lag, [n, lags C] -> [lags]."""
    return y.square().sum(dim=0, dtype=torch.float64).view(len(lags), -1).sum(dim=1).numpy()


def _fit_maps(
    train: Split, lags: list[int], progress: Progress, of: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ridge weights [9C, lags C] for standardized channels, and mean and standard deviation [C, 1] of the channels."""
    chosen = spread_over_tracks(train.tracks, TRAIN_PAIRS, seed=0)
    held_out_tracks = set(sorted({train.tracks[i] for i in chosen})[::HELD_OUT])
    channels, done = len(train.pairs[0][0]), 0
    about = torch.cat(train.pairs[chosen[0]], dim=1).mean(dim=1, keepdim=True)
    fit, held_out = (_Moments(about, len(lags)) for _ in range(2))
    for sums, is_held_out in ((fit, False), (held_out, True)):
        indices = [i for i in chosen if (train.tracks[i] in held_out_tracks) == is_held_out]
        for start in range(0, len(indices), BATCH):
            sums.add([torch.cat(train.pairs[i], dim=1) for i in indices[start : start + BATCH]], lags)
            done = min(done + BATCH, len(chosen))
            progress(done, len(chosen), f"{of} pairs read for the horizon".lstrip())

    frames = fit.frames + held_out.frames
    mean = (fit.z + held_out.z) / frames
    std = ((fit.zz + held_out.zz) / frames - mean**2).clamp_min(1e-12).sqrt()
    fit.standardize(mean, std)
    held_out.standardize(mean, std)
    errors, ridge = [], fit.ridge()
    for penalty in PENALTIES:
        w = ridge(penalty, slice(None))
        # |y − xw|² without |y|², which does not depend on the penalty
        error = (w * (held_out.xx @ w)).sum(dim=0) - 2 * (w * held_out.xy).sum(dim=0)
        errors.append(error.view(len(lags), channels).sum(dim=1))
    best = torch.stack(errors).argmin(dim=0).repeat_interleave(channels)  # of each column of y
    fit.count, fit.xx, fit.xy = fit.count + held_out.count, fit.xx + held_out.xx, fit.xy + held_out.xy
    maps, ridge = torch.empty_like(fit.xy), fit.ridge()
    for k in best.unique().tolist():
        maps[:, best == k] = ridge(PENALTIES[k], best == k)
    return maps.float(), about + mean.float()[:, None], std.float()[:, None]


class _Moments:
    """Sums over samples of the past x, the future y and their products, and over all frames z; in float64.

    They are standardized only afterwards, so that each pair is read only once. `about` [C, 1], a rough mean of each
    channel, is subtracted first, because products of four pairs are summed in float32.
    """

    def __init__(self, about: torch.Tensor, num_lags: int) -> None:
        self.about, channels = about, len(about)
        past, future = (PAST_FRAMES + 1) * channels, num_lags * channels
        self.count = self.frames = 0
        self.x, self.y, self.xx, self.xy, self.z, self.zz = (
            torch.zeros(shape, dtype=torch.float64)
            for shape in (past, future, (past, past), (past, future), channels, channels)
        )

    def add(self, pairs: list[torch.Tensor], lags: list[int]) -> None:
        """Add pairs [C, 2T] of embeddings."""
        pairs = [both - self.about for both in pairs]
        x, y = map(torch.cat, zip(*(past_and_future(both, lags) for both in pairs), strict=True))
        self.count += len(x)
        self.x += x.sum(dim=0, dtype=torch.float64)
        self.y += y.sum(dim=0, dtype=torch.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y
        for both in pairs:
            self.frames += both.shape[1]
            self.z += both.sum(dim=1, dtype=torch.float64)
            self.zz += both.square().sum(dim=1, dtype=torch.float64)

    def standardize(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Turn `xx` and `xy` into products of standardized channels. mean, std: [C]."""
        repeats = len(self.x) // len(mean), len(self.y) // len(mean)
        (mx, my), (sx, sy) = ([value.repeat(count) for count in repeats] for value in (mean, std))
        for product, total, m, s in ((self.xx, self.x, mx, sx), (self.xy, self.y, my, sy)):
            # Σ (x − mx)(y − my)' = Σ xy' − Σx my' − mx Σy' + n mx my'
            product.addr_(self.x, m, alpha=-1).addr_(mx, total - self.count * m, alpha=-1)
            product.div_(sx[:, None]).div_(s)

    def ridge(self) -> Callable[[float, torch.Tensor | slice], torch.Tensor]:
        """A function from λ and the columns of Y to (XᵀX + λnI)⁻¹ XᵀY (Hoerl and Kennard 1970), [9C, columns]."""
        values, vectors = torch.linalg.eigh(self.xx)
        values.clamp_(min=0)  # rounding can make the smallest ones negative
        projected = vectors.T @ self.xy
        return lambda penalty, columns: vectors @ (projected[:, columns] / (values + penalty * self.count)[:, None])


# ------------------------------------------------------------------ in words and as a picture


def _too_small(train: Split) -> str:
    if len(set(train.tracks)) < 2:
        return "it needs at least two training tracks"
    if train.pairs[0][0].shape[1] < MIN_FRAMES:
        return f"it needs segments of at least {MIN_FRAMES} frames"
    return ""


def reach_s(seconds: list[float], curve: dict[str, np.ndarray]) -> float:
    """The last lag, in seconds, before the skill's interval first reaches below 0.01; 0 if it does so at one frame."""
    low = np.where(np.isnan(curve["low"]), curve["skill"], curve["low"])  # no interval over a single track
    counts = low > MIN_LEAD
    return seconds[-1] if counts.all() else ([0.0, *seconds])[int(counts.argmin())]


def _sentence(seconds: list[float], curves: dict[str, dict[str, np.ndarray]]) -> str:
    reaches = {name: reach_s(seconds, curve) for name, curve in curves.items()}

    def how_far(name: str) -> str:
        reach = reaches[name]
        if reach == 0:
            return "is not predictable even one frame ahead"
        skill = curves[name]["skill"][seconds.index(reach)]
        return f"is predictable up to {reach:.2g} s ahead (skill {skill:+.2f} there)"

    embedding, log_mel = reaches["embedding"] >= USEFUL_REACH_S, reaches["log_mel"] >= USEFUL_REACH_S
    if embedding and log_mel:
        opening = "both this embedding and the log-mel spectrogram of the music are predictable half a second ahead"
    elif log_mel:
        opening = "the music is predictable half a second ahead, but this embedding of it is not"
    elif embedding:
        opening = "this embedding is predictable half a second ahead, but the log-mel spectrogram of the music is not"
    else:
        opening = "neither this embedding nor the log-mel spectrogram of the music is predictable half a second ahead"
    return (
        f"With a linear map, {opening}. The embedding {how_far('embedding')}, and "
        f"the log-mel spectrogram {how_far('log_mel')}."
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
        for name, (color, label) in CURVE_STYLES.items():
            curve = horizon[name]
            axes.plot(seconds, curve["skill"], color=color, marker="o", markersize=4, linewidth=2, label=label)
            axes.fill_between(seconds, curve["low"], curve["high"], color=color, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlim(seconds[0] / 1.6, seconds[-1] * 1.6)
        axes.set_ylim(min(-0.12, *(np.nanmin(horizon[name]["skill"]) - 0.1 for name in CURVE_STYLES)), 1.02)
        axes.axhline(0, color="#57606a", linewidth=0.8)
        height = axes.get_ylim()[0] + 0.06
        axes.annotate("", (seconds[0], height), (seconds[-1], height), arrowprops={"arrowstyle": "<->"})
        axes.text(np.sqrt(seconds[0] * seconds[-1]), height, "range the model must predict", ha="center", va="center",
                  fontsize=9.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        ticks = [
            tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if axes.get_xlim()[0] < tick < axes.get_xlim()[1]
        ]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("seconds ahead")
        axes.set_ylabel("skill of a linear map")
