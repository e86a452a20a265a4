"""Errors that a user can fix become one line on stderr and exit status 1. All others keep their traceback."""

from __future__ import annotations

import contextlib
import errno
import getpass
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run the same command again")
REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "fix its permissions or choose another folder")
REMEDIES[errno.EFBIG] = "raise the limit on file sizes (ulimit -f), then run the same command again"


class UserError(Exception):
    """An error in usage or data. Its message is one line that names the file or flag and the remedy."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status. A `UserError` or `OSError` becomes one line and status 1."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text
    _ensure_user_name()
    try:
        status = main() or 0
    except (UserError, OSError) as error:
        if is_bug(error):
            raise
        print_error(error)
        status = 1
    except KeyboardInterrupt as interrupt:
        print_interrupt(interrupt)
        status = 130
    sys.exit(status)


def _ensure_user_name() -> None:
    """Set a name for a user without a passwd entry (`docker run -u 12345`), because torch.optim looks it up."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["LOGNAME"] = str(os.getuid())


def is_bug(error: Exception) -> bool:
    """Whether an error is an OSError that did not come from the operating system."""
    return isinstance(error, OSError) and error.filename is None and error.errno is None


def print_error(error: UserError | OSError) -> None:
    """Print an error as one line on stderr."""
    text = describe_os_error(error) if isinstance(error, OSError) else printable(str(error))
    print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr, flush=True)


def print_interrupt(interrupt: KeyboardInterrupt) -> None:
    """Print a Ctrl-C as one line on stderr, followed by the exception's arguments."""
    print("; ".join([f"{Path(sys.argv[0]).name}: interrupted", *map(str, interrupt.args)]), file=sys.stderr, flush=True)


def describe_os_error(error: OSError) -> str:
    """One line for an error such as a full disk or a missing permission: the file, the problem, the remedy."""
    where = f"{printable(error.filename)}: " if error.filename is not None else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{where}{error.strerror or error}{remedy}"


def printable(name: str | bytes | os.PathLike) -> str:
    """A file name as one line of valid UTF-8. Undecodable bytes, tabs and newlines are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def hold_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the block ends. Processes started within never see it, unless they unblock SIGINT."""
    multiprocessing.resource_tracker.ensure_running()  # otherwise it starts within the block, which unblocks SIGINT
    held: list[tuple] = []
    # New processes inherit the blocked signal. In this process another thread may still receive it, so hold it here.
    handler = signal.signal(signal.SIGINT, lambda *signal_and_frame: held.append(signal_and_frame))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
        if held and callable(handler):
            handler(*held[0])


@contextlib.contextmanager
def name_in_errors(path: str | os.PathLike) -> Iterator[None]:
    """Set the file name of any OSError from the block. write() sets none, and a temporary file has another name."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise
