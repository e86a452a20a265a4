"""Atomic writes, and locks that let only one process at a time work in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError, name_in_errors

_UMASK = os.umask(0o077)  # read once: this is the only way, and other threads must not create files meanwhile
os.umask(_UMASK)
PARTIAL_FILE = re.compile(r"\..*\.[a-z0-9_]{8}\.part")  # the names that atomic_write uses


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    The rename is atomic on every POSIX file system: `path` has either its old content or all of the new. With
    `sync` the data reaches the disk before the rename, so that even a crash of the node leaves no empty file. That
    takes time; use it for files that cannot be recreated.

    Write with Python's own files, because libraries hide "disk full" errors. An OSError names `path`.
    """
    path = Path(path)
    with name_in_errors(path):
        handle, temporary = _locked_partial_file(path)
        try:
            yield temporary
            if sync:
                os.fsync(handle)
            with contextlib.suppress(OSError):  # some file systems have no permissions
                temporary.chmod(0o666 & ~_UMASK)
            os.replace(temporary, path)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


def _locked_partial_file(path: Path) -> tuple[int, Path]:
    """A new file for the content of `path`, open and locked. The lock shows that its writer is alive."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):
            return handle, Path(name)
        os.close(handle)  # another process removed it before it was locked


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Remove the partial files that killed processes left in `folder`. Those of running processes stay.

    If the file system has no locks, running processes cannot be recognized. Then only files older than an hour are
    removed.
    """
    for entry in os.scandir(folder):
        if PARTIAL_FILE.fullmatch(entry.name):
            with contextlib.suppress(OSError), open(entry.path, "r+b") as file:  # already gone, or a read-only folder
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:
                    if time.time() - entry.stat().st_mtime < 3600:
                        continue
                os.unlink(entry.path)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike, purpose: str) -> Iterator[None]:
    """Lock `folder` for this process and remove partial files. The system frees the lock of a killed process.

    Raises UserError that names the holder. File systems without locks (some Lustre mounts) give no protection.
    """
    path = Path(folder, ".lock")
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            for _ in range(20):  # the holder may not have written its name yet
                file.seek(0)
                if holder := file.read().decode("utf-8", "replace").strip():
                    break
                time.sleep(0.05)
            holder = holder or "another process"
            raise UserError(f"{folder}: in use by {holder}; wait for it or stop it") from error
        except OSError:
            pass
        with name_in_errors(path):
            file.truncate(0)
            file.write(f"{purpose} (process {os.getpid()} on {socket.gethostname()})".encode())
        remove_partial_files(folder)
        yield


def check_output_folder(flag: str, folder: str | os.PathLike | None, is_written: bool = True) -> None:
    """Raise UserError or OSError if `folder` cannot be created or written to. Call it before any long work."""
    for path in [Path(folder), *Path(folder).parents] if folder is not None else []:
        if path.is_dir():
            if is_written:
                with name_in_errors(folder), tempfile.TemporaryFile(dir=path):
                    return
            return
        if os.path.lexists(path):
            raise UserError(f"{flag} {folder}: {path} is not a folder; choose another")
