"""The settings of a training run. Each is a flag of train_simple_ddp.py.

The defaults are the original experiment's, except that of `attention_dropout` (README, "Departures", 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from common.arguments import (
    cache_setting,
    dataset_setting,
    device_setting,
    file_path,
    number,
    seed_setting,
    setting,
    weights_setting,
)

COUNT = number(int, at_least=1, at_most=10**9)
PROBABILITY = number(float, at_least=0, below=1)


@dataclass(frozen=True)
class TrainConfig:
    dataset_dir: str = dataset_setting()
    checkpoint_dir: str = setting("checkpoints_simple", "folder for checkpoints and metrics.jsonl", type=file_path)
    batch_size: int = setting(16, "pairs per step, for each process", type=COUNT)
    epochs: int = setting(200, "maximum number of epochs", type=COUNT)
    lr: float = setting(1e-4, "AdamW's learning rate", type=number(float, above=0))
    weight_decay: float = setting(0.01, "AdamW's weight decay", type=number(float, at_least=0))
    patience: int = setting(20, "stop after this many epochs without a better validation MSE", type=COUNT)
    scheduler_factor: float = setting(
        0.5, "factor for the learning rate on a plateau", type=number(float, above=0, below=1)
    )
    scheduler_patience: int = setting(
        5, "epochs without improvement before lr is reduced", type=number(int, at_least=0)
    )
    max_grad_norm: float = setting(1.0, "clip gradients with a larger norm to this norm", type=number(float, above=0))
    checkpoint_every: int = setting(10, "number of epochs between checkpoint_epoch_N.pt files", type=COUNT)
    num_layers: int = setting(4, "transformer layers", type=number(int, at_least=1, at_most=1000))
    num_heads: int = setting(8, "attention heads", type=number(int, at_least=1, at_most=128))
    dropout: float = setting(0.1, "dropout on embeddings, residual branches and feed-forward", type=PROBABILITY)
    attention_dropout: float = setting(
        0.0, "dropout on attention probabilities; the original had 0.1 (README, Departures, 4)", type=PROBABILITY
    )
    num_processes: int | None = setting(
        None, "processes on this machine (default: one per GPU, else 1)", type=number(int, at_least=1, at_most=1024)
    )
    device: str = device_setting()
    precision: str = setting("auto", "auto: bf16 on GPUs that support it, else fp32", choices=("auto", "fp32", "bf16"))
    resume: str = setting(
        "auto",
        "auto: resume the run in checkpoint_dir, if any; never: remove it and start a new one",
        choices=("auto", "never"),
    )
    init_from: str | None = setting(None, "start a new run from this checkpoint's weights", type=file_path)
    no_cache: bool = setting(False, "encode every batch each time it is used; store no embeddings")
    cache_dir: str | None = cache_setting()
    encodec_weights: str = weights_setting()
    seed: int = seed_setting("weights, data order and dropout")
    check_only: bool = setting(False, "only check dataset, weights and devices")


# Settings that a resume does not compare. Some do not affect what is learned. The number of processes, the precision
# and the data are compared separately (`changes` in training/state.py).
IGNORED_ON_RESUME = {
    "dataset_dir", "checkpoint_dir", "epochs", "checkpoint_every", "num_processes", "device", "precision", "resume",
    "init_from", "no_cache", "cache_dir", "encodec_weights", "check_only",
}  # fmt: skip
