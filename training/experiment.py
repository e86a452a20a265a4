"""Describe and compare what defines an experiment: the loss, the model's settings and the code. Used by the worker."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from audio.codec import Codec
from common.errors import UserError
from training.checkpoint import LAST
from training.config import TrainConfig

ROOT = Path(__file__).parent.parent
# These files define the experiment.
CODE = ("model_simple_transformer.py", "train_simple_worker.py", "training/config.py", "training/state.py")
MSE = "MSE"
REGULARIZERS = ("dropout", "attention_dropout")  # a resume may change these, because the weights still fit

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def describe_loss(loss: Loss, shape: tuple[int, int], device: torch.device) -> str:
    """`MSE` if that is what the loss computes for embeddings of this shape [C, T], else its source in one line."""
    predictions, targets = 30 * torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    if torch.allclose(loss(predictions, targets), F.mse_loss(predictions, targets)):
        return MSE
    function = ast.parse(inspect.getsource(loss)).body[0]
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    code = [" ".join(ast.unparse(line).split()) for line in statements]
    return "; ".join(code).removeprefix("return ")


def hash_code() -> dict[str, str]:
    """The start of the SHA-256 of each file in `CODE`. Checkpoints store these hashes, and a resume compares them."""
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:8] for name in CODE}


def describe_changed_code(changed: dict[str, list]) -> str:
    """A warning for a finished run if the code that defines it has changed since; else empty."""
    files = ", ".join(name for name in CODE if name in changed)
    return files and (
        f"*** {files} changed since this run finished, and nothing was trained. To train with the new code, add "
        "--resume never to replace the run, or choose another --checkpoint_dir"
    )


def model_settings(model_class: type, config: TrainConfig, encoding_dim: int) -> dict[str, object]:
    """The model's arguments: the codec's width, and each setting of the run that has the name of an argument."""
    arguments = [name for name in inspect.signature(model_class).parameters if hasattr(config, name)]
    return {"encoding_dim": encoding_dim} | {name: getattr(config, name) for name in arguments}


def check_settings(model_class: type, config: TrainConfig, codec: Codec, saved: dict | None) -> dict[str, object]:
    """The model's settings. Raises UserError if the saved run has a different model or codec."""
    if codec.embedding_dim % config.num_heads:
        raise UserError(f"--num_heads {config.num_heads}: must divide the {codec.embedding_dim} embedding channels")
    settings = model_settings(model_class, config, codec.embedding_dim)
    if saved:
        remedy = "choose another --checkpoint_dir, or add --resume never"
        path = str(Path(config.checkpoint_dir, LAST))
        check_same_model(saved, path, model_class, settings, codec.fingerprint, remedy)
    return settings


def check_same_model(
    saved: dict, path: str, model_class: type, settings: dict[str, object], codec: str, remedy: str
) -> None:
    """Raise UserError, ending in `remedy`, if the checkpoint at `path` has a different model or codec."""
    # If a setting did not exist yet when the checkpoint was saved, its default applied.
    defaults = {name: argument.default for name, argument in inspect.signature(model_class).parameters.items()}
    then = defaults | saved["model_config"]
    differences = [
        f"{name} {then[name]}, not {value}"
        for name, value in settings.items()
        if name not in REGULARIZERS and then[name] != value
    ]
    if saved["codec"] != codec:
        differences.append(f"codec {saved['codec']}, not {codec}")
    if differences:
        raise UserError(f"{path}: contains a different model ({'; '.join(differences)}); {remedy}")
