"""Batches of a split's embeddings for the training loop. Used by the worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from common.devices import free_memory
from common.threads import read_ahead


class PairBatches:
    """Batches of a WavPairsDataset on a device. The whole split is kept there if it fits, else read as needed."""

    def __init__(self, dataset: Dataset, device: torch.device, processes_on_node: int = 1):
        self.dataset, self.device = dataset, device
        # On a CPU, reading may have to encode, which would take cores from the training.
        self.reads_ahead = dataset.cache is not None and device.type == "cuda"
        self.table = None
        if dataset.cache is None:
            return
        _, first, rows = np.unique(dataset.segment_keys, return_index=True, return_inverse=True)
        shape = (len(first), dataset.codec.embedding_dim, dataset.num_frames)
        if 4 * np.prod(shape) > free_memory(device, processes_on_node) / 2:
            return
        self.table = torch.empty(shape, device=device)
        self.rows = torch.from_numpy(rows.reshape(-1, 2)).to(device)
        for start in range(0, len(first), 64):
            self.table[start : start + 64] = torch.stack(dataset.embeddings(first[start : start + 64]))

    @property
    def place(self) -> str:
        """Where the embeddings are, for the log."""
        if self.table is not None:
            return f"in memory ({self.device})"
        return "read from the cache as needed" if self.dataset.cache else "encoded at every use"

    def __call__(self, indices: Iterable[int], batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield inputs and targets of the pairs `indices`, in this order: [at most batch_size, C, frames] each."""
        if self.table is not None:
            for chunk in torch.tensor(list(indices), dtype=torch.long, device=self.device).split(batch_size):
                inputs, targets = self.rows[chunk].unbind(1)
                yield self.table[inputs], self.table[targets]
            return
        order, on_cuda = list(indices), self.device.type == "cuda"

        def read(start: int) -> list[torch.Tensor]:
            sides = zip(*self.dataset.__getitems__(order[start : start + batch_size]), strict=True)
            stacked = [torch.stack(side) for side in sides]
            return [side.pin_memory() for side in stacked] if on_cuda else stacked

        starts = range(0, len(order), batch_size)
        for batch in read_ahead(read, starts) if self.reads_ahead else map(read, starts):
            # On Apple's GPU a non-blocking copy may read memory that has been freed.
            yield tuple(side.to(self.device, non_blocking=on_cuda) for side in batch)
