"""Threads that read files ahead while the caller computes. Used by the dataset and its batches."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = 4  # reading, hashing and writing files all release Python's global lock


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `read(item)` for each item, in order. Threads read at most THREADS items ahead of the caller."""
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
