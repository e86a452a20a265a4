"""torch.distributed helpers that also work in a single process."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(rank: int, world_size: int, device: torch.device) -> Iterator[None]:
    """Join the other processes at MASTER_ADDR:MASTER_PORT within the block. A single process needs no group."""
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _stdout_discarded():  # Gloo prints "Rank 0 is connected to ..." and cannot be told not to
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=datetime.timedelta(hours=1))
    yield
    if world_size > 1:  # not after an error: the others may be waiting in a collective
        dist.destroy_process_group()


@contextlib.contextmanager
def _stdout_discarded() -> Iterator[None]:
    """Discard what C++ code prints to file descriptor 1."""
    if sys.stdout is None:  # stdout is closed, so the descriptor may belong to another file
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def shard_indices(count: int) -> list[int]:
    """This process's share of `count` items. Each item belongs to exactly one process."""
    return list(range(rank(), count, world_size()))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of a float64 CPU tensor over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(value: object) -> list:
    """One picklable value from each process, in the order of ranks."""
    values: list = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(value: object) -> object:
    """The first process's picklable value."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def raise_on_rank_zero(message: str) -> NoReturn:
    """Raise UserError on the first process, for an error that occurs on all. The others wait until they are stopped."""
    if rank() > 0:
        dist.barrier()
    raise UserError(message)


def data_parallel(model: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
    """Wrap `model` in DistributedDataParallel, or return it unchanged if there is only one process.

    After its first backward pass, DDP rearranges its buckets. That changes the order in which the gradients of three or
    more processes are added. So this first runs one backward pass on `example` and discards its gradients. All training
    steps then add in the same order, whether the run starts or resumes.
    """
    if world_size() == 1:
        return model
    ids = [example.device.index] if example.device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    parallel(example).sum().backward()
    model.zero_grad()
    return parallel
