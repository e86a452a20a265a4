"""A training step, an epoch, and the way to a validation MSE, against the literal description."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from audio.frozen_encodec import FrozenEncodec
from benchmarks.literal_baseline import LiteralTraining
from benchmarks.measure import Row, best_of_alternating
from model_simple_transformer import SimpleTransformer
from train_simple_worker import train_worker
from training.config import TrainConfig

ROOT = Path(__file__).parent.parent


def run_step(literal: LiteralTraining) -> list[Row]:
    """One step on a batch of 16 embeddings of 16 s."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(2, 16, 128, 1200, generator=generator)
    model = SimpleTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)

    def step() -> None:
        model.train()
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()
    ours, theirs = best_of_alternating(step, lambda: literal.step(inputs, targets), rounds=2)
    # Matrix products forward and back; attention's scores are computed once more on the way back (3.5 in all).
    flops = 6 * 859_520 * 16 * 1200 + 4 * 3.5 * 4 * 16 * 1200 * 1200 * 128
    share = flops / ours / matrix_product_rate()
    return [
        Row("training step, batch 16", "literal step", theirs / ours, 8.0, f"{ours:.2f} s against {theirs:.2f} s"),
        Row("training step's rate", "a large matrix product's", share, None, top_operations(step)),
    ]


def top_operations(call: Callable[[], None], count: int = 5) -> str:
    """The operators in which `call` spends most of its time, each with its share."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        call()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    short = {"_scaled_dot_product_flash_attention_for_cpu": "attention"}
    names = [event.key.removeprefix("aten::") for event in events]
    names = [
        short.get(name.removesuffix("_backward"), name) + " backward" * name.endswith("_backward") for name in names
    ]
    return ", ".join(
        f"{name} {event.self_cpu_time_total / total:.0%}" for name, event in zip(names[:count], events, strict=False)
    )


def matrix_product_rate() -> float:
    """Floating-point operations a second of a 2048 x 2048 float32 product on this machine."""
    a = torch.randn(2048, 2048)
    seconds, _ = best_of_alternating(lambda: a @ a, lambda: None, rounds=5)
    return 2 * 2048**3 / seconds


def run_epochs(literal: LiteralTraining, dataset_dir: Path, work_dir: Path, epochs: int) -> list[Row]:
    """The same pairs, `epochs` epochs each: an epoch from the second on, and the way to the literal's last MSE."""
    started = time.perf_counter()
    literal_epoch = min(literal.epoch() for _ in range(epochs))
    theirs_total = time.perf_counter() - started
    target = literal.validate()

    config = TrainConfig(
        str(dataset_dir), str(work_dir / "checkpoints"), epochs=4 * epochs, device="cpu", encodec_weights="untrained"
    )
    marks: list[float] = []

    class Clock(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("epoch"):
                marks.append(time.perf_counter())
            return len(text)

    started = time.perf_counter()
    with contextlib.redirect_stdout(Clock()):
        train_worker(config)
    lines = [json.loads(line) for line in (work_dir / "checkpoints/metrics.jsonl").read_text().splitlines()][1:]
    reached = next((i for i, line in enumerate(lines) if line["val_mse"] <= target), None)
    ours_epoch = min(b - a for a, b in itertools.pairwise(marks))
    rows = [
        Row(
            "epoch from the second on",
            "literal epoch, same pairs",
            literal_epoch / ours_epoch,
            25.0,
            f"{ours_epoch:.2f} s with validation and saving, against {literal_epoch:.1f} s without",
        )
    ]
    if reached is None:
        rows.append(Row("wall time to a validation MSE", "literal run", 0.0, 25.0, f"{target:.4g} was not reached"))
    else:
        ours_total = marks[reached] - started
        note = (
            f"{target:.4g} after {ours_total:.0f} s, encoding included, against {theirs_total:.0f} s ({epochs} epochs)"
        )
        rows.append(Row("wall time to a validation MSE", "literal run", theirs_total / ours_total, 25.0, note))
    return rows


def run(codec: FrozenEncodec, dataset_dir: Path, work_dir: Path) -> list[Row]:
    literal = LiteralTraining(dataset_dir, codec.model.state_dict())
    step = run_step(literal)
    literal = LiteralTraining(dataset_dir, codec.model.state_dict())
    return [*step, *run_epochs(literal, dataset_dir, work_dir, epochs=3), two_processes(dataset_dir, work_dir)]


def two_processes(dataset_dir: Path, work_dir: Path) -> Row:
    """Pairs a second of two processes with half the batch each against one process with all of it."""
    rates = []
    for processes in (1, 2):
        folder = work_dir / f"processes_{processes}"
        command = ["--dataset_dir", dataset_dir, "--checkpoint_dir", folder, "--encodec_weights", "untrained"]
        command += ["--device", "cpu", "--num_processes", processes, "--batch_size", 16 // processes, "--epochs", 4]
        subprocess.run(
            [sys.executable, "train_simple_ddp.py", *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        lines = (folder / "metrics.jsonl").read_text().splitlines()[1:]
        rates.append(max(json.loads(line)["pairs_per_second"] for line in lines))
    note = f"{rates[1]:.1f} and {rates[0]:.1f} pairs/s, the same global batch"
    return Row("2 processes on the same cores", "1 process", rates[1] / rates[0], 0.9, note)
