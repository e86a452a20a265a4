"""curves.png: what a training has logged so far, as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from common.files import atomic_write
from training.log import read_metrics

CURVES = "curves.png"
BASELINES = {
    "training_mean": ("training mean", "#57606a", (5, 2)),
    "repeat_input": ("repeat the input", "#b85a00", (6, 2, 1, 2)),
    "channel_regression": ("channel regression (untrained)", "#0f7b5f", (1, 1.5)),
}


def draw_curves(path: Path, metrics: Path) -> None:
    """Train and validation MSE by epoch, the baselines, and the learning rate: a PNG 600 pixels wide."""
    from matplotlib.figure import Figure  # here, as it is a fifth of what a training imports
    from matplotlib.ticker import MaxNLocator

    first, *lines = read_metrics(metrics)
    epochs = [line["epoch"] for line in lines]
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    marker = "o" if len(epochs) == 1 else None
    top.plot(epochs, [line["train_mse"] for line in lines], color="#8a4fbf", marker=marker, label="training")
    top.plot(epochs, [line["val_mse"] for line in lines], color="#0b62c4", marker=marker, lw=2.2, label="validation")
    low, high = top.get_ylim()
    for name, (label, colour, dashes) in BASELINES.items():
        value = first["baselines"][name]
        if value < high + 2 * (high - low):
            top.axhline(value, color=colour, dashes=dashes, label=label)
        else:  # drawn, it would flatten what matters
            top.plot([], [], color=colour, dashes=dashes, label=f"{label}: {value:.4g}")
    top.set_ylabel("MSE of embeddings")
    top.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=9, frameon=False)
    bottom.plot(epochs, [line["lr"] for line in lines], color="#57606a", marker=marker)
    bottom.set_yscale("log")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100, format="png")
    with atomic_write(path) as temporary:
        temporary.write_bytes(picture.getbuffer())
