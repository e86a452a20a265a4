"""The pictures of evaluate_continuation.py: two charts, each for a light and a dark page, and spectrograms.

Nothing to run. Every picture appears complete or not at all.
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
}
DASHES = {"training_mean": (5, 2), "input_mean": (1, 1.5), "repeat_input": (6, 2, 1, 2)}

SPECTROGRAM_RANGE_DB = 70
SPECTROGRAM_MELS = 128
SPECTROGRAM_LOWEST_HZ = 50.0


@contextmanager
def _chart(folder: Path, name: str, theme: str, panels: int) -> Iterator[list[Axes]]:
    """Axes of a chart in the theme's colours, written as NAME_THEME.png when the block ends."""
    ink, grid = THEMES[theme]["ink"], THEMES[theme]["grid"]
    style = {
        "font.size": 11,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.grid": True,
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
        figure = Figure(figsize=(5.2, 1.2 + 2.6 * panels), facecolor=THEMES[theme]["page"], layout="constrained")
        yield list(np.ravel(figure.subplots(panels, 1, sharex=True)))
        picture = io.BytesIO()
        figure.savefig(picture, dpi=160, format="png")
        with atomic_write(folder / f"{name}_{theme}.png") as beside:
            beside.write_bytes(picture.getbuffer())


def _colour(name: str, theme: str) -> str:
    return COLOURS[name][list(THEMES).index(theme)]


def draw_per_second(folder: Path, per_second: dict[str, dict]) -> None:
    """per_second_{light,dark}.png: MSE and skill in each second of the continuation.

    per_second: as in results.json, arrays [seconds] under "mse" and "skill", their interval or None. A rival far below
    skill 0 is in the upper panel only.
    """
    labels = {
        "model": "model",
        "training_mean": "training mean",
        "input_mean": "input's average",
        "repeat_input": "repeat the input",
    }
    for theme in THEMES:
        with _chart(folder, "per_second", theme, panels=2) as (top, bottom):
            middles = np.arange(len(per_second["model"]["mse"])) + 0.5
            for name, label in labels.items():
                style = {"color": _colour(name, theme), "dashes": DASHES.get(name, ()), "label": label}
                style |= {"marker": "o", "markersize": 4, "linewidth": 2.2, "zorder": 3} if name == "model" else {}
                top.plot(middles, per_second[name]["mse"], **style)
                if name in ("model", "input_mean") or (
                    name == "repeat_input" and min(per_second[name]["skill"]) > -0.1
                ):
                    bottom.plot(middles, per_second[name]["skill"], **style)
            if (interval := per_second["model"]["skill_interval"]) is not None:
                bottom.fill_between(
                    middles, *interval, color=_colour("model", theme), alpha=0.2, linewidth=0, label="95% interval"
                )
            bottom.axhline(0, color=_colour("training_mean", theme), dashes=DASHES["training_mean"])
            top.set_ylabel("MSE of embeddings")
            top.set_ylim(bottom=0)
            bottom.set_ylabel("skill")
            bottom.set_xlabel("second of the continuation")
            bottom.set_xlim(0, len(middles))
            bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            top.legend(loc="upper center", bbox_to_anchor=(0.5, 1.27), ncols=2)
            handles, shown = bottom.get_legend_handles_labels()
            rivals = [k for k, label in enumerate(shown) if label not in (labels["model"], labels["training_mean"])]
            bottom.legend([handles[k] for k in rivals], [shown[k] for k in rivals], loc="upper center",
                          bbox_to_anchor=(0.5, 1.17), ncols=3, columnspacing=1, handlelength=1.6)  # fmt: skip


def draw_curves(folder: Path, epochs: list[dict], baselines: dict[str, float], evaluated_epoch: int) -> None:
    """curves_{light,dark}.png: training and validation MSE by epoch, the baselines as lines.

    A baseline more than twice the curves' height above them is named, not drawn: it would flatten what matters.
    """
    numbers = [line["epoch"] for line in epochs]
    train, val = ([line[key] for line in epochs] for key in ("train_mse", "val_mse"))
    low, high = min(train + val), max(train + val)
    labels = {"training_mean": "training mean", "repeat_input": "repeat the input"}
    for theme in THEMES:
        with _chart(folder, "curves", theme, panels=1) as (axes,):
            marker = "o" if len(numbers) == 1 else None
            axes.plot(numbers, train, color=_colour("train", theme), linewidth=2, marker=marker, label="training")
            axes.plot(numbers, val, color=_colour("model", theme), linewidth=2.2, marker=marker, label="validation")
            above = []
            for name, label in labels.items():
                value = baselines.get(name, math.nan)
                if value <= max(high, baselines.get("training_mean", high)) + 2 * (high - low) + 0.05 * high:
                    axes.axhline(value, color=_colour(name, theme), dashes=DASHES[name], label=label)
                elif value == value:
                    above.append(f"{label}: {value:.4g} (above the picture)")
            if numbers[0] <= evaluated_epoch <= numbers[-1]:
                axes.axvline(evaluated_epoch, color=_colour("model", theme), alpha=0.45, linewidth=1, label="evaluated")
            axes.set_xlabel("epoch" + "".join(f"\n{line}" for line in above))
            axes.set_ylabel("MSE of embeddings")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.27), ncols=2)


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
    with atomic_write(path) as beside:
        beside.write_bytes(picture.getbuffer())
