"""Compare the model and its baselines pair by pair, as embeddings and as sound.

Used by evaluate_continuation.py. results.py turns what is measured here into a table.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from audio.codec import Codec
from common.errors import UserError
from common.progress import Progress
from dataset.pairs import read_pcm16
from dataset.selection import spread
from evaluation.baselines import FittedBaselines, loop
from evaluation.clip_ridge import BLOCK, Pairs
from evaluation.measures import Errors, by_track, compare
from evaluation.sound import SoundMetrics, SoundRow, compare_sound

CONTINUATIONS = {
    "model": "the model",
    "model_quantized": "the model, quantized",
    "repeat_input": "repeat the input",
    "input_mean": "hold the input's average",
    "channel_regression": "regression by channel (the untrained model)",
    "last_moment": "hold the last moment, fading",
    "ridge": "ridge regression, frame by frame",
    "loop": "loop the input at its own period",
    "position_mean": "training mean by position",
    "clip_ridge": "a linear map of the whole clip",
    "training_mean": "predict the training mean",
    "other_track": "another track's true continuation",
    "ceiling": "the codec's ceiling",
    "ceiling_quantized": "the codec's ceiling, quantized",
}
# Decoding takes far longer than everything else. The other rows would sound like one of these, or like a held chord.
SOUND_ROWS = ("model", "model_quantized", "repeat_input", "loop", "training_mean", "other_track", "ceiling",
              "ceiling_quantized")  # fmt: skip


class Dataset(Pairs, Protocol):
    """A split, such as dataset_wav_pairs.WavPairsDataset."""

    codec: Codec
    num_frames: int  # of an embedding
    keys: list[tuple[str, str]]  # equal if and only if the embeddings are equal
    names: list[str]  # of the pairs

    def paths(self, index: int) -> tuple[Path, Path]: ...


@dataclass(frozen=True)
class Model:
    """Functions from a segment's embedding [1, C, T] to the next one's: the trained model and the untrained one."""

    predict: Callable[[torch.Tensor], torch.Tensor]
    channel_regression: Callable[[torch.Tensor], torch.Tensor]


# ------------------------------------------------------------------ choices


def spread_over_tracks(tracks: list[str], limit: int, seed: int, in_runs: bool = False) -> list[int]:
    """Choose at most `limit` pairs, as evenly over the tracks as possible; returns their indices in order.

    in_runs: take consecutive pairs of a track. The output of one is the input of the next, so it is decoded only once.
    """
    groups = list(by_track(tracks).values())
    rng = random.Random(seed)
    rng.shuffle(groups)
    chosen: list[int] = []
    for group, quota in zip(groups, spread([*map(len, groups)], limit), strict=True):
        if in_runs:
            start = rng.randint(0, len(group) - quota)
            chosen += group[start : start + quota]
        else:
            chosen += rng.sample(group, quota)
    return sorted(chosen)


def other_tracks(tracks: list[str], seed: int) -> list[int] | None:
    """For each pair, the index of a pair of another track. None if there is only one track.

    Each pair is used once unless one track has more than half of all pairs: if the pairs are in order of their tracks,
    a shift by the largest track's size always leads to another track. The order within a track is random, because
    otherwise two songs with the same structure would be matched bar by bar.
    """
    groups = list(by_track(tracks).values())
    if len(groups) < 2:
        return None
    rng = random.Random(seed)
    rng.shuffle(groups)
    order = [index for group in groups for index in rng.sample(group, len(group))]
    shift = max(map(len, groups))
    other = [0] * len(tracks)
    for place, index in enumerate(order):
        candidate = order[(place + shift) % len(order)]
        if tracks[candidate] == tracks[index]:
            candidate = rng.choice([i for i in order if tracks[i] != tracks[index]])
        other[index] = candidate
    return other


# ------------------------------------------------------------------ the comparison


class Comparison:
    """Measures every continuation on every pair of a split."""

    def __init__(self, model: Model, dataset: Dataset, tracks: list[str], fitted: FittedBaselines, seed: int):
        """tracks: the track of each pair."""
        self.model, self.dataset, self.tracks, self.fitted, self.seed = model, dataset, tracks, fitted, seed
        self.codec = dataset.codec
        self.other = other_tracks(tracks, seed)
        self.mapped: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def predict(self, embedding: torch.Tensor, index: int) -> torch.Tensor:
        """The model's continuation of `embedding`, the input of pair `index`; both [C, T]."""
        # One at a time: the last bits depend on the batch size, and the quantizer's choices depend on them.
        predicted = self.model.predict(embedding[None])[0].cpu()
        if not predicted.isfinite().all():
            raise UserError(
                f"the model's prediction for {self.dataset.names[index]} is not finite; use another checkpoint"
            )
        return predicted

    def linear_map(self, index: int) -> torch.Tensor:
        """The clip ridge's continuation of pair `index`. It is computed for a block of pairs at once."""
        if index not in self.mapped:
            block = range(index, min(index + BLOCK, len(self.dataset)))
            continued = self.fitted.clip_ridge.predict([self.dataset[i][0] for i in block])
            self.mapped = dict(zip(block, continued, strict=True))
        return self.mapped[index]

    @torch.no_grad()
    def continuations(self, index: int) -> dict[str, torch.Tensor]:
        """The continuation [C, T] of pair `index` by each of CONTINUATIONS, and by the model from changed inputs."""
        source, target = self.dataset[index]
        predicted = self.predict(source, index)
        shuffled = torch.from_numpy(np.random.default_rng([self.seed, index]).permutation(source.shape[1]))
        continuations = {
            "model": predicted,
            "model_quantized": self.codec.quantize(predicted[None])[0].cpu(),
            "repeat_input": source,
            "input_mean": source.mean(dim=1, keepdim=True).expand_as(source),
            "channel_regression": self.model.channel_regression(source[None])[0].cpu(),
            "last_moment": self.fitted.last_moment(source),
            "ridge": self.fitted.ridge(source),
            "loop": loop(source, self.codec.frame_rate),
            "position_mean": self.fitted.by_position.float(),
            "clip_ridge": self.linear_map(index),
            "training_mean": self.fitted.mean.float().expand_as(source),
            "ceiling": target,
            "ceiling_quantized": self.codec.quantize(target[None])[0].cpu(),
            "input_shuffled": self.predict(source[:, shuffled], index),
        }
        if self.other is not None:
            other_source, other_target = self.dataset[self.other[index]]
            continuations |= {"other_track": other_target, "input_swapped": self.predict(other_source, index)}
        return continuations

    def measure(self, sound_pairs: list[int], progress: Progress) -> tuple[dict[str, Errors], dict[str, SoundRow]]:
        """The errors of each row on all pairs, stacked, and its sound on `sound_pairs`. Holds one pair in memory."""
        errors: dict[str, list[Errors]] = {}
        sound: dict[str, SoundRow] = {}
        metrics, chosen = SoundMetrics(self.codec), set(sound_pairs)
        for index in range(len(self.dataset)):
            continuations = self.continuations(index)
            target = continuations["ceiling"]  # the true embedding
            for name, continuation in continuations.items():
                measured = compare(continuation, target, self.fitted.mean, self.codec.frame_rate)
                errors.setdefault(name, []).append(measured)
            if index in chosen:
                self._add_sound(index, continuations, metrics, sound)
            progress(index + 1, len(self.dataset), "pairs compared")
        stacked = {name: {k: np.stack([m[k] for m in parts]) for k in parts[0]} for name, parts in errors.items()}
        return stacked, sound

    def _add_sound(
        self, index: int, continuations: dict[str, torch.Tensor], metrics: SoundMetrics, sound: dict[str, SoundRow]
    ) -> None:
        """Add one pair to the rows of `sound`."""
        keys = {"repeat_input": self.dataset.keys[index][0], "ceiling": self.dataset.keys[index][1]}
        keys["training_mean"] = "the training mean"
        if self.other is not None:
            keys["other_track"] = self.dataset.keys[self.other[index]][1]
        truth = metrics.measure(torch.from_numpy(read_wav(self.dataset.paths(index)[1]))[None])
        for name in (name for name in SOUND_ROWS if name in continuations):
            clip = metrics.decode(continuations[name], keys.get(name, ""))
            sound.setdefault(name, []).append(compare_sound(clip, truth))


def read_wav(path: os.PathLike) -> np.ndarray:
    """The samples of a WAV of the dataset, float32 [samples] in [-1, 1)."""
    return read_pcm16(Path(path)).astype(np.float32) / 32768
