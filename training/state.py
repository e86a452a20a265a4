"""The state of a training run: what every checkpoint saves and a resume restores. Used by the worker."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from training.config import IGNORED_ON_RESUME, TrainConfig

COUNTERS = ("epoch", "best_mse", "best_epoch", "epochs_without_best", "seconds", "baselines", "train_baseline")


@dataclass
class TrainState:
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    baselines: dict[str, float] = field(default_factory=dict)  # validation loss of predictions that need no training
    train_baseline: float = math.nan  # training loss of the training mean
    epoch: int = 0  # the last finished epoch
    best_mse: float = math.inf
    best_epoch: int = 0
    epochs_without_best: int = 0
    seconds: float = 0.0  # training time so far

    def checkpoint(self) -> dict:
        """The state as tensors (not copied) and plain values."""
        return {
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        } | {name: getattr(self, name) for name in COUNTERS}

    def restore(self, saved: dict, config: TrainConfig, path: Path) -> None:
        """Load `saved`, then apply the settings of `config` that differ from it. `path` is named in errors.

        The scheduler's current learning rate stays, unless `config.lr` differs from the saved run's.
        Raises UserError if the run was saved with a different kind of scheduler.
        """
        if saved["scheduler"].keys() != self.scheduler.state_dict().keys():
            remedy = "choose another --checkpoint_dir, or add --resume never"
            raise UserError(f"{path}: saved with a different scheduler; {remedy}")
        for group in saved["optimizer"]["param_groups"]:
            group["fused"] = self.optimizer.defaults["fused"]  # depends on the device, not on the checkpoint
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        for name in COUNTERS:
            setattr(self, name, saved[name])
        self.scheduler.factor, self.scheduler.patience = config.scheduler_factor, config.scheduler_patience
        for group in self.optimizer.param_groups:
            group["weight_decay"] = config.weight_decay
            if config.lr != saved["config"]["lr"]:
                group["lr"] = config.lr
        if config.epochs > saved["config"]["epochs"] and self.epochs_without_best >= config.patience:
            self.epochs_without_best = 0  # after an early stop, the user wants more epochs

    def reset_best(self, val_mse: float) -> None:
        """Make the current weights the best so far. `val_mse`: their loss on a new validation split."""
        self.best_mse, self.best_epoch, self.epochs_without_best = val_mse, self.epoch, 0
        self.scheduler.best, self.scheduler.num_bad_epochs = val_mse, 0

    def end_epoch(self, val_mse: float, seconds: float) -> bool:
        """Count a finished epoch. Returns whether it is the best so far."""
        self.scheduler.step(val_mse)
        self.epoch += 1
        self.seconds += seconds
        is_best = val_mse < self.best_mse
        self.epochs_without_best = 0 if is_best else self.epochs_without_best + 1
        if is_best:
            self.best_mse, self.best_epoch = val_mse, self.epoch
        return is_best

    def stop_reason(self, config: TrainConfig) -> str:
        """Why training ends here; empty if it goes on."""
        if self.epoch >= config.epochs:
            return "all epochs done"
        if self.epochs_without_best >= config.patience:
            return f"no better validation MSE for {self.epochs_without_best} epochs"
        return ""


def changes(saved: dict, now: dict) -> dict[str, list]:
    """The settings, code and data that differ from the saved run: {name: [saved, now]}.

    saved, now: dictionaries with `config`, `code`, `loss`, `world_size`, `precision` and `data`, as in a checkpoint.
    """
    # If a setting did not exist yet when the run was saved, its default applied.
    then, here = dataclasses.asdict(TrainConfig()) | saved["config"], now["config"]
    changed = {
        name: [then[name], value]
        for name, value in here.items()
        if name not in IGNORED_ON_RESUME and then[name] != value
    }
    for file, digest in now["code"].items():
        if saved["code"].get(file) != digest:
            changed[file] = [saved["code"].get(file, "unknown"), digest]
    for name, key in (("loss", "loss"), ("num_processes", "world_size"), ("precision", "precision")):
        if saved[key] != now[key]:
            changed[name] = [saved[key], now[key]]
    if saved["data"]["hash"] != now["data"]["hash"]:
        old, new = saved["data"]["pairs"], now["data"]["pairs"]
        changed["pairs"] = [old, new if new != old else f"{new} (different ones)"]
    return changed


def derive_seed(*numbers: int) -> int:
    """Combine several whole numbers into one 63-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
