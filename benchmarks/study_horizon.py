"""Attempts to refute the horizon: can a better predictor than its linear map see further ahead?

    python benchmarks/study_horizon.py --dataset_dir dataset_pairs_wav --encodec_weights demo

Each row is the skill on validation pairs at some distances ahead, measured as in evaluation/horizon.py, for the codec's
embedding and for the log-mel spectrogram: the linear map itself, four times its context, a fit within each clip, a
network with hidden layers, and the linear map on the very pairs it was fitted to, where nothing is left to leak.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from audio.frozen_encodec import load_frozen_encodec
from audio.log_mel import LogMel
from common.arguments import dataset_setting, parse_settings, weights_setting
from common.errors import run_script
from common.progress import Progress
from dataset.pairs import METADATA_NAME, read_metadata
from dataset_wav_pairs import WavPairsDataset
from evaluation import horizon
from evaluation.comparison import spread_over_tracks
from evaluation.horizon import Split, lags_of, measure_curve

QUIET = Progress(is_shown=False)
HIDDEN, STEPS, BATCH = 512, 3000, 512
NETWORK_STRIDE = 8  # frames between the samples that the network is trained on


@dataclass
class Settings:
    dataset_dir: str = dataset_setting()
    encodec_weights: str = weights_setting()


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    codec = load_frozen_encodec(settings.encodec_weights)
    for name, representation in (("embedding", codec), ("log-mel", LogMel(codec))):
        train, val = (open_split(settings, representation, split) for split in ("train", "val"))
        lags = lags_of(train.pairs.num_frames)
        print(f"\n| {name}, seconds ahead | " + " | ".join(f"{lag / codec.frame_rate:.3g}" for lag in lags) + " |")
        print("|---" * (len(lags) + 1) + "|", flush=True)
        for row, curve in attempts(train, val, lags):
            print(f"| {row} | " + " | ".join(map(cell, curve)) + " |", flush=True)
    return 0


def cell(skill: float) -> str:
    return "–" if np.isnan(skill) else f"{skill:+.3f}"


def attempts(train: Split, val: Split, lags: list[int]):
    """(what was tried, skill at each lag)"""
    yield "the linear map", measure_curve(train, val, QUIET).value
    yield "32 frames of context instead of 8", longer_context(train, val, 32)
    yield "fitted within each clip", within_clips(val, lags)
    yield "a network with two hidden layers", network(train, val, lags)
    yield "the linear map, measured on what it was fitted to", measure_curve(train, train, QUIET).value


def open_split(settings: Settings, codec, split: str) -> Split:
    folder = Path(settings.dataset_dir)
    sources = {row.name: row.source for row in read_metadata(folder / METADATA_NAME).pairs}
    dataset = WavPairsDataset(folder / split, codec)
    return Split(dataset, [sources[dataset.name(index)] for index in range(len(dataset))])


def longer_context(train: Split, val: Split, frames: int) -> np.ndarray:
    before = horizon.PAST_FRAMES, horizon.STRIDE
    horizon.PAST_FRAMES, horizon.STRIDE = frames, 4
    try:
        return measure_curve(train, val, QUIET).value
    finally:
        horizon.PAST_FRAMES, horizon.STRIDE = before


def within_clips(val: Split, lags: list[int]) -> np.ndarray:
    """Ridge from each frame and the 2 before it to the frame `lag` later, fitted inside a pair's input alone.

    Measured on the pair's output, with the penalty that is best there: too good for any predictor to match.
    """
    chosen = spread_over_tracks(val.tracks, horizon.VAL_PAIRS, seed=0)
    penalties = np.logspace(-3, 3, 7)
    error, energy = np.zeros((len(penalties), len(lags))), np.zeros(len(lags))
    for index in chosen:
        first, second = (x.double() for x in val.pairs[index])
        mean, std = first.mean(dim=1, keepdim=True), first.std(dim=1, keepdim=True).clamp_min(1e-6)
        z = ((torch.cat([first, second], dim=1) - mean) / std).T  # [2T, C], in the clip's own units
        frames = first.shape[1]
        for k, lag in enumerate(lags):
            t = torch.arange(2, max(2, frames - lag))
            later = torch.arange(max(2, frames - lag), 2 * frames - lag)
            if len(t) < 20:
                energy[k] = np.nan  # the lag is as long as the input: there is nothing to fit
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
    """A network from the linear map's inputs to all lags at once, stopped where held-out training tracks say so."""
    fitted = spread_over_tracks(train.tracks, horizon.TRAIN_PAIRS, seed=0)
    held_out = set(sorted({train.tracks[i] for i in fitted})[:: horizon.HELD_OUT])
    mean, std = horizon._statistics(train.pairs, fitted)
    torch.manual_seed(0)

    def samples(split: Split, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [horizon._samples(split.pairs[i], mean, std, lags) for i in indices]
        step = NETWORK_STRIDE // horizon.STRIDE
        return torch.cat([x[::step] for x, _ in parts]), torch.cat([y[::step].flatten(1) for _, y in parts])

    x, y = samples(train, [i for i in fitted if train.tracks[i] not in held_out])
    x_held, y_held = samples(train, [i for i in fitted if train.tracks[i] in held_out])
    layers = [torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.GELU()]
    net = torch.nn.Sequential(*layers, torch.nn.Dropout(0.2), torch.nn.Linear(HIDDEN, y.shape[1]))
    torch.nn.init.zeros_(net[-1].weight)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-4, weight_decay=0.1)
    best, best_state = float("inf"), net.state_dict()
    for step in range(STEPS):
        net.train()
        rows = torch.randint(len(x), (BATCH,))
        loss = torch.nn.functional.mse_loss(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            net.eval()
            with torch.no_grad():
                error = torch.nn.functional.mse_loss(net(x_held), y_held).item()
            if error < best:
                best, best_state = error, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(best_state)
    net.eval()
    with torch.no_grad():
        x, y = samples(val, spread_over_tracks(val.tracks, horizon.VAL_PAIRS, seed=0))
        error = (y - net(x)).square().view(len(y), len(lags), -1).sum(dim=(0, 2))
    return (1 - error / y.square().view(len(y), len(lags), -1).sum(dim=(0, 2))).numpy()


if __name__ == "__main__":
    run_script(main)
