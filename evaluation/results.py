"""From measured errors to the content of results.json. Used by evaluate_continuation.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from common.files import atomic_write
from evaluation.comparison import CONTINUATIONS, Comparison
from evaluation.diagnosis import diagnose, limit
from evaluation.measures import (
    Errors,
    Estimate,
    TrackErrors,
    by_track,
    elements_per_second,
    ratio_over_tracks,
)
from evaluation.sound import SoundRow, sound_columns
from evaluation.verdict import BASELINES, COMPARED, Evidence, Interval, verdict
from training.experiment import MSE


def measured_results(
    comparison: Comparison,
    errors: dict[str, Errors],
    sound: dict[str, SoundRow],
    shared_tracks: int,
    horizon: dict,
    checkpoint: dict,
    epochs: list[dict],
) -> dict[str, object]:
    """The part of results.json that follows from the measurements. epochs: the training log's lines."""
    tracks, codec, frames = comparison.tracks, comparison.codec, comparison.dataset.num_frames
    by_tracks, elements = TrackErrors(errors, tracks), codec.embedding_dim * frames
    evidence, diagnosis = gather_evidence(by_tracks, shared_tracks), diagnose(by_tracks)
    reason = limit(evidence, diagnosis, by_tracks, *training_signs(checkpoint, epochs), horizon)
    return {
        "verdict": verdict(evidence) | {"limit": reason},
        "rows": table_rows(errors, by_tracks, sound, tracks, elements),
        "per_second": seconds(errors, by_tracks, frames, codec.embedding_dim, codec.frame_rate),
        "diagnosis": diagnosis,
        "horizon": horizon,
        "tracks": track_table(by_tracks, tracks, elements),
    }


def table_rows(
    errors: dict[str, Errors], by_tracks: TrackErrors, sound: dict[str, SoundRow], tracks: list[str], elements: int
) -> dict[str, dict]:
    """The `rows` of results.json. elements: the size of one embedding."""
    true_deviation = errors["ceiling"]["deviation"].sum()
    counts = np.array([elements * len(group) for group in by_track(tracks).values()], np.float64)
    rows = {}
    for name, label in CONTINUATIONS.items():
        if name not in errors:
            rows[name] = {"label": label, "note": "needs a second validation track"}
            continue
        mse, skill = ratio_over_tracks(by_tracks.total(name), counts), by_tracks.skill(name)
        rows[name] = {
            "label": label,
            "mse": mse.value,
            "mse_interval": (mse.low, mse.high),
            "skill": by_tracks.pooled_skill(name),
            "track_skill": skill.value,
            "skill_interval": (skill.low, skill.high),
            "deviation_ratio": errors[name]["deviation"].sum() / max(true_deviation, 1e-300),
            "calibration_slope": by_tracks.slope(name),
            "note": "",
        }
        if name != "model":
            lead = by_tracks.lead("model", name)
            rows[name] |= {"skill_difference": lead.value, "skill_difference_interval": (lead.low, lead.high)}
        if name in sound:
            rows[name] |= sound_columns(sound[name])
    return rows


def seconds(errors: dict[str, Errors], by_tracks: TrackErrors, frames: int, channels: int, frame_rate: float) -> dict:
    """The `per_second` of results.json."""
    elements, per_second = elements_per_second(frames, channels, frame_rate), {}
    for name in filter(errors.__contains__, CONTINUATIONS):
        parts, skill = errors[name]["seconds"], by_tracks.skill(name, "seconds")
        mse = parts.sum(axis=0) / (elements * len(parts))
        per_second[name] = {"mse": mse, "skill": skill.value, "skill_interval": (skill.low, skill.high)}
    return per_second


def track_table(by_tracks: TrackErrors, tracks: list[str], elements: int) -> list[dict[str, object]]:
    """The `tracks` of results.json: pairs, MSE, skill and the best baseline of each validation track."""
    table, mean = [], by_tracks.total("training_mean")
    for number, (source, group) in enumerate(by_track(tracks).items()):
        skills = {
            row: (mean[number] - by_tracks.total(row)[number]) / by_tracks.scale[number]
            for row in ("model", *BASELINES)
        }
        best = max(BASELINES, key=lambda name: skills[name])
        mse = by_tracks.total("model")[number] / (len(group) * elements)
        table.append(
            {"source": source, "pairs": len(group), "mse": mse, "skill": skills["model"],
             "best_baseline": best, "best_baseline_skill": skills[best]}
        )  # fmt: skip
    return table


def gather_evidence(by_tracks: TrackErrors, shared_tracks: int) -> Evidence:
    """What the verdict depends on."""

    def interval(estimate: Estimate) -> Interval:
        return Interval(*map(float, estimate))

    totals = {name: by_tracks.total(name).sum() for name in ("model", "training_mean", *COMPARED)}
    return Evidence(
        tracks=len(by_tracks.scale),
        shared_tracks=shared_tracks,
        skill=interval(by_tracks.skill("model")),
        leads={name: interval(by_tracks.lead("model", name)) for name in COMPARED},
        lower_error={name: bool(totals["model"] < total) for name, total in totals.items()},
        skills={name: float(by_tracks.skill(name).value) for name in COMPARED},
        input_cost=interval(by_tracks.lead("model", "input_swapped")) if "input_swapped" in by_tracks.sums else None,
    )


def training_signs(checkpoint: dict, epochs: list[dict]) -> tuple[float | None, bool]:
    """The pooled skill on the training pairs in the evaluated epoch, and whether that epoch is the last and the best.

    None and False if the log does not have that epoch. No skill if the model was trained with another loss than MSE.
    """
    line = next((line for line in epochs if line["epoch"] == checkpoint["epoch"]), None)
    if line is None:
        return None, False
    still_improved = line is epochs[-1] and line["val_mse"] < min([e["val_mse"] for e in epochs[:-1]], default=0)
    skill = 1 - line["train_mse"] / max(checkpoint["train_baseline"], 1e-30)
    return skill if checkpoint["loss"] == MSE else None, still_improved


def notes(results: dict, checkpoint: dict, copies: int) -> list[str]:
    """Warnings about the split and the loss. copies: the number of targets that are in both splits."""
    warnings = []
    if shared := results["dataset"]["shared_tracks"]:
        warnings.append(
            f"Validation tracks that are also in the training split: {shared} of {results['dataset']['tracks']}. These "
            "results are partly about tracks that the model was trained on."
        )
    if copies:
        warnings.append(
            f"{copies} of {results['dataset']['pairs']} true continuations are also in the training split, sample for "
            "sample."
        )
    if checkpoint["loss"] != MSE:
        warnings.append(
            f"The model was trained with a different loss, {checkpoint['loss']}. Skill and verdict still use MSE."
        )
        return warnings
    expected, here = checkpoint["baselines"]["training_mean"], results["rows"]["training_mean"]["mse"]
    if abs(here / max(expected, 1e-30) - 1) > 1e-3:
        warnings.append(
            f"This is not the validation split used in training: the training mean's MSE is {here:.4g} here and was "
            f"{expected:.4g} there. Make sure that the model was not trained on these tracks."
        )
    return warnings


def write_json(path: Path, content: dict) -> dict:
    """Write `content` as JSON, and return what reading it would give."""
    content = to_json_types(content)
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))
    return content


def to_json_types(value: object) -> object:
    """Arrays and tuples become lists, and numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: to_json_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_json_types(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
