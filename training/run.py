"""A training run: its fixed parts, and what each epoch saves and logs. Used by the worker."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from dataset.batches import PairBatches
from training.checkpoint import BEST, LAST, save_checkpoint
from training.config import TrainConfig
from training.curves import CURVES, draw_curves
from training.distributed import gather, raise_on_rank_zero, rank
from training.log import METRICS, append_metrics, describe_epoch, log
from training.state import TrainState

SYNC_EVERY_S = 10  # waiting for the disk and drawing take 60 ms, a tenth of an epoch on a fast GPU


@dataclass
class Run:
    """What a run needs besides its state."""

    config: TrainConfig
    device: torch.device
    train_data: PairBatches
    val_data: PairBatches
    parallel: torch.nn.Module  # the model, under DistributedDataParallel with several processes
    metadata: dict[str, object]  # what every checkpoint says about the run
    changed: dict[str, list]  # differences to the resumed checkpoint, {name: [saved, now]}, until an epoch logs them
    synced_at: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        return Path(self.config.checkpoint_dir)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.metadata["precision"] == "bf16")

    def save(self, paths: list[Path], state: TrainState, val_mse: float, sync: bool = True) -> None:
        content = state.checkpoint() | self.metadata | {"val_mse": val_mse, "changed": self.changed}
        save_checkpoint(paths, content, sync)


def record_epoch(run: Run, state: TrainState, line: dict[str, object]) -> None:
    """Save and log a finished epoch. `line` goes to metrics.jsonl.

    After a kill, all saved epochs are intact. A power failure can cost the last half minute.
    """
    if run.changed:
        line["changed"], run.changed = run.changed, {}
    kept = run.folder / f"checkpoint_epoch_{state.epoch}.pt" if state.epoch % run.config.checkpoint_every == 0 else None
    is_due = time.monotonic() - run.synced_at >= SYNC_EVERY_S
    if rank() == 0:
        sync = is_due or bool(state.stop_reason(run.config))
        append_metrics(run.folder / METRICS, line, sync)
        paths = [run.folder / BEST if line["best"] else None, kept, run.folder / LAST]  # LAST ends the epoch
        run.save([path for path in paths if path], state, line["val_mse"], sync)
    log(describe_epoch(line, run.config.epochs, state.seconds))  # after saving, so that an epoch in the log is safe
    if is_due and rank() == 0:
        draw_curves(run.folder / CURVES, run.folder / METRICS)
        run.synced_at = time.monotonic()


def check_finite(run: Run, epoch: int, losses: torch.Tensor, grad_norms: torch.Tensor, indices: list[int]) -> None:
    """Raise UserError naming the pairs of the first step, on any process, whose loss or gradient is not finite.

    A NaN in one process's loss makes the gradients of all processes NaN in that step and in all later ones. So the
    cause is the earliest bad step, in the process whose loss is bad if there is one.
    """
    bad = [(step, 0) for step in (~losses.isfinite()).nonzero().flatten().tolist()]
    bad += [(step, 1) for step in (~grad_norms.isfinite()).nonzero().flatten().tolist()]
    first, size = min(bad, default=(math.inf, 0)), run.config.batch_size
    earliest = min(gather(first))
    if earliest[0] < math.inf:
        names = [run.train_data.dataset.names[i] for i in indices[earliest[0] * size :][:size]]
        what = f"the loss is not finite in epoch {epoch}, step {earliest[0] + 1}"
        raise_not_finite(what, names if first == earliest else [], f"; {run.folder / LAST} is from the last good epoch")


def raise_not_finite(what: str, names: list[str], hint: str = "") -> NoReturn:
    """Raise UserError on all processes. The message lists the `names` of pairs from every process."""
    pairs = ", ".join(sorted({name for names in gather(names) for name in names}))
    raise_on_rank_zero(f"{what}, pairs {pairs}; check these pairs, or lower --lr{hint}")
