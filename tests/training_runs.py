"""Shared by the tests of training: the command, what a run wrote, and bit-exact comparison."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import CODEC

SCRIPT = "train_simple_ddp.py"
QUICK = (*CODEC, "--num_layers", 1, "--lr", 1e-3)


def command(dataset: Path, folder: Path, *args: object) -> tuple[object, ...]:
    return SCRIPT, "--dataset_dir", dataset, "--checkpoint_dir", folder, *QUICK, *args


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl for epochs, without the speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    return [{k: v for k, v in line.items() if k != "pairs_per_second"} for line in lines]


def baselines(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["baselines"]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def difference(a: object, b: object, path: str = "") -> str:
    """Where two values first differ in a bit, or "". NaN equals NaN, and times and paths are ignored."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in {**a, **b} if k not in ("seconds", "config", "pairs_per_second")]
        missing = [k for k in keys if (k in a) != (k in b)]
        if missing:
            return f"{path}: only in one: {missing}"
        return next((d for key in keys if (d := difference(a[key], b[key], f"{path}/{key}"))), "")
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if torch.equal(a, b) else path
    if isinstance(a, bytes) and isinstance(b, bytes):
        return "" if a == b else f"{path}: {len(a)} and {len(b)} bytes"
    return "" if a == b or (a != a and b != b) else f"{path}: {a!r} and {b!r}"
