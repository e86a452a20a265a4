"""Draw curves.png from the log of a training run. Used during training and by the report page."""

from __future__ import annotations

import io
from pathlib import Path

from common.files import atomic_write
from training.log import read_metrics

CURVES = "curves.png"
BASELINE_STYLES = {
    "training_mean": ("training mean", "#57606a", (5, 2)),
    "repeat_input": ("repeat the input", "#b85a00", (6, 2, 1, 2)),
    "channel_regression": ("channel regression (untrained)", "#0f7b5f", (1, 1.5)),
}


def draw_curves(path: Path, metrics: Path) -> None:
    """Plot training and validation MSE, the baselines, and the learning rate by epoch. Writes a PNG 600 pixels wide."""
    from matplotlib.figure import Figure  # imported here because it takes a fifth of the start-up time
    from matplotlib.ticker import MaxNLocator

    first, *lines = read_metrics(metrics)
    epochs = [line["epoch"] for line in lines]
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    marker = "o" if len(epochs) == 1 else None
    top.plot(epochs, [line["train_mse"] for line in lines], color="#8a4fbf", marker=marker, label="training")
    top.plot(epochs, [line["val_mse"] for line in lines], color="#0b62c4", marker=marker, lw=2.2, label="validation")
    low, high = top.get_ylim()
    for name, (label, color, dashes) in BASELINE_STYLES.items():
        value = first["baselines"][name]
        if value < high + 2 * (high - low):
            top.axhline(value, color=color, dashes=dashes, label=label)
        else:  # a line that far up would flatten the curves
            top.plot([], [], color=color, dashes=dashes, label=f"{label}: {value:.4g}")
    top.set_ylabel("MSE of embeddings")
    top.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=9, frameon=False)
    bottom.plot(epochs, [line["lr"] for line in lines], color="#57606a", marker=marker)
    bottom.set_yscale("log")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100, format="png")
    atomic_write(path, picture.getbuffer())
