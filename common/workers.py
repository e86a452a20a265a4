"""A pool of processes that survives the death of any of them. Used to read audio files."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import TypeVar

from common.errors import UserError, hold_interrupt

A, B = TypeVar("A"), TypeVar("B")


class Workers:
    """Processes that call functions on many files. If one dies, only the file it was reading is lost.

    Even a single worker is a process of its own, because a crash in a decoder must not end the whole run. Workers are
    forked from a server without threads ("forkserver"), because threads do not survive a fork.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["dataset.segmentation"])  # imported once, not in every worker
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._idle: list[Connection] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            process.terminate()  # the next run redoes half-finished tracks
            process.join()
            connection.close()

    def map(self, function: Callable[[A], B], items: Iterable[A], on_death: Callable[[A, str], B]) -> Iterator[B]:
        """Yield the results in order. If an item's process dies twice, its result is `on_death(item, reason)`.

        The second attempt runs alone, because the first may have been killed for memory that other workers used.
        """
        remaining, results = enumerate(items), {}
        running: dict[Connection, tuple[int, A]] = {}
        suspects: list[tuple[int, A]] = []
        for number in itertools.count():
            while number not in results:
                if not suspects:
                    work = itertools.islice(remaining, self._num_workers - len(running))
                else:
                    work = [] if running else suspects[:1]
                for job in work:
                    running[self._submit(function, job[1])] = job
                if not running:
                    return
                for connection in multiprocessing.connection.wait(list(running)):
                    job = index, item = running.pop(connection)
                    try:
                        results[index], error, trace = connection.recv()
                    except (EOFError, OSError):
                        reason = self._remove_dead(connection)
                        if job not in suspects:
                            suspects.append(job)
                            continue
                        results[index] = on_death(item, reason)
                    else:
                        self._idle.append(connection)
                        if error is not None:
                            raise error from RuntimeError(trace)
                    if job in suspects:
                        suspects.remove(job)
            yield results.pop(number)

    def _submit(self, function: Callable[[A], B], item: A) -> Connection:
        while True:
            connection = self._idle.pop() if self._idle else self._start()
            try:
                connection.send((function, item))
                return connection
            except OSError:  # killed while idle
                self._remove_dead(connection)

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            with hold_interrupt():
                multiprocessing.forkserver.ensure_running()
            process.start()
            theirs.close()
            ours.recv()
        except (EOFError, OSError) as error:
            raise UserError(f"could not start a process to read audio ({error or 'killed'}; out of memory?)") from error
        self._processes[ours] = process
        return ours

    def _remove_dead(self, connection: Connection) -> str:
        """Remove a dead process and return why it died."""
        process = self._processes.pop(connection)
        process.join()
        connection.close()
        ended = process.exitcode
        what = signal.Signals(-ended).name if ended < 0 else f"exit status {ended}"
        return f"crashed the process that read it, twice ({what}{': out of memory?' if what == 'SIGKILL' else ''})"


def _serve(connection: Connection) -> None:
    """Receive (function, item) and send (result, error, traceback) until the other end is closed."""
    exit_with_parent()
    with contextlib.suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            function, item = connection.recv()
            try:
                answer = function(item), None, ""
            except Exception as error:
                answer = None, error, traceback.format_exc()
            connection.send(answer)


def exit_with_parent() -> None:
    """Send this process SIGTERM when its parent is gone, so that a killed run leaves no processes behind."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
