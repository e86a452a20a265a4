"""Attempts to refute the horizon: does a better predictor than its linear map see further ahead?

    python benchmarks/study_horizon.py --dataset_dir dataset_pairs_wav --encodec_weights demo

Each row of the tables is the skill of a predictor at several distances ahead. One table is for the codec's embedding,
one for the log-mel spectrogram. The rows of the linear map are measured as in evaluation/horizon.py, the last of them
on training tracks. The other two rows pool all pairs, and the one fitted within each clip is relative to the clip's
mean.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from audio.frozen_encodec import load_frozen_encodec
from common.arguments import dataset_setting, parse_settings, weights_setting
from common.errors import run_script
from common.progress import Progress
from evaluate_continuation import log_mel_splits, open_splits_with_tracks
from evaluation import horizon
from evaluation.comparison import spread_over_tracks
from evaluation.horizon import Split, lags_of, measure_curve, past_and_future

QUIET = Progress(is_shown=False)
HIDDEN, STEPS, BATCH = 512, 3000, 512
EVERY = 4  # the network uses every fourth of the horizon's samples


@dataclass
class Settings:
    dataset_dir: str = dataset_setting()
    encodec_weights: str = weights_setting()


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    codec = load_frozen_encodec(settings.encodec_weights)
    for name, open_them in (("embedding", open_splits_with_tracks), ("log-mel", log_mel_splits)):
        train, val = open_them(settings.dataset_dir, codec)
        lags = lags_of(train.pairs.num_frames)
        print(f"\n| {name}, seconds ahead | " + " | ".join(f"{lag / codec.frame_rate:.3g}" for lag in lags) + " |")
        print("|---" * (len(lags) + 1) + "|", flush=True)
        for attempt, skills in attempts(train, val, lags):
            cells = ["–" if np.isnan(skill) else f"{skill:+.3f}" for skill in skills]
            print(f"| {attempt} | " + " | ".join(cells) + " |", flush=True)
    return 0


def attempts(train: Split, val: Split, lags: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """What was tried, and its skill at each lag."""
    yield "the linear map", measure_curve(train, val, QUIET).value
    with mock.patch.multiple(horizon, PAST_FRAMES=32, STRIDE=4):
        longer = measure_curve(train, val, QUIET).value
    yield "32 frames of context instead of 8", longer
    yield "fitted within each clip", within_clips(val, lags)
    yield "a network with two hidden layers", network(train, val, lags)
    yield "the linear map, measured on the tracks it was fitted to", measure_curve(train, train, QUIET).value


def within_clips(val: Split, lags: list[int]) -> np.ndarray:
    """Ridge from each frame and the 2 before it to the frame `lag` later, fitted inside a pair's input.

    It is measured on the pair's output with the penalty that is best there, so it is an optimistic estimate.
    """
    chosen = spread_over_tracks(val.tracks, horizon.VAL_PAIRS, seed=0)
    penalties = np.logspace(-3, 3, 7)
    error, energy = np.zeros((len(penalties), len(lags))), np.zeros(len(lags))
    for index in chosen:
        first, second = (x.double() for x in val.pairs[index])
        mean, std = first.mean(dim=1, keepdim=True), first.std(dim=1, keepdim=True).clamp_min(1e-6)
        z = ((torch.cat([first, second], dim=1) - mean) / std).T  # [2T, C], standardized within the clip
        frames = first.shape[1]
        for k, lag in enumerate(lags):
            t = torch.arange(2, max(2, frames - lag))
            later = torch.arange(max(2, frames - lag), 2 * frames - lag)
            if len(t) < 20:
                energy[k] = np.nan  # nothing to fit: the lag is about as long as the input
                continue
            x, y = (torch.cat([z[i], z[i - 1], z[i - 2]], dim=1) for i in (t, later))
            values, vectors = torch.linalg.eigh(x.T @ x)
            rotated = vectors.T @ (x.T @ z[t + lag])
            target = z[later + lag]
            energy[k] += float(target.square().sum())
            for p, penalty in enumerate(penalties):
                w = vectors @ (rotated / (values.clamp_min(0) + penalty * len(t))[:, None])
                error[p, k] += float((target - y @ w).square().sum())
    return (1 - error / energy).max(axis=0)


def network(train: Split, val: Split, lags: list[int]) -> np.ndarray:
    """A network with the linear map's inputs and all lags as outputs. Held-out training tracks choose its best step."""
    fitted = spread_over_tracks(train.tracks, horizon.TRAIN_PAIRS, seed=0)
    held_out = set(sorted({train.tracks[i] for i in fitted})[:: horizon.HELD_OUT])
    x, y = samples(train, [i for i in fitted if train.tracks[i] not in held_out], lags)
    held_x, held_y = samples(train, [i for i in fitted if train.tracks[i] in held_out], lags)
    val_x, val_y = samples(val, spread_over_tracks(val.tracks, horizon.VAL_PAIRS, seed=0), lags)
    x, held_x, val_x = standardized(x, held_x, val_x)
    y, held_y, val_y = standardized(y, held_y, val_y)
    net = trained_network(x, y, held_x, held_y)
    with torch.no_grad():
        error = (val_y - net(val_x)).square()
    error, energy = (square.view(len(val_y), len(lags), -1).sum(dim=(0, 2)) for square in (error, val_y.square()))
    return (1 - error / energy).numpy()


def samples(split: Split, chosen: list[int], lags: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The past [n, 9C] and the future [n, lags C] of every fourth of the horizon's samples of the chosen pairs."""
    parts = [past_and_future(torch.cat(split.pairs[i], dim=1), lags) for i in chosen]
    return torch.cat([past[::EVERY] for past, _ in parts]), torch.cat([future[::EVERY] for _, future in parts])


def standardized(train: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Each column with the mean and the standard deviation that it has in `train`, [n, columns] -> [n, columns]."""
    mean, std = train.mean(dim=0), train.std(dim=0).clamp_min(1e-6)
    return [(values - mean) / std for values in (train, *others)]


def trained_network(x: torch.Tensor, y: torch.Tensor, held_x: torch.Tensor, held_y: torch.Tensor) -> torch.nn.Module:
    """A network from x to y, in evaluation mode, at the step of the least error on the held-out samples."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.GELU()]
    net = torch.nn.Sequential(*layers, torch.nn.Dropout(0.2), torch.nn.Linear(HIDDEN, y.shape[1]))
    torch.nn.init.zeros_(net[-1].weight)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-4, weight_decay=0.1)
    best, best_state = float("inf"), {}
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(x), (BATCH,))
        loss = torch.nn.functional.mse_loss(net.train()(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            with torch.no_grad():
                error = torch.nn.functional.mse_loss(net.eval()(held_x), held_y).item()
            if error < best:
                best, best_state = error, copy.deepcopy(net.state_dict())
    net.load_state_dict(best_state)
    return net.eval()


if __name__ == "__main__":
    run_script(main)
