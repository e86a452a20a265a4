"""The device a script computes on, and how much of the machine is its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from common.errors import UserError


def pick_device(name: str, index: int = 0) -> torch.device:
    """The torch device that `--device` names: auto, cpu, cuda or mps.

    `auto` prefers CUDA, then Apple's MPS, then the CPU; `index` is the process's number on its node.
    Raises UserError where the machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device cuda: {_why_no_cuda()}; use --device cpu, or auto")
    if name == "mps" and not has_mps:
        raise UserError("--device mps: torch sees no Apple GPU here; use --device cpu, or auto")
    return torch.device(name, index) if name == "cuda" else torch.device(name)


def _why_no_cuda() -> str:
    """What keeps torch from a GPU; a driver older than its CUDA is the usual reason where there is one."""
    driver = torch._C._cuda_getDriverVersion() if hasattr(torch._C, "_cuda_getDriverVersion") else 0
    if driver and torch.version.cuda:
        return (
            f"the NVIDIA driver supports CUDA {driver // 1000}.{driver % 1000 // 10} and torch {torch.__version__} "
            f"was built for CUDA {torch.version.cuda}, or no GPU is visible (CUDA_VISIBLE_DEVICES)"
        )
    return "torch sees no CUDA GPU here"


def choose_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16, from `--precision`: auto is bf16 on GPUs that compute it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def available_cores() -> int:
    """The cores this process may use: the machine's, within a SLURM or taskset allotment and a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _cgroup_cores())))


def free_memory(device: torch.device, processes_on_node: int = 1) -> float:
    """Bytes that one of `processes_on_node` processes may count on, on its own GPU or in the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:  # macOS
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return min(available, _cgroup_memory()) / processes_on_node


def _cgroup_folders(root: str, controller: str) -> list[Path]:
    """This process's cgroup folders, v2 and v1, innermost first; in a container the root itself is its own."""
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


def _cgroup_cores(root: str = "/") -> float:
    """The least CPU quota of this process's cgroups in cores; infinity if there is none."""
    cores = float("inf")
    for folder in _cgroup_folders(root, "cpu"):
        quota = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(quota) == 2 and quota[0] > 0:
            cores = min(cores, quota[0] / quota[1])
    return cores


def _cgroup_memory(root: str = "/") -> float:
    """The bytes left within the least memory limit of this process's cgroups; infinity if there is none."""
    left = float("inf")
    for folder in _cgroup_folders(root, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            values = [*_numbers(folder / limit), *_numbers(folder / usage)]
            if len(values) == 2:
                left = min(left, values[0] - values[1])
    return left


def _numbers(path: Path) -> list[float]:
    """The numbers in a cgroup's file; none if it is missing or says max."""
    try:
        return [float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
