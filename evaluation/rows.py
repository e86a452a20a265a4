"""What evaluate_continuation.py compares, and the comparison: every row measured in encoded space and as sound.

Nothing to run. A row is one way to continue a segment: the model's, or one it must beat. Predictions are made pair by
pair and everything is summed pair by pair in float64, so the batch size changes nothing but the speed.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import soundfile
import torch

from common.errors import UserError
from evaluation.measures import (
    FrameSet,
    SoundFeatures,
    bootstrap_ratio,
    chroma_cosine,
    deviation,
    elements_per_second,
    fad_score,
    log_mel_distance,
    squared_error_per_second,
)

ROWS = {
    "model": "the model",
    "model_quantized": "the model, quantised",
    "repeat_input": "repeat the input",
    "input_mean": "hold the input's average",
    "training_mean": "predict the training mean",
    "other_track": "another track's true continuation",
    "ceiling": "the codec's ceiling",
}
SOUND_ROWS = [name for name in ROWS if name != "input_mean"]  # a held chord: its sound is not worth its decoding


def by_track(tracks: list[str]) -> dict[str, list[int]]:
    """The pairs of each track, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for index, track in enumerate(tracks):
        groups.setdefault(track, []).append(index)
    return groups


def spread_over_tracks(tracks: list[str], limit: int, seed: int, in_runs: bool = False) -> list[int]:
    """At most `limit` pairs, seeded, as evenly over the tracks as can be; their indices in order.

    in_runs: the pairs taken from a track follow each other (one's output is the next one's input, and need be decoded
    only once), else they are spread over the track.
    """
    groups = list(by_track(tracks).values())
    rng = random.Random(seed)
    rng.shuffle(groups)
    quotas = [0] * len(groups)
    left = min(limit, len(tracks))
    while left:
        for g, group in enumerate(groups):
            if left and quotas[g] < len(group):
                quotas[g] += 1
                left -= 1
    chosen: list[int] = []
    for group, quota in zip(groups, quotas, strict=True):
        if in_runs:
            start = rng.randint(0, len(group) - quota)
            chosen += group[start : start + quota]
        else:
            chosen += rng.sample(group, quota)
    return sorted(chosen)


def other_tracks(tracks: list[str], seed: int) -> list[int] | None:
    """For each pair a pair of another track, seeded; None if there is one track only.

    A permutation (each pair is used once) unless one track has more than half of all pairs: with the
    pairs in order of their tracks, a shift by the largest track's size leaves every track.
    """
    groups = list(by_track(tracks).values())
    if len(groups) < 2:
        return None
    rng = random.Random(seed)
    rng.shuffle(groups)
    order = [index for group in groups for index in group]
    shift = max(map(len, groups))
    other = [0] * len(tracks)
    for place, index in enumerate(order):
        found = order[(place + shift) % len(order)]
        if tracks[found] == tracks[index]:
            found = rng.choice([i for i in order if tracks[i] != tracks[index]])
        other[index] = found
    return other


class SplitEmbeddings:
    """Batches of a dataset's embeddings on a device."""

    def __init__(self, dataset, device: torch.device):
        self.dataset, self.device = dataset, device

    def batch(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and outputs of the pairs `indices`, [B, 128, frames] each."""
        pairs = [self.dataset[i] for i in indices]
        return tuple(torch.stack(side).to(self.device) for side in zip(*pairs, strict=True))


@dataclass
class SoundRow:
    """Sums over pairs of one row's sound, and its frames."""

    frames: FrameSet
    reencoded_errors: list[float] = field(default_factory=list)
    mel_distances: list[float] = field(default_factory=list)
    chroma_cosines: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Heard:
    """A clip after a trip through decoder and encoder."""

    reencoded: torch.Tensor  # [128, T]
    log_mel: torch.Tensor  # [64, frames]
    chroma: torch.Tensor  # [12, frames]


class Evaluation:
    """All rows over one validation split.

    predict: embeddings [1, 128, T] of a segment -> the next one's. training_mean: [128, 1]. tracks: of each pair.
    told: called with (done, of how many, what) as the work goes on.
    """

    def __init__(
        self,
        predict: Callable[[torch.Tensor], torch.Tensor],
        training_mean: torch.Tensor,
        embeddings: SplitEmbeddings,
        tracks: list[str],
        seed: int,
        batch_size: int,
        told: Callable[[int, int, str], None] = lambda done, total, what: None,
    ):
        self.predict, self.training_mean, self.embeddings, self.tracks = predict, training_mean, embeddings, tracks
        self.dataset, self.codec = embeddings.dataset, embeddings.dataset.codec
        self.seed, self.batch_size, self.told = seed, batch_size, told
        self.features = SoundFeatures(self.codec.sample_rate, self.codec.device)

    @torch.no_grad()
    def continuation(self, embedding: torch.Tensor, index: int) -> torch.Tensor:
        """The model's embedding [128, T] after the input `embedding` [128, T] of pair `index`."""
        # One at a time: in a batch of another size the last bits would differ, and with them the quantiser's choice.
        predicted = self.predict(embedding[None])[0]
        if not predicted.isfinite().all():
            raise UserError(
                f"the model's prediction for {self.dataset.name(index)} is not finite; use another checkpoint"
            )
        return predicted

    def quantized(self, embedding: torch.Tensor) -> torch.Tensor:
        """[128, T] -> the nearest that the codebooks express, on the same device."""
        return self.codec.quantize(embedding[None])[0].to(embedding.device)

    # ------------------------------------------------------------------ in encoded space

    @torch.no_grad()
    def measure_embeddings(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each row, and "truth" with error 0: squared errors [pairs, seconds] and deviations [pairs]."""
        other = other_tracks(self.tracks, self.seed)
        pairs = len(self.dataset)
        rows: dict[str, list] = {name: [] for name in ROWS if name != "other_track" or other is not None}
        for start in range(0, pairs, self.batch_size):
            indices = list(range(start, min(start + self.batch_size, pairs)))
            inputs, targets = self.embeddings.batch(indices)
            predicted = torch.stack([self.continuation(x, i) for x, i in zip(inputs, indices, strict=True)])
            candidates = {
                "model": predicted,
                "model_quantized": torch.stack([self.quantized(x) for x in predicted]),
                "repeat_input": inputs,
                "input_mean": inputs.mean(dim=2, keepdim=True).expand_as(inputs),
                "training_mean": self.training_mean.to(inputs.device).expand_as(inputs),
                "ceiling": targets,  # the decoder gets the true embeddings
            }
            if other is not None:
                candidates["other_track"] = self.embeddings.batch([other[i] for i in indices])[1]
            for name, candidate in candidates.items():
                errors = squared_error_per_second(candidate, targets, self.codec.frame_rate).cpu().numpy()
                rows[name].append((errors, deviation(candidate).cpu().numpy()))
            self.told(indices[-1] + 1, pairs, "pairs compared in encoded space")
        return {name: tuple(map(np.concatenate, zip(*parts, strict=True))) for name, parts in rows.items()}

    # ------------------------------------------------------------------ as sound

    @torch.no_grad()
    def hear(self, embeddings: list[torch.Tensor]) -> list[Heard]:
        """Decode embeddings [128, T], at most a batch of them, to sound in [-1, 1] and encode that again."""
        waveforms = self.codec.decode(torch.stack([e.to(self.codec.device) for e in embeddings])).clamp(-1, 1)
        reencoded, waveforms = self.codec.encode(waveforms).cpu(), waveforms[:, 0]
        log_mels, chromas = self.features.log_mel(waveforms).cpu(), self.features.chroma(waveforms).cpu()
        return [Heard(*parts) for parts in zip(reencoded, log_mels, chromas, strict=True)]

    @torch.no_grad()
    def measure_sound(self, indices: list[int]) -> dict[str, SoundRow]:
        """The rows' sound on the pairs `indices`; "truth" is the reference: the true embeddings' frames.

        Each distinct segment makes the trip once, for every row that uses it, and what is kept of it (1 MB) is
        dropped after its last use; a batch of waveforms is all the audio that is ever in memory.
        """
        shift = other_tracks([self.tracks[i] for i in indices], self.seed)
        other = None if shift is None else dict(zip(indices, (indices[j] for j in shift), strict=True))
        rows = {name: SoundRow(FrameSet(len(indices), self.seed)) for name in ["truth", *SOUND_ROWS]}
        needed = {}
        for i in indices:
            uses = {"repeat_input": (i, 0), "ceiling": (i, 1)}
            if other is not None:
                uses["other_track"] = (other[i], 1)
            needed[i] = {name: (self.dataset.keys[j][role], (j, role)) for name, (j, role) in uses.items()}
        if other is None:
            del rows["other_track"]
        last_use = {key: i for i in indices for key, _ in needed[i].values()}
        total = len(last_use) + 2 * len(indices)
        done = 0

        constant = self.training_mean.expand(-1, self.dataset.num_frames).contiguous()
        held = self.hear([constant])[0]
        rows["training_mean"] = SoundRow(FrameSet(1, self.seed))
        rows["training_mean"].frames.add(held.reencoded)
        heard: dict[str, Heard] = {}
        for start in range(0, len(indices), self.batch_size):
            batch = indices[start : start + self.batch_size]
            inputs, targets = self.embeddings.batch(batch)
            predicted = [self.continuation(x, i) for x, i in zip(inputs, batch, strict=True)]
            jobs = {("model", i): p for p, i in zip(predicted, batch, strict=True)}
            jobs |= {("model_quantized", i): self.quantized(p) for p, i in zip(predicted, batch, strict=True)}
            for key, path in (use for i in batch for use in needed[i].values()):
                if key not in heard:
                    jobs[key] = path
            results: dict = {}
            names = list(jobs)
            for first in range(0, len(names), self.batch_size):
                some = names[first : first + self.batch_size]
                given = [
                    jobs[n] if isinstance(jobs[n], torch.Tensor) else self.dataset[jobs[n][0]][jobs[n][1]] for n in some
                ]
                results |= zip(some, self.hear(given), strict=True)
                done += len(some)
                self.told(done, total, "clips decoded and encoded again")
            heard |= {key: clip for key, clip in results.items() if isinstance(key, str)}
            for i, target in zip(batch, targets.cpu(), strict=True):
                clips = {name: heard[key] for name, (key, _) in needed[i].items()}
                clips |= {name: results[name, i] for name in ("model", "model_quantized")}
                self._compare(rows, clips | {"training_mean": held}, target, i)
                for key in {key for key, _ in needed[i].values() if last_use[key] == i}:
                    del heard[key]
        return rows

    def _compare(self, rows: dict[str, SoundRow], clips: dict[str, Heard], target: torch.Tensor, index: int) -> None:
        """Add one pair's `clips` to the rows."""
        waveform = torch.from_numpy(read_wav(self.dataset.pairs[index][1]))[None]
        true_mel, true_chroma = self.features.log_mel(waveform)[0].cpu(), self.features.chroma(waveform)[0].cpu()
        rows["truth"].frames.add(target)
        for name, clip in clips.items():
            if name != "training_mean":
                rows[name].frames.add(clip.reencoded)
            error = (clip.reencoded.double() - target.double()).square().mean()
            rows[name].reencoded_errors.append(float(error))
            rows[name].mel_distances.append(log_mel_distance(clip.log_mel, true_mel))
            rows[name].chroma_cosines.append(chroma_cosine(clip.chroma, true_chroma))


def read_wav(path: os.PathLike) -> np.ndarray:
    """float32 [samples] of a mono WAV of the dataset."""
    try:
        return soundfile.read(os.fsencode(path), dtype="float32")[0]
    except soundfile.SoundFileError as error:
        raise UserError(f"{path}: cannot be read; create the dataset again") from error


# ------------------------------------------------------------------ the sums as results


def summarise(
    measured: dict[str, tuple[np.ndarray, np.ndarray]],
    sound: dict[str, SoundRow],
    tracks: list[str],
    frames: int,
    channels: int,
    frame_rate: int,
    seed: int,
) -> tuple[dict[str, dict], dict[str, dict]]:
    """The rows of results.json, and its per_second part."""
    groups = list(by_track(tracks).values())
    elements = elements_per_second(frames, channels, frame_rate)

    def per_track(errors: np.ndarray) -> np.ndarray:
        return np.stack([errors[group].sum(axis=0) for group in groups])

    mean_errors = per_track(measured["training_mean"][0])  # [tracks, seconds]
    counts = np.stack([elements * len(group) for group in groups])
    true_deviation = measured["ceiling"][1].sum()
    rows, per_second = {}, {}
    for name, label in ROWS.items():
        if name not in measured:
            rows[name] = {"label": label, "note": "needs a second validation track"}
            continue
        pair_errors, deviations = measured[name]
        errors = per_track(pair_errors)
        total, mean_total = errors.sum(axis=1), mean_errors.sum(axis=1)
        rows[name] = {
            "label": label,
            "mse": errors.sum() / counts.sum(),
            "mse_interval": bootstrap_ratio(total, counts.sum(axis=1), seed),
            "skill": _skill(total.sum(), mean_total.sum()),
            "skill_interval": _skill_interval(bootstrap_ratio(total, mean_total, seed)),
            "deviation_ratio": deviations.sum() / max(true_deviation, 1e-300),
            **_sound_columns(sound, name),
        }
        per_second[name] = {
            "mse": errors.sum(axis=0) / counts.sum(axis=0),
            "skill": _skill(errors.sum(axis=0), mean_errors.sum(axis=0)),
            "skill_interval": _skill_interval(bootstrap_ratio(errors, mean_errors, seed)),
        }
    return rows, per_second


def _skill(error: np.ndarray, mean_error: np.ndarray) -> np.ndarray:
    return 1 - error / np.maximum(mean_error, 1e-300)


def _skill_interval(ratio: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if ratio is None else (1 - ratio[1], 1 - ratio[0])


def _sound_columns(sound: dict[str, SoundRow], name: str) -> dict[str, object]:
    if name not in sound:
        return {"note": "not decoded: a held chord"}
    row = sound[name]
    fad = fad_score(sound["truth"].frames, row.frames)
    cosines = [c for c in row.chroma_cosines if not math.isnan(c)]
    return {
        "mse_reencoded": float(np.mean(row.reencoded_errors)),
        "fad": fad.fad,
        "fad_inf": fad.fad_inf,
        "fad_inf_r2": fad.r2,
        "fad_frames": fad.frames,
        "log_mel_distance": float(np.mean(row.mel_distances)),
        "chroma_cosine": float(np.mean(cosines)) if cosines else None,
        "note": fad.note,
    }
