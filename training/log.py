"""The log of a training run: lines for people (`tail -f`), and metrics.jsonl for programs."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from common.errors import name_in_errors
from common.files import atomic_write
from dataset.batches import PairBatches
from dataset.selection import TRACKS_FOR_A_VERDICT
from training.config import TrainConfig
from training.distributed import rank, world_size

METRICS = "metrics.jsonl"


def log(line: str) -> None:
    """Print a line on the first process only."""
    if rank() == 0 and line:
        print(line, flush=True)


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl: {"baselines": {name: MSE}}, then one per epoch. [] if there is no file.

    An incomplete last line, which a running or killed training may leave, is dropped.
    """
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            print(f"{path}: a damaged line is ignored", flush=True)
    return lines


def start_metrics(path: Path, baselines: dict[str, float], epochs_done: int) -> None:
    """Start metrics.jsonl, or cut it back to the epoch from which a run resumes."""
    kept = [line for line in read_metrics(path) if 1 <= line.get("epoch", 0) <= epochs_done]
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in [{"baselines": baselines}, *kept]))


def append_metrics(path: Path, line: dict[str, object], sync: bool = True) -> None:
    """Append an epoch's line. With `sync`, wait until it is on the disk."""
    with name_in_errors(path), open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        if sync:
            os.fsync(file.fileno())


def describe_run(config: TrainConfig, device: torch.device, precision: str) -> str:
    """The first lines of the log: time, commit, versions, devices and settings."""
    now = datetime.datetime.now().isoformat(timespec="seconds")
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads each"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    settings = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(config).items() if value is not None)
    return (
        f"training   {now}, commit {commit()}\n"
        f"versions   python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}\n"
        f"devices    {world_size()} x {device.type} ({name}), {precision}, "
        f"batch {config.batch_size} x {world_size()} = {config.batch_size * world_size()}\n"
        f"settings   {settings}"
    )


def describe_data(train: PairBatches, val: PairBatches, data_hash: str) -> str:
    """The size of the two splits, and a warning if the validation split is weak."""
    dataset, codec = train.dataset, train.dataset.codec
    counts = [len(dataset), len(val.dataset)]
    hours = sum(counts) * dataset.num_samples / codec.sample_rate / 3600
    line = (
        f"data       {counts[0]} train and {counts[1]} val pairs, {hours:.2f} h to predict, "
        f"[{codec.embedding_dim}, {dataset.num_frames}] embeddings {train.place}, hash {data_hash}"
    )
    return "\n".join(filter(None, [line, split_warning(dataset.segments.tracks, val.dataset.segments.tracks)]))


def split_warning(train: set[str], val: set[str]) -> str:
    """A warning if the validation split is too weak for a verdict, else empty."""
    if shared := len(train & val):
        return (
            f"*** validation tracks that are also in the training split: {shared} of {len(val)}; "
            "the validation loss is partly about music that was trained on"
        )
    if 0 < len(val) < TRACKS_FOR_A_VERDICT:
        return f"only {len(val)} validation tracks: too few for a verdict, which needs {TRACKS_FOR_A_VERDICT}"
    return ""


def describe_epoch(line: dict[str, object], epochs: int, seconds: float) -> str:
    """An epoch's line in the log. `seconds`: training time so far. `left` ignores early stopping."""
    left = datetime.timedelta(seconds=round(seconds / line["epoch"] * (epochs - line["epoch"])))
    return (
        f"epoch {line['epoch']:3d}/{epochs}  train {line['train_mse']:.6g}  val {line['val_mse']:.6g}  "
        f"skill {line['skill']:+.4f}  deviation {line['deviation_ratio']:.3f}  lr {line['lr']:.2e}  "
        f"grad {line['grad_norm']:.3g}  {line['pairs_per_second']:.1f} pairs/s  "
        f"left {left}{'  *best' if line['best'] else ''}"
    )


def commit() -> str:
    """The commit of this code, with "-dirty" if it was edited; `unknown` without git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:  # no git here
        return "unknown"
