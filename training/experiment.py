"""What defines an experiment besides its settings: the loss, the model's settings and the code. Used by the worker."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from common.errors import UserError
from training.config import TrainConfig

ROOT = Path(__file__).parent.parent
CODE = ("model_simple_transformer.py", "train_simple_worker.py", "training/config.py")  # define the experiment
MSE = "MSE"
REGULARIZERS = ("dropout", "attention_dropout")  # may change in a resume: they leave the meaning of the weights alone

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def describe_loss(loss: Loss) -> str:
    """`MSE` if that is what the loss computes, else the last line of its source."""
    predictions, targets = torch.linspace(-2, 3, 120).view(2, 4, 15), torch.zeros(2, 4, 15)
    if torch.allclose(loss(predictions, targets), (predictions - targets).square().mean()):
        return MSE
    return inspect.getsource(loss).rstrip().splitlines()[-1].strip().removeprefix("return ")


def hash_code() -> dict[str, str]:
    """The SHA-256 of each file in `CODE`, its first 8 digits: a checkpoint keeps them, and a resume compares them."""
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:8] for name in CODE}


def model_settings(model_class: type, config: TrainConfig, encoding_dim: int) -> dict[str, object]:
    """The arguments of the model: the codec's width, and every setting of the run that has an argument's name."""
    arguments = [name for name in inspect.signature(model_class).parameters if hasattr(config, name)]
    return {"encoding_dim": encoding_dim} | {name: getattr(config, name) for name in arguments}


def check_same_model(saved: dict, path: str, settings: dict[str, object], codec: str, remedy: str) -> None:
    """UserError, ending in `remedy`, if the checkpoint at `path` is of another model or codec than this run's."""
    differences = [
        f"{name} {saved['model_config'][name]}, not {value}"
        for name, value in settings.items()
        if name in saved["model_config"] and name not in REGULARIZERS and saved["model_config"][name] != value
    ]
    if saved["codec"] != codec:
        differences.append(f"codec {saved['codec']}, not {codec}")
    if differences:
        raise UserError(f"{path}: holds another model ({'; '.join(differences)}); {remedy}")
