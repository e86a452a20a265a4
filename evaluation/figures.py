"""The pictures of evaluate_continuation.py: three charts, each for a light and a dark page, and spectrograms.

Every picture appears complete or not at all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import torch
import torchaudio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.files import atomic_write

THEMES = {
    "light": {"page": "#ffffff", "ink": "#1f2328", "grid": "#d8dde3"},
    "dark": {"page": "#171b21", "ink": "#dfe4ea", "grid": "#3a424d"},
}
# One colour for each row and theme; the lines differ in their dashes too.
COLOURS = {
    "model": ("#0b62c4", "#6cb2ff"),
    "train": ("#8a4fbf", "#c79bf2"),
    "training_mean": ("#57606a", "#a9b3be"),
    "input_mean": ("#0f7b5f", "#57cfa8"),
    "repeat_input": ("#b85a00", "#f0a35c"),
    "shrunk_copy": ("#b85a00", "#f0a35c"),
    "loop": ("#0f7b5f", "#57cfa8"),
}
DASHES = {"training_mean": (5, 2), "input_mean": (1, 1.5), "repeat_input": (6, 2, 1, 2), "shrunk_copy": (2, 2),
          "loop": (1, 1.5)}  # fmt: skip
LABELS = {
    "model": "model",
    "training_mean": "training mean",
    "repeat_input": "repeat the input",
    "shrunk_copy": "shrunk copy",
    "loop": "loop",
}

SPECTROGRAM_RANGE_DB = 70
SPECTROGRAM_MELS = 128
SPECTROGRAM_LOWEST_HZ = 50.0


@contextmanager
def _chart(folder: Path, name: str, theme: str, heights: tuple[float, ...]) -> Iterator[list[Axes]]:
    """Axes of a chart in the theme's colours, written as NAME_THEME.png when the block ends.

    heights: of the panels, in inches. The legend names what the first of them shows.
    """
    ink, grid = THEMES[theme]["ink"], THEMES[theme]["grid"]
    style = {
        "font.size": 11,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "axes.facecolor": THEMES[theme]["page"],
    }
    with matplotlib.rc_context(style):
        # Narrow, so that the letters are still readable when a phone shrinks the picture to its width.
        size = (5.2, 0.9 + sum(heights))
        figure = Figure(figsize=size, facecolor=THEMES[theme]["page"], layout="constrained")
        panels = list(np.ravel(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)))
        yield panels
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=160, format="png")
        with atomic_write(folder / f"{name}_{theme}.png") as temporary:
            temporary.write_bytes(picture.getbuffer())


def _colour(name: str, theme: str) -> str:
    return COLOURS[name][list(THEMES).index(theme)]


def draw_per_second(folder: Path, per_second: dict[str, dict]) -> None:
    """per_second_{light,dark}.png: MSE and skill in each second of the continuation.

    per_second: as in results.json. A rival far below skill 0 is in the upper panel only.
    """
    for theme in THEMES:
        with _chart(folder, "per_second", theme, (2.6, 2.6)) as (top, bottom):
            middles = np.arange(len(per_second["model"]["mse"])) + 0.5
            for name in ("model", "training_mean", "repeat_input", "shrunk_copy", "loop"):
                style = {"color": _colour(name, theme), "dashes": DASHES.get(name, ()), "label": LABELS[name]}
                style |= {"marker": "o", "markersize": 4, "linewidth": 2.2, "zorder": 3} if name == "model" else {}
                top.plot(middles, per_second[name]["mse"], **style)
                if (name != "training_mean" and np.nanmin(per_second[name]["skill"]) > -0.25) or name == "model":
                    bottom.plot(middles, per_second[name]["skill"], **style)
            low, high = per_second["model"]["skill_interval"]
            if not np.isnan(low).any():
                bottom.fill_between(middles, low, high, color=_colour("model", theme), alpha=0.2, linewidth=0)
            bottom.axhline(0, color=_colour("training_mean", theme), dashes=DASHES["training_mean"])
            lines = [values for line in bottom.lines for values in line.get_ydata()]
            bottom.set_ylim(max(-1, min(-0.1, np.nanmin(lines) - 0.1)), min(1.05, np.nanmax(lines) + 0.3))
            top.set_ylabel("MSE of embeddings")
            top.set_ylim(bottom=0)
            bottom.set_ylabel("skill")
            bottom.set_xlabel("second of the continuation")
            bottom.set_xlim(0, len(middles))
            bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def draw_diagnosis(folder: Path, diagnosis: dict) -> None:
    """diagnosis_{light,dark}.png: the model's skill by band, by component, and with its input tampered with.

    diagnosis: as in results.json. Bars and whiskers are the model's, marks its rivals'.
    """
    inputs = [{"label": "as it is", "skill": diagnosis["skill"]}, *diagnosis["inputs"]]
    panels = {
        "the clip's average, and change at": [entry for entry in diagnosis["bands"] if entry["share"] > 0],
        "principal components": diagnosis["components"],
        "with its input": inputs,
    }
    marks = {"shrunk_copy": "s", "loop": "D"}
    for theme in THEMES:
        heights = tuple(0.55 + 0.29 * len(entries) for entries in panels.values())
        with _chart(folder, "diagnosis", theme, heights) as axes:
            for axis, (title, entries) in zip(axes, panels.items(), strict=True):
                places = np.arange(len(entries))
                shares = [f" · {entry['share']:.0%}" if "share" in entry else "" for entry in entries]
                skills = np.array([entry["skill"] for entry in entries])
                axis.barh(places, skills, height=0.62, color=_colour("model", theme), alpha=0.75, label="model")
                for name, mark in marks.items():
                    found = [entry["rivals"][name] if "rivals" in entry else np.nan for entry in entries]
                    axis.plot(found, places, mark, color=_colour(name, theme), markersize=6, label=LABELS[name])
                ends = np.array([entry.get("skill_interval", (np.nan, np.nan)) for entry in entries])
                whiskers = np.nan_to_num(np.abs(ends.T - skills))
                axis.errorbar(skills, places, xerr=whiskers, fmt="none", ecolor=THEMES[theme]["ink"], elinewidth=1.2)
                axis.set_yticks(places, [entry["label"] + share for entry, share in zip(entries, shares, strict=True)])
                axis.invert_yaxis()
                axis.set_title(title, fontsize=10, loc="left")
                axis.axvline(0, color=THEMES[theme]["ink"], linewidth=0.8)
            lowest = min(entry["skill"] for entries in panels.values() for entry in entries)
            axes[0].set_xlim(max(-1.05, min(-0.2, lowest - 0.05)), 1.02)
            axes[-1].set_xlabel("skill: 0 the training mean, 1 the truth")


def draw_curves(folder: Path, epochs: list[dict], baselines: dict[str, float], evaluated_epoch: int) -> None:
    """curves_{light,dark}.png: training and validation MSE by epoch, the baselines as lines.

    A baseline more than twice the curves' height above them is named, not drawn: it would flatten what matters.
    """
    numbers = [line["epoch"] for line in epochs]
    train, val = ([line[key] for line in epochs] for key in ("train_mse", "val_mse"))
    low, high = min(train + val), max(train + val)
    for theme in THEMES:
        with _chart(folder, "curves", theme, (2.6,)) as (axes,):
            marker = "o" if len(numbers) == 1 else None
            axes.plot(numbers, train, color=_colour("train", theme), linewidth=2, marker=marker, label="training")
            axes.plot(numbers, val, color=_colour("model", theme), linewidth=2.2, marker=marker, label="validation")
            above = []
            for name in ("training_mean", "repeat_input", "shrunk_copy"):
                value = baselines.get(name, math.nan)
                if value <= max(high, baselines.get("training_mean", high)) + 2 * (high - low) + 0.05 * high:
                    axes.axhline(value, color=_colour(name, theme), dashes=DASHES[name], label=LABELS[name])
                elif value == value:
                    above.append(f"{LABELS[name]}: {value:.4g} (above the picture)")
            if numbers[0] <= evaluated_epoch <= numbers[-1]:
                axes.axvline(evaluated_epoch, color=_colour("model", theme), alpha=0.45, linewidth=1, label="evaluated")
            axes.set_xlabel("epoch" + "".join(f"\n{line}" for line in above))
            axes.set_ylabel("MSE of embeddings")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


# ------------------------------------------------------------------ spectrograms


def mel_decibels(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mel spectrogram of [samples] in dB, [128, 50 columns a second], from 50 Hz to half the sample rate."""
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate,
        n_fft=2048,
        hop_length=sample_rate // 50,
        n_mels=SPECTROGRAM_MELS,
        f_min=SPECTROGRAM_LOWEST_HZ,
        pad_mode="constant",
    )
    power = mel(torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)))
    return (10 * torch.log10(power.clamp_min(1e-10))).numpy()


def mel_height(frequency_hz: float, sample_rate: int) -> float:
    """Where a frequency lies in a spectrogram's height, 0 (bottom) to 1, on the mel scale of HTK."""
    low, high, here = (
        math.log10(1 + hz / 700) for hz in (SPECTROGRAM_LOWEST_HZ, sample_rate / 2, max(frequency_hz, 0))
    )
    return (here - low) / (high - low)


def write_spectrogram(path: Path, decibels: np.ndarray, top_db: float) -> None:
    """Write `mel_decibels` as a PNG without axes (the page has them), black at 70 dB below `top_db`."""
    picture, lowest_db = io.BytesIO(), top_db - SPECTROGRAM_RANGE_DB
    matplotlib.image.imsave(picture, decibels, vmin=lowest_db, vmax=top_db, cmap="magma", origin="lower", format="png")
    with atomic_write(path) as temporary:
        temporary.write_bytes(picture.getbuffer())
