"""Atomic writes, and locks that let only one process at a time work in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError, name_in_errors

PARTIAL_FILE = re.compile(r"\..*\.[0-9a-f]{8}\.part")  # the names that atomic_write uses


def atomic_write(path: str | os.PathLike, content: bytes | memoryview | str, sync: bool = False) -> None:
    """Write a file: a reader of `path` finds either the old content or all of the new, even if this process is killed.

    With `sync` the data reaches the disk before the file gets its name, so that even a crash of the node leaves no
    empty file. That takes time; use it for files that cannot be recreated. An OSError names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
    with name_in_errors(path):
        try:
            with open(temporary, "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)  # atomic on every POSIX file system
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_partial_files(folder: str | os.PathLike, min_age_s: float = 3600) -> None:
    """Remove what killed processes left in `folder`. Younger files may belong to a running process and stay."""
    for entry in os.scandir(folder):
        if PARTIAL_FILE.fullmatch(entry.name):
            with contextlib.suppress(OSError):  # already gone, or a read-only folder
                if time.time() - entry.stat().st_mtime >= min_age_s:
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
        remove_partial_files(folder, min_age_s=0)
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
