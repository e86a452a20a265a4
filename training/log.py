"""What a training run says: lines for people, made for `tail -f`, and metrics.jsonl for programs."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import shlex
import subprocess
from pathlib import Path

import torch

from common.errors import name_in_errors
from common.files import atomic_write
from dataset.selection import TRACKS_FOR_A_VERDICT
from training.config import TrainConfig
from training.distributed import rank, world_size

METRICS = "metrics.jsonl"


def log(line: str) -> None:
    """Print a line, once for all processes."""
    if rank() == 0 and line:
        print(line, flush=True)


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl: {"baselines": {name: MSE}}, then one an epoch; [] if there is no file.

    A last line without its end, which a running or killed training leaves, is dropped.
    """
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            print(f"{path}: a line is damaged and left out", flush=True)
    return lines


def start_metrics(path: Path, baselines: dict[str, float], epochs_done: int) -> None:
    """Begin metrics.jsonl, or bring it back to the epoch that a run resumes from."""
    kept = [line for line in read_metrics(path) if 1 <= line.get("epoch", 0) <= epochs_done]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [{"baselines": baselines}, *kept]))


def append_metrics(path: Path, line: dict[str, object], sync: bool = True) -> None:
    """Append an epoch's line, with `sync` through to the disk."""
    with name_in_errors(path), open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        if sync:
            os.fsync(file.fileno())


def open_tensorboard(folder: Path, epochs_done: int) -> object | None:
    """A SummaryWriter into `folder` if tensorboard is installed; what a resume repeats is dropped."""
    if rank() > 0 or importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=epochs_done + 1)


def describe_run(config: TrainConfig, device: torch.device, precision: str) -> str:
    """The opening of the log: when, what code, on what, with which settings."""
    now = datetime.datetime.now().isoformat(timespec="seconds")
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads each"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    settings = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(config).items() if value is not None)
    return (
        f"training   {now}, commit {_commit() or 'unknown'}\n"
        f"versions   python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}\n"
        f"devices    {world_size()} x {device.type} ({name}), {precision}, "
        f"batch {config.batch_size} x {world_size()} = {config.batch_size * world_size()}\n"
        f"settings   {settings}"
    )


def describe_tracks(train: set[str], val: set[str]) -> str:
    """A warning where the validation split cannot judge the model; empty where it can."""
    if train & val:
        return (
            f"*** {len(train & val)} of {len(val)} validation tracks are trained on: val says nothing about new music"
        )
    if 0 < len(val) < TRACKS_FOR_A_VERDICT:
        return f"validation {len(val)} tracks: too few for a verdict, which needs {TRACKS_FOR_A_VERDICT}"
    return ""


def describe_epoch(line: dict[str, object], epochs: int, seconds: float) -> str:
    """An epoch's line, `seconds` of training after the first began; `left` is the time without early stopping."""
    left = datetime.timedelta(seconds=round(seconds / line["epoch"] * (epochs - line["epoch"])))
    return (
        f"epoch {line['epoch']:3d}/{epochs}  train {line['train_mse']:.6g}  val {line['val_mse']:.6g}  "
        f"skill {line['skill']:+.4f}  deviation {line['deviation_ratio']:.3f}  lr {line['lr']:.2e}  "
        f"grad {line['grad_norm']:.3g}  {line['pairs_per_second']:.1f} pairs/s  "
        f"left {left}{'  *best' if line['best'] else ''}"
    )


def listen_command(config: TrainConfig, checkpoint: Path) -> str:
    """The command that evaluates a checkpoint of this run while it trains."""
    words = ["python", "evaluate_continuation.py", "--checkpoint", str(checkpoint)]
    for flag in ("dataset_dir", "cache_dir"):
        if (value := getattr(config, flag)) != getattr(TrainConfig(), flag):
            words += [f"--{flag}", value]
    return shlex.join(words)


def _commit() -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        return ""
