"""What the benchmarks share: rows of a table, timing, the project's own commands, and this machine.

Used by run_benchmarks.py, gpu.py and the studies.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from common.machine import available_cores
from training.log import commit

ROOT = Path(__file__).parents[1]
HEADER = "| subject | measured against | ratio | goal | |\n|---|---|---|---|---|"


@dataclass
class Row:
    """One line of the table: a ratio to what it is measured against."""

    subject: str
    against: str
    ratio: float
    goal: float | None  # None: there is no goal
    note: str = ""

    def __str__(self) -> str:
        goal = "—" if self.goal is None else f"≥ {self.goal:.2g} {'reached' if self.ratio >= self.goal else 'missed'}"
        return f"| {self.subject} | {self.against} | {self.ratio:.2f} | {goal} | {self.note} |"


def best_of_alternating(first: Callable, second: Callable, rounds: int = 3) -> tuple[float, float]:
    """The seconds of each function's fastest call. The functions take turns, so that other work slows all of them."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, call in enumerate((first, second)):
            started = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - started)
    return best[0], best[1]


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


def replace_everywhere(function: Callable, replacement: Callable) -> None:
    """Replace a function in every module that has imported it."""
    for module in list(sys.modules.values()):
        if getattr(module, function.__name__, None) is function:
            setattr(module, function.__name__, replacement)


def about_this_run() -> dict[str, str]:
    """Machine, versions and commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return {
        "machine": f"{available_cores()} cores, {model}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "commit": commit(),
    }
