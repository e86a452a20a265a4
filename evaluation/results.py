"""From the measured errors to results.json: the table's rows, the seconds, the tracks, the evidence for the verdict."""

from __future__ import annotations

import math

import numpy as np

from evaluation.comparison import CONTINUATIONS
from evaluation.measures import Errors, TrackErrors, by_track, elements_per_second, ratio_over_tracks
from evaluation.sound import SoundRow, sound_columns
from evaluation.verdict import BASELINES, COMPARED, Evidence, Interval


def table_rows(
    errors: dict[str, Errors], by_tracks: TrackErrors, sound: dict[str, SoundRow], tracks: list[str], elements: int
) -> dict[str, dict]:
    """The `rows` of results.json. elements: of one embedding."""
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
        rows[name] |= sound_columns(sound[name]) if name in sound else {}
    return rows


def seconds(errors: dict[str, Errors], by_tracks: TrackErrors, frames: int, channels: int, frame_rate: float) -> dict:
    """The `per_second` of results.json."""
    elements, found = elements_per_second(frames, channels, frame_rate), {}
    for name in CONTINUATIONS:
        if name in errors:
            parts, skill = errors[name]["seconds"], by_tracks.skill(name, "seconds")
            found[name] = {
                "mse": parts.sum(axis=0) / (elements * len(parts)),
                "skill": skill.value,
                "skill_interval": (skill.low, skill.high),
            }
    return found


def track_table(by_tracks: TrackErrors, tracks: list[str], elements: int) -> list[dict[str, object]]:
    """The `tracks` of results.json: pairs, MSE, skill and the best baseline of each validation track."""
    table = []
    for number, (source, group) in enumerate(by_track(tracks).items()):
        skills = {row: 1 - by_tracks.total(row)[number] / by_tracks.scale[number] for row in ("model", *BASELINES)}
        best = max(BASELINES, key=lambda name: skills[name])
        mse = by_tracks.total("model")[number] / (len(group) * elements)
        table.append(
            {"source": source, "pairs": len(group), "mse": mse, "skill": skills["model"],
             "best_baseline": best, "best_baseline_skill": skills[best]}
        )  # fmt: skip
    return table


def gather_evidence(by_tracks: TrackErrors, shared_tracks: int) -> Evidence:
    """What the verdict is decided on."""
    totals = {name: by_tracks.total(name).sum() for name in ("model", "training_mean", *BASELINES)}
    return Evidence(
        tracks=len(by_tracks.scale),
        shared_tracks=shared_tracks,
        skill=_interval(by_tracks.skill("model")),
        leads={name: _interval(by_tracks.lead("model", name)) for name in COMPARED},
        lower_error={name: bool(totals["model"] < total) for name, total in totals.items()},
        skills={name: float(by_tracks.skill(name).value) for name in COMPARED},
        input_cost=_interval(by_tracks.lead("model", "input_swapped")) if "input_swapped" in by_tracks.sums else None,
    )


def training_signs(checkpoint: dict, epochs: list[dict]) -> tuple[float | None, bool]:
    """The pooled skill on the training pairs in the evaluated epoch, and whether the training still improved there.

    None and False if that epoch is not logged.
    """
    line = next((line for line in epochs if line["epoch"] == checkpoint["epoch"]), None)
    if line is None:
        return None, False
    still_improved = line is epochs[-1] and line["val_mse"] < min([e["val_mse"] for e in epochs[:-1]], default=0)
    return 1 - line["train_mse"] / max(checkpoint["train_baseline"], 1e-30), still_improved


def notes(results: dict, checkpoint: dict, copies: int) -> list[str]:
    """What the reader of these results must know and the numbers do not say."""
    found = []
    if shared := results["dataset"]["shared_tracks"]:
        found.append(
            f"{shared} of {results['dataset']['tracks']} validation tracks are in the training split too: this says "
            "how the model does on tracks it knows."
        )
    if copies:
        found.append(
            f"{copies} of {results['dataset']['pairs']} true continuations are in the training split too, sample for "
            "sample."
        )
    if checkpoint["loss"] != "MSE":
        found.append(f"The model was trained with another loss, {checkpoint['loss']}. Skill and verdict are about MSE.")
        return found
    expected, here = checkpoint["baselines"]["training_mean"], results["rows"]["training_mean"]["mse"]
    if abs(here / max(expected, 1e-30) - 1) > 1e-3:
        found.append(
            f"This is not the validation split of the training (the training mean's MSE is {here:.4g} here and was "
            f"{expected:.4g} there): make sure that the model was not trained on these tracks."
        )
    return found


def to_json_types(value: object) -> object:
    """`value` for JSON: arrays and tuples as lists, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {key: to_json_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_json_types(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _interval(estimate: tuple) -> Interval:
    return Interval(*map(float, estimate))
