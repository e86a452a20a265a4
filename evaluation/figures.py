"""The charts and spectrograms of the report. Used by evaluate_continuation.py, horizon.py and examples.py.

Each file appears complete or not at all.
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

INK, GRID = "#1f2328", "#d8dde3"
# Color, dash pattern and label of each row of the table that is drawn.
STYLES = {
    "model": ("#0b62c4", (), "model"),
    "training_mean": ("#57606a", (5, 2), "training mean"),
    "repeat_input": ("#b85a00", (6, 2, 1, 2), "repeat the input"),
    "channel_regression": ("#b85a00", (2, 2), "channel regression"),
    "loop": ("#0f7b5f", (1, 1.5), "loop"),
}

SPECTROGRAM_RANGE_DB = 70
SPECTROGRAM_MELS = 128
SPECTROGRAM_LOWEST_HZ = 50.0


@contextmanager
def chart(path: Path, heights: tuple[float, ...]) -> Iterator[list[Axes]]:
    """Yield the axes of a chart, and write it as a PNG to `path` when the block ends.

    heights: panel heights in inches. The first panel provides the legend.
    """
    style = {
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
    }
    with matplotlib.rc_context(style):
        # Narrow, so that the text is readable when a phone shrinks the picture to its width.
        figure = Figure(figsize=(5.2, 0.9 + sum(heights)), layout="constrained")
        panels = list(np.ravel(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)))
        yield panels
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=160, format="png")
        atomic_write(path, picture.getbuffer())


def _line_style(name: str) -> dict[str, object]:
    color, dashes, label = STYLES[name]
    emphasis = {"marker": "o", "markersize": 4, "linewidth": 2.2, "zorder": 3} if name == "model" else {}
    return {"color": color, "dashes": dashes, "label": label} | emphasis


def draw_per_second(path: Path, per_second: dict[str, dict]) -> None:
    """Draw MSE and skill in each second of the continuation.

    per_second: as in results.json. Rows far below skill 0 are only in the upper panel.
    """
    with chart(path, (2.6, 2.6)) as (top, bottom):
        middles = np.arange(len(per_second["model"]["mse"])) + 0.5
        for name in STYLES:
            top.plot(middles, per_second[name]["mse"], **_line_style(name))
            if (name != "training_mean" and np.nanmin(per_second[name]["skill"]) > -0.25) or name == "model":
                bottom.plot(middles, per_second[name]["skill"], **_line_style(name))
        low, high = per_second["model"]["skill_interval"]
        if not np.isnan(low).any():
            bottom.fill_between(middles, low, high, color=STYLES["model"][0], alpha=0.2, linewidth=0)
        color, dashes, _ = STYLES["training_mean"]
        bottom.axhline(0, color=color, dashes=dashes)
        lines = [values for line in bottom.lines for values in line.get_ydata()]
        bottom.set_ylim(max(-1, min(-0.1, np.nanmin(lines) - 0.1)), min(1.05, np.nanmax(lines) + 0.3))
        top.set_ylabel("MSE of embeddings")
        top.set_ylim(bottom=0)
        bottom.set_ylabel("skill")
        bottom.set_xlabel("second of the continuation")
        bottom.set_xlim(0, len(middles))
        bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def draw_diagnosis(path: Path, diagnosis: dict) -> None:
    """Draw the model's skill in each modulation band, and with changed inputs.

    diagnosis: as in results.json. Bars and whiskers are the model, markers are baselines.
    """
    panels = {
        "each clip's average, and changes at": [entry for entry in diagnosis["bands"] if entry["share"] > 0],
        "with its input": [{"label": "unchanged", "skill": diagnosis["skill"]}, *diagnosis["inputs"]],
    }
    marks = {"channel_regression": "s", "loop": "D"}
    heights = tuple(0.55 + 0.29 * len(entries) for entries in panels.values())
    with chart(path, heights) as axes:
        for axis, (title, entries) in zip(axes, panels.items(), strict=True):
            places = np.arange(len(entries))
            shares = [f" · {entry['share']:.0%}" if "share" in entry else "" for entry in entries]
            skills = np.array([entry["skill"] for entry in entries])
            axis.barh(places, skills, height=0.62, color=STYLES["model"][0], alpha=0.75, label="model")
            for name, mark in marks.items():
                values = [entry["baselines"][name] if "baselines" in entry else np.nan for entry in entries]
                color, _, label = STYLES[name]
                axis.plot(values, places, mark, color=color, markersize=6, label=label)
            ends = np.array([entry.get("skill_interval", (np.nan, np.nan)) for entry in entries])
            whiskers = np.nan_to_num(np.abs(ends.T - skills))
            axis.errorbar(skills, places, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.2)
            axis.set_yticks(places, [entry["label"] + share for entry, share in zip(entries, shares, strict=True)])
            axis.invert_yaxis()
            axis.set_title(title, fontsize=10, loc="left")
            axis.axvline(0, color=INK, linewidth=0.8)
        lowest = min(entry["skill"] for entries in panels.values() for entry in entries)
        axes[0].set_xlim(max(-1.05, min(-0.2, lowest - 0.05)), 1.02)
        axes[-1].set_xlabel("skill: the training mean has 0, the truth 1")


# ------------------------------------------------------------------ spectrograms


def mel_decibels(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mel spectrogram of [samples] in dB, [128, 50 columns per second], from 50 Hz to half the sample rate."""
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
    """The height of a frequency in a spectrogram from 0 (bottom) to 1, on HTK's mel scale."""
    low, high, here = (
        math.log10(1 + hz / 700) for hz in (SPECTROGRAM_LOWEST_HZ, sample_rate / 2, max(frequency_hz, 0))
    )
    return (here - low) / (high - low)


def write_spectrogram(path: Path, decibels: np.ndarray, top_db: float) -> None:
    """Write `mel_decibels` as a PNG without axes, because the page draws them. 70 dB below `top_db` is black."""
    picture, lowest_db = io.BytesIO(), top_db - SPECTROGRAM_RANGE_DB
    matplotlib.image.imsave(picture, decibels, vmin=lowest_db, vmax=top_db, cmap="magma", origin="lower", format="png")
    atomic_write(path, picture.getbuffer())
