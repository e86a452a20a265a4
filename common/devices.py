"""Choose the device, the precision and how much memory to use."""

from __future__ import annotations

import os

import torch

from common.errors import UserError
from common.machine import cgroup_memory


def pick_device(name: str, index: int = 0) -> torch.device:
    """The torch device that `--device` names: auto, cpu, cuda or mps.

    `auto` prefers CUDA, then Apple's MPS, then the CPU. `index` is the process's number on its node.
    Raises UserError if the machine has no such device.
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
    """Why torch sees no GPU. If there is a driver, it is usually too old for torch's CUDA."""
    driver = torch._C._cuda_getDriverVersion() if hasattr(torch._C, "_cuda_getDriverVersion") else 0
    if driver and torch.version.cuda:
        return (
            f"either the NVIDIA driver is too old (it supports CUDA {driver // 1000}.{driver % 1000 // 10}, torch "
            f"{torch.__version__} was built for {torch.version.cuda}) or no GPU is visible (CUDA_VISIBLE_DEVICES)"
        )
    return "torch sees no CUDA GPU here"


def choose_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16, from `--precision`. auto is bf16 on GPUs with native bf16, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def free_memory(device: torch.device, processes_on_node: int = 1) -> float:
    """Bytes that one of `processes_on_node` processes can use: on its own GPU, or its share of the node's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:  # macOS
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return min(available, cgroup_memory()) / processes_on_node
