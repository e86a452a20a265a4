"""Planted worlds: pairs of embeddings whose best possible prediction is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from evaluation.baselines import fit
from evaluation.comparison import Comparison, Model
from evaluation.measures import TrackErrors
from evaluation.results import gather_evidence
from evaluation.verdict import Evidence, verdict

FRAME_RATE = 75
FRAMES = 150
CHANNELS = 64


class World:
    """Pairs of embeddings [64, 150] and their tracks, with the interface of WavPairsDataset except for the sound."""

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], tracks: list[str]):
        self.items, self.tracks, self.fitted = pairs, tracks, None
        self.names = [f"pair_{index:04d}" for index in range(len(pairs))]
        self.codec = SimpleNamespace(
            frame_rate=FRAME_RATE, sample_rate=24000, device=torch.device("cpu"), quantize=lambda x: (x * 2).round() / 2
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.items[index]


def clip(rng: np.random.Generator, smooth: int = 4) -> torch.Tensor:
    """Frames that change slowly, with variance 1 in each channel, [64, 150]."""
    frames = rng.normal(size=(CHANNELS, FRAMES + smooth))
    smoothed = np.apply_along_axis(np.convolve, 1, frames, np.ones(smooth) / smooth**0.5, "valid")
    return torch.from_numpy(smoothed[:, :FRAMES]).float()


def world(rng: np.random.Generator, tracks: int, pairs: int, make_pair) -> World:
    """`pairs` pairs of each of `tracks` tracks; make_pair(track) -> (input, output)."""
    names = [f"track {t}" for t in range(tracks) for _ in range(pairs)]
    return World([make_pair(t) for t in range(tracks) for _ in range(pairs)], names)


def independent(rng: np.random.Generator, tracks: int = 12, pairs: int = 2) -> World:
    """Outputs are independent of inputs."""
    return world(rng, tracks, pairs, lambda t: (clip(rng), clip(rng)))


def copies(rng: np.random.Generator, tracks: int = 12, pairs: int = 2) -> World:
    """Each output is its input times 0.8, plus noise."""

    def make_pair(track: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = clip(rng)
        return source, 0.8 * source + 0.6 * clip(rng)

    return world(rng, tracks, pairs, make_pair)


def loops(rng: np.random.Generator, tracks: int = 12, pairs: int = 2) -> World:
    """A period that does not divide the length of a pair, continued, plus noise."""

    def make_pair(track: int) -> tuple[torch.Tensor, torch.Tensor]:
        period = int(rng.integers(41, 59))
        song = clip(rng)[:, :period].repeat(1, 2 * FRAMES // period + 1)[:, : 2 * FRAMES]
        song = song + 0.3 * torch.cat([clip(rng), clip(rng)], dim=1)
        return song[:, :FRAMES], song[:, FRAMES:]

    return world(rng, tracks, pairs, make_pair)


def drift(rng: np.random.Generator, tracks: int, rho: float) -> World:
    """Autoregressive channels: each frame is rho times the one before it, plus noise. The variance is 1."""

    def make_pair(track: int) -> tuple[torch.Tensor, torch.Tensor]:
        song = torch.from_numpy(rng.normal(size=(CHANNELS, 2 * FRAMES))).float()
        for t in range(1, 2 * FRAMES):
            song[:, t] = rho * song[:, t - 1] + (1 - rho**2) ** 0.5 * song[:, t]
        return song[:, :FRAMES], song[:, FRAMES:]

    return world(rng, tracks, 1, make_pair)


class Jukebox:
    """Tracks are walks over clips: after each, a coin decides between two others (or there is one successor)."""

    def __init__(self, rng: np.random.Generator, clips: int = 6, coin: bool = True):
        self.rng = rng
        self.clips = torch.stack([clip(rng) for _ in range(clips)])
        self.successors = [[(k + 1) % clips, (k + 2) % clips] if coin else [(k + 1) % clips] for k in range(clips)]

    def draw(self, tracks: int = 12, pairs: int = 2) -> World:
        def make_pair(track: int) -> tuple[torch.Tensor, torch.Tensor]:
            here = int(self.rng.integers(len(self.clips)))
            return tuple(self.clips[k] + 0.01 * clip(self.rng) for k in (here, self.rng.choice(self.successors[here])))

        return world(self.rng, tracks, pairs, make_pair)

    def best(self, x: torch.Tensor) -> torch.Tensor:
        """E[next | input], the best that any model can do; [1, C, T]."""
        here = int((self.clips - x).square().sum(dim=(1, 2)).argmin())
        return self.clips[self.successors[here]].mean(dim=0, keepdim=True)


def oracle(split: World):
    """A model that knows every output, [1, C, T] -> [1, C, T], or the average if an input has two outputs."""
    answers = {source.numpy().tobytes(): target for source, target in split.items}
    return lambda x: answers.get(x[0].numpy().tobytes(), torch.zeros_like(x[0]))[None]


def statistics(train: World) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, deviation and gain of each channel, [C, 1] each, as training sets them."""
    sources, targets = (torch.stack(side) for side in zip(*train.items, strict=True))
    both = torch.cat([sources, targets])
    mean, std = both.mean(dim=(0, 2))[:, None], both.std(dim=(0, 2))[:, None]
    x, y = (sources - mean) / std, (targets - mean) / std
    return mean, std, ((x * y).sum(dim=(0, 2)) / x.square().sum(dim=(0, 2)))[:, None]


def channel_regression(train: World):
    mean, _, gain = statistics(train)
    return lambda x: mean + gain * (x - mean)


def examine(predict, train: World, val: World, shared_tracks: int = 0) -> tuple[Evidence, dict, TrackErrors]:
    """Evidence, verdict and errors of a model, [1, C, T] -> [1, C, T], on `val`."""
    if train.fitted is None:
        mean, std, _ = statistics(train)
        train.fitted = fit(train, train.tracks, mean, std, lambda done, total, what: None)
    comparison = Comparison(Model(predict, channel_regression(train)), val, val.tracks, train.fitted, seed=1)
    errors, _ = comparison.measure([], lambda done, total, what: None)
    by_tracks = TrackErrors(errors, val.tracks)
    evidence = gather_evidence(by_tracks, shared_tracks)
    return evidence, verdict(evidence), by_tracks
