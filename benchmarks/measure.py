"""What the benchmarks share: a row of the table, and timing two sides in turn."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Row:
    """One line of the table: how many times better than what it is measured against."""

    subject: str
    against: str
    ratio: float
    goal: float | None  # None: as much as there is
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "reached" if self.ratio >= self.goal else "missed"


def best_of_alternating(first: Callable, second: Callable, rounds: int = 3) -> tuple[float, float]:
    """Seconds of the fastest call of each, called in turn so that a noisy machine is noisy to both."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, call in enumerate((first, second)):
            started = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - started)
    return best[0], best[1]


def peak_memory() -> int:
    """Bytes of this process. On Linux getrusage would count what its parent had when it started this one."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
