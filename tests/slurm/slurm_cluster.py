"""A real SLURM on this machine for the tests: two nodes with four fake GPUs each, and its own ports, key and folders.

Nothing outside its folder is touched, everything listens for this machine only, and `stop` ends what
`start` started.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def why_not() -> str:
    """Why no SLURM can be started here; "" if one can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    devices = [f"/dev/tty{n}" for n in range(10, 14)]
    return "" if all(map(os.path.exists, devices)) else f"no {' '.join(devices)} to serve as pretend GPUs"


class Cluster:
    """The daemons, and what the tests ask of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        freezer = Path("/sys/fs/cgroup/freezer")
        unified = Path("/sys/fs/cgroup/cgroup.controllers")
        usable = freezer.is_dir() and os.access(freezer, os.W_OK) and not unified.exists()
        self.proctrack = "proctrack/cgroup" if usable else "proctrack/linuxproc"
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")

    def start(self) -> None:
        host = socket.gethostname().split(".")[0]
        values = {"HOST": host, "DIR": str(self.folder), "PROCTRACK": self.proctrack}
        values |= {f"PORT{n}": str(port) for n, port in enumerate(_free_ports(3))}
        text = re.sub(r"@(\w+)@", lambda match: values[match[1]], (HERE / "slurm.conf").read_text())
        (self.folder / "slurm.conf").write_text(text)
        for name in ("gres.conf", "cgroup.conf"):
            shutil.copy(HERE / name, self.folder / name)
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        munge = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log",
                 "seed-file": "munged.seed"}  # fmt: skip
        _run("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in munge.items()))
        _run("slurmctld")
        for node in NODES:
            _run("slurmd", "-N", node)
        self.until(lambda: _run("sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle"] * 4, 60, "idle nodes")

    def stop(self) -> None:
        """End all jobs, then the daemons that the pid files name."""
        with contextlib.suppress(subprocess.SubprocessError):
            _run("scancel", "--user=root", check=False)
            self.until(lambda: not _run("squeue", "-h", check=False).strip(), 45, "an empty queue")
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                self.until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 20, f"the end of {name}")

    def job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job` as a dictionary: JobState, ExitCode, Restarts, Reason, ..."""
        text = _run("scontrol", "show", "job", "--oneliner", job_id)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def wait(self, job_id: str, *states: str, timeout_s: float = 90) -> dict[str, str]:
        """Wait until the job is in one of `states` (default: it has ended)."""
        wanted = states or ENDED
        self.until(lambda: self.state(job_id) in wanted, timeout_s, f"job {job_id} {'/'.join(wanted)}")
        return self.job(job_id)

    def start_requeued(self, job_id: str) -> None:
        """Start a requeued job now. SLURM would hold it back for two minutes."""
        self.wait(job_id, "PENDING")
        time.sleep(
            3
        )  # within a second of the requeue, SLURM revokes the old credential and would end the new start too
        _run("scontrol", "update", f"jobid={job_id}", "StartTime=now")

    @staticmethod
    def until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"no {what} within {timeout_s} s")
            time.sleep(0.1)


def workers(job_id: str) -> dict[int, int]:
    """The process id of each rank of a job's training."""
    found = {}
    for pid, command, environment in _processes(job_id):
        if b"train_simple_ddp.py" in command and b"torch.distributed.run" not in command and "RANK" in environment:
            found[int(environment["RANK"])] = pid
    return found


def launcher(job_id: str, node: str) -> int:
    """The process id of the torch.distributed.run that started a node's workers."""
    return next(
        pid
        for pid, command, environment in _processes(job_id)
        if b"torch.distributed.run" in command and environment.get("SLURMD_NODENAME") == node
    )


def _processes(job_id: str) -> Iterator[tuple[int, list[bytes], dict[str, str]]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            items = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            environment = {name: value for name, _, value in (item.partition("=") for item in items)}
            if environment.get("SLURM_JOB_ID") == job_id and command[0].endswith(b"python"):
                yield int(entry.name), command, environment


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
