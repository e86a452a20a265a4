"""A script of this project in a forked process that can be killed at any moment, alone or with all its workers.

It is forked from a process that has imported the script: a kill during imports would show nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import run_script

PATIENCE_S = 300  # far longer than any command takes
END_S = 120  # far longer than a command takes to end after it has lost a process


class SoakError(Exception):
    """Something was wrong after a kill or after the run that followed."""


class Running:
    """A script that runs in a forked process with its own process group. Its output goes to `log`."""

    def __init__(self, script: str, arguments: list[object], log: Path):
        self.log = log
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(script, [str(a) for a in arguments])
        os.setpgid(self.pid, self.pid)  # parent and child both set it, so that it can be killed from now on
        self.status: int | None = None

    def _become(self, script: str, arguments: list[str]) -> None:
        status = 1
        try:
            os.setpgid(0, 0)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            faulthandler.register(signal.SIGUSR1)  # to see where it hangs, if it does
            module = importlib.import_module(script)
            sys.modules["__main__"] = module  # what processes spawned from here import
            sys.argv = [f"{script}.py", *arguments]
            run_script(module.main)
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def members(self) -> list[int]:
        """The living processes of the group, the script's own first."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state not in "ZX":
                    found.append(int(entry.name))
        return sorted(found)

    def workers(self) -> list[int]:
        """The processes that do the work. Excludes Python's own helper, because nothing survives killing it."""
        found = []
        for member in self.members():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{member}/cmdline").read_bytes()
                if b"spawn_main" in command or b"forkserver" in command:
                    found.append(member)
        return found

    def wait(self, until: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
        """Wait for `until`. Returns False if the script ends first or time runs out."""
        end = time.monotonic() + timeout_s
        while not until():
            if self.has_ended() or time.monotonic() > end:
                return False
            time.sleep(0.0005)
        return True

    def finish(self) -> None:
        """Wait until the script ends, which must be with success."""
        self.wait(lambda: False)
        if not self.has_ended():
            self.kill(-self.pid)
            raise SoakError(f"still running after {PATIENCE_S} s\n{self.log.read_text()}")
        if self.status != 0:
            raise SoakError(f"exit status {self.status}\n{self.log.read_text()}")

    def kill(self, victim: int) -> None:
        """kill -9 a process, or its group if negative. All other processes must end by themselves, and soon."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        end = time.monotonic() + END_S
        while not self.has_ended() or self.members():
            if time.monotonic() > end:
                left = self.members()
                if not self.has_ended():
                    os.kill(self.pid, signal.SIGUSR1)
                    time.sleep(1)
                log = self.log.read_text()
                os.killpg(self.pid, signal.SIGKILL)
                raise SoakError(f"{left} still there {END_S} s after kill -9 {victim}, launcher {self.pid}\n{log}")
            time.sleep(0.002)
