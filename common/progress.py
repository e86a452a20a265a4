"""Progress of long work: a bar on a terminal, a line every half minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY_S = 30


class Progress:
    """Call it with (done, total, what), for example (3, 8, "songs continued"). A new `what` restarts the count.

    is_shown: False prints nothing. Use it in all processes but the first.
    """

    def __init__(self, is_shown: bool = True):
        self.is_shown, self.what = is_shown, ""
        self.bar: tqdm | None = None

    def __call__(self, done: float, total: float, what: str) -> None:
        if not self.is_shown:
            return
        if what != self.what:
            self.close()
            self.what, self.started = what, time.monotonic()
            self.printed = self.started
            on_terminal = sys.stderr.isatty()
            self.digits = ".2f" if isinstance(total, float) else "d"
            count = f"{{n:{self.digits}}} of {{total:{self.digits}}} {what}"
            layout = count + " {percentage:3.0f}%|{bar}| {remaining} left"
            self.bar = tqdm(total=total, leave=False, bar_format=layout) if on_terminal else None
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif now - self.printed > LINE_EVERY_S:
            self.printed = now
            left_min = (now - self.started) * (total / done - 1) / 60
            print(f"{done:{self.digits}} of {total:{self.digits}} {what}, {left_min:.0f} min left", flush=True)

    def over(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield the items. Each counts as done when the next is requested."""
        self(0, total, what)
        for done, item in enumerate(items, 1):
            yield item
            self(done, total, what)
        self.close()

    def print(self, line: str) -> None:
        """Print a line on stdout, above the bar."""
        with tqdm.external_write_mode(sys.stdout):
            print(line, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar, self.what = None, ""
