"""The cores and memory that this process may use under the limits of SLURM or a container."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """The cores this process may use, within the limits of SLURM, taskset and the container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, cgroup_cores())))


def _cgroup_folders(root: str, controller: str) -> list[Path]:
    """This process's cgroup folders, v2 and v1, innermost first. In a container, its cgroup is the root itself."""
    folders = []
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = Path(root, "sys/fs/cgroup", *([] if controllers == "" else [controller]))
        if controllers == "" or controller in controllers.split(","):
            inside = mount / path.lstrip("/")
            folders += [inside, *(parent for parent in inside.parents if parent.is_relative_to(mount))]
    return folders


def cgroup_cores(root: str = "/") -> float:
    """The smallest CPU quota of this process's cgroups, in cores. Infinity if there is none."""
    cores = float("inf")
    for folder in _cgroup_folders(root, "cpu"):
        quota = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(quota) == 2 and quota[0] > 0:
            cores = min(cores, quota[0] / quota[1])
    return cores


def cgroup_memory(root: str = "/") -> float:
    """The bytes left under the tightest memory limit of this process's cgroups. Infinity if there is none."""
    left = float("inf")
    for folder in _cgroup_folders(root, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            values = [*_numbers(folder / limit), *_numbers(folder / usage)]
            if len(values) == 2:
                left = min(left, values[0] - values[1])
    return left


def _numbers(path: Path) -> list[float]:
    """The numbers in a cgroup file. Empty if it is missing or says max."""
    try:
        return [float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
