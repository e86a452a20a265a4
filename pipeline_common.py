"""What every script here shares: one-line errors, files that appear whole, devices, and cores.

Nothing to run. A user's mistake is raised as `UserError` and ends in one line on stderr with exit
status 1; every file is written beside its final name and renamed, so that no reader ever sees half
of it, whatever kills the writer.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make space, then give the same command again")
REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "mend its permissions or name another folder")
REMEDIES[errno.EFBIG] = "raise the limit on the size of files (ulimit -f), then give the same command again"
PART_FILE = re.compile(r"\..*\.[a-z0-9_]{8}\.part")  # as written_beside names what is not whole yet


class UserError(Exception):
    """A mistake of the user or of the data: one line that names the file or flag and the remedy."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run `main` and leave with its exit status; a `UserError` becomes one line and status 1."""
    name = Path(sys.argv[0]).name
    sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text
    try:
        status = main() or 0
    except UserError as error:
        print(f"{name}: error: {printable(str(error))}", file=sys.stderr, flush=True)
        status = 1
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"{name}: error: {describe_os_error(error)}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)


def describe_os_error(error: OSError) -> str:
    """One line for a full disk, a missing permission and their kind: the file's name, what is wrong, the remedy."""
    where = f"{printable(error.filename)}: " if error.filename is not None else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{where}{error.strerror or error}{remedy}"


def printable(name: str | bytes | os.PathLike) -> str:
    """A file name as one line of valid UTF-8: what is not text, a tab or a newline is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Give an OSError raised within the name of `path`, as one from write() carries none, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def written_beside(path: str | os.PathLike, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds.

    The rename is atomic on every POSIX file system: `path` is either as it was or complete. With
    `sync` the data reaches the disk before the name does, so that not even a crash of the node
    leaves the name on an empty file: worth its time for what cannot be made again.

    Write it with Python's own files: libraries lose the reason when the disk is full. An OSError names `path`.
    """
    path = Path(path)
    with naming(path), contextlib.ExitStack() as stack:
        while True:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
            beside = Path(name)
            # Locked as long as it is written: an unlocked one was left by a killed process (remove_leftovers).
            stack.callback(os.close, handle)
            stack.callback(beside.unlink, missing_ok=True)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if beside.exists():  # not taken for a leftover before the lock was there
                break
        yield beside
        if sync:
            os.fsync(handle)
        beside.chmod(0o666 & ~_umask())
        os.replace(beside, path)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what killed processes left half-written in `folder`, and nothing that is being written now."""
    for part in (Path(entry) for entry in os.scandir(folder) if PART_FILE.fullmatch(entry.name)):
        # Another process may be done with it, the folder read-only, the file system without locks.
        with contextlib.suppress(OSError), open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


@contextlib.contextmanager
def locked(folder: str | os.PathLike, purpose: str) -> Iterator[None]:
    """Hold `folder` for one process, and clear it of leftovers; the system frees the lock with its holder.

    Raises UserError that says who holds it. A file system without locks (some Lustre mounts) is
    used without.
    """
    path = Path(folder, ".lock")
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode("utf-8", "replace").strip() or "another process"
            raise UserError(f"{folder}: in use by {holder}; wait for it or stop it") from error
        except OSError:
            pass
        with naming(path):
            file.truncate(0)
            file.write(f"{purpose}, process {os.getpid()} on {socket.gethostname()}".encode())
        remove_leftovers(folder)
        yield


def job_folder() -> Path | None:
    """The folder in which run_train_simple.sh and its workers leave word for each other, if a job runs this.

    The script puts `stop` there, the workers `stopped` once they have saved, and `error_*` when one fails.
    A file on the shared file system reaches every process on every node; a signal would reach none of them:
    SLURM signals the leader of each task, and torchrun passes no USR signal on.
    """
    folder = os.environ.get("TRAIN_JOB_DIR")
    return Path(folder) if folder else None


def end_with_parent() -> None:
    """SIGTERM for this process when the one that started it is gone: a killed run leaves no processes behind."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def available_cores() -> int:
    """The cores this process may use: a SLURM or taskset allotment rather than the whole machine."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_output_folder(flag: str, folder: str | os.PathLike | None, is_written: bool = True) -> None:
    """UserError or OSError, before any long work, if `folder` can be no folder or not be written to."""
    for path in [Path(folder), *Path(folder).parents] if folder is not None else []:
        if path.is_dir():
            if is_written:
                with naming(folder), tempfile.TemporaryFile(dir=path):
                    return
            return
        if os.path.lexists(path):
            raise UserError(f"{flag} {folder}: {path} is no folder; name another")


def pick_device(name: str, index: int = 0) -> torch.device:
    """The torch device that `--device` names: auto, cpu, cuda or mps.

    `auto` prefers CUDA, then Apple's MPS, then the CPU; `index` is the process's place on its node.
    Raises UserError where the machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA GPU here; use --device cpu, or auto")
    if name == "mps" and not has_mps:
        raise UserError("--device mps: torch sees no Apple GPU here; use --device cpu, or auto")
    return torch.device(name, index) if name == "cuda" else torch.device(name)


def a_path(text: str) -> str:
    """argparse type: what may name a file or folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} names no file or folder")
    return text


def positive_int_to(highest: int) -> Callable[[str], int]:
    """argparse type: a whole number from 1 to `highest`."""
    return lambda text: _number(text, int, f"a whole number from 1 to {highest}", lambda value: 1 <= value <= highest)


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    return _number(text, int, "a whole number from 1 to 1000000000", lambda value: 1 <= value <= 10**9)


def whole_number(text: str) -> int:
    """argparse type: a whole number of at least 0."""
    return _number(text, int, "a whole number from 0 to below 2 to the 63rd", lambda value: 0 <= value < 2**63)


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    return _number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def non_negative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    return _number(text, float, "a number of at least 0", lambda value: 0 <= value < float("inf"))


def finite_float(text: str) -> float:
    """argparse type: a number that is not infinite."""
    return _number(text, float, "a finite number", math.isfinite)


def fraction(text: str) -> float:
    """argparse type: a number from 0 up to, but not including, 1."""
    return _number(text, float, "a number from 0 to below 1", lambda value: 0 <= value < 1)


def _number(text: str, kind: type, wanted: str, is_valid: Callable) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value
