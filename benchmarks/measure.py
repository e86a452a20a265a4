"""What the benchmarks and the studies share: timing, a training step, commands, synthetic datasets, this machine."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from audio.segments import SAMPLE_RATE, write_wav
from common.machine import available_cores
from common.threads import read_ahead
from dataset.pairs import PairRow, digest_of, write_metadata
from training.log import commit

ROOT = Path(__file__).parents[1]


def best_of_alternating(first: Callable, second: Callable, rounds: int = 3) -> tuple[float, float]:
    """The seconds of each function's fastest call. The functions take turns, so that other work slows both of them."""
    first_s, second_s = [], []
    for _ in range(rounds):
        first_s.append(timeit.timeit(first, number=1))
        second_s.append(timeit.timeit(second, number=1))
    return min(first_s), min(second_s)


def take_step(predict: Callable, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """One training step on embeddings [B, C, T], like those of train_simple_worker.py."""
    loss = torch.nn.functional.mse_loss(predict(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def run_command(*command: object) -> float:
    """Run a command from the repository's folder and return its seconds. A RuntimeError contains a failure's output."""
    started = time.perf_counter()
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def run_python(script: str, *args: object) -> float:
    """Run one of the project's scripts, like `run_command`."""
    return run_command(sys.executable, script, *args)


def write_dataset(folder: Path, tracks: dict[str, list[list[np.ndarray]]], seconds: int) -> None:
    """Write a dataset of the pairs of consecutive segments in each track.

    tracks: the tracks of each split ("train", "val"), as lists of segments, int16 [24000 * seconds] each.
    """
    rows: list[PairRow] = []
    files: dict[str, np.ndarray] = {}
    for split, tracks_of_split in tracks.items():
        (folder / split).mkdir(parents=True)
        for number, segments in enumerate(tracks_of_split):
            for k, pair in enumerate(itertools.pairwise(segments)):
                row = PairRow(f"pair_{len(rows):04d}", split, f"{split} track {number}", seconds * k)
                rows.append(row)
                files.update(zip(row.files, pair, strict=True))

    def write(name: str) -> str:
        write_wav(folder / name, files[name], SAMPLE_RATE)
        return digest_of(files[name])

    digests = dict(zip(files, read_ahead(write, files), strict=True))
    write_metadata(folder / "metadata.txt", {"segment_duration": str(seconds)}, {}, [], rows, digests)


def write_noise_dataset(folder: Path, pairs: int, seconds: int) -> None:
    """Write a dataset of distinct segments of noise: one track for training, one with a tenth of the pairs."""
    samples = SAMPLE_RATE * seconds
    noise = np.random.default_rng(0).integers(-9999, 9999, samples + pairs + 2, dtype=np.int16)
    segments = [noise[start : start + samples] for start in range(pairs + 2)]
    last = len(segments) - pairs // 10 - 1
    write_dataset(folder, {"train": [segments[:last]], "val": [segments[last:]]}, seconds)


def about_this_run() -> dict[str, str]:
    """Machine, versions and commit."""
    return {
        "machine": f"{available_cores()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "commit": commit(),
    }
