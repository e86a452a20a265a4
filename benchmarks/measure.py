"""What the benchmarks share: a row of the table, and timing two sides in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


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
