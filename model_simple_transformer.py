"""The model: a 4-layer, 8-head transformer from one segment's embeddings to the next one's.

    python model_simple_transformer.py        # its layers and its 859,520 trainable parameters

Everything it works on is EnCodec's continuous embedding, [B, 128, T]; there are no tokens.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError, run_script
from dataset.cache import load_tensors, unseal

CHECKPOINT_FORMAT = "jingle_d 2"
# What is read from any checkpoint, by type.
FIELDS = {
    dict: "model model_config baselines identity",
    int: "epoch sample_rate num_samples",
    float: "val_mse",
    str: "codec",
    bool: "codec_is_pretrained",
}


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer, [B, T, dim] -> [B, T, dim].

    The parameters and the result of `nn.TransformerEncoderLayer(dim, heads, 4 * dim, norm_first=True,
    activation="gelu")`, but no dropout on the attention probabilities: with it, torch leaves its fused
    attention kernel and a training step takes many times as long (README, "Departures"). Dropout stays on
    both residual branches and inside the feed-forward.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight)  # as nn.MultiheadAttention does
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.attention_out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        x = x + self._drop(self._attend(self.norm1(x)))
        hidden = self._drop(F.gelu(self.linear1(self.norm2(x))))
        return x + self._drop(self.linear2(hidden))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, dim = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.num_heads, dim // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, heads, T, dim / heads] each
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.attention_out(attended.transpose(1, 2).reshape(batch, time, dim))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.dropout, self.training)


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Zero each element with probability p (to 1/65536) and scale the rest so that the mean stays, in training.

    On a CPU torch's own draws one number an element on one core and takes an eighth of a training step; here a
    64-bit number decides on four elements. Both draw from torch's generator.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    dropped = min(round(p * 65536), 65535)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
    return x * (keep * (65536 / (65536 - dropped))).to(x.dtype)


class SimpleTransformer(nn.Module):
    """Predict the next segment's embeddings from one segment's, frame for frame.

    encoding_dim: EnCodec's 128. num_heads, num_layers, dropout: the document's 8, 4 and 0.1.

    The input is standardised and the output de-standardised with the training set's mean and deviation per
    channel (`set_statistics`); the last layer starts at zero. The untrained model therefore predicts
    the training mean exactly, and training only has to learn what differs from it.
    """

    def __init__(self, encoding_dim: int = 128, num_heads: int = 8, num_layers: int = 4, dropout: float = 0.1):
        super().__init__()
        if encoding_dim % 2 or encoding_dim % num_heads:
            raise ValueError(f"encoding_dim {encoding_dim} must be even and a multiple of num_heads {num_heads}")
        self.config = {
            "encoding_dim": encoding_dim,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "dropout": dropout,
        }
        self.encoding_dim, self.dropout = encoding_dim, dropout
        self.register_buffer("mean", torch.zeros(encoding_dim, 1))
        self.register_buffer("std", torch.ones(encoding_dim, 1))
        self.register_buffer("positions", torch.zeros(0, encoding_dim), persistent=False)
        self.norm_in = nn.LayerNorm(encoding_dim)
        self.layers = nn.ModuleList(EncoderLayer(encoding_dim, num_heads, dropout) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(encoding_dim)
        self.head = nn.Sequential(
            nn.Linear(encoding_dim, 2 * encoding_dim), nn.GELU(), nn.Linear(2 * encoding_dim, encoding_dim)
        )
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set the mean and standard deviation of each channel, [encoding_dim] each, std above 0."""
        self.mean.copy_(mean.view(-1, 1))
        self.std.copy_(std.view(-1, 1))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """One segment's embeddings [B, 128, T] -> the prediction of the next segment's, same shape."""
        if embeddings.dim() != 3 or embeddings.shape[1] != self.encoding_dim or embeddings.shape[2] == 0:
            raise ValueError(f"expected embeddings [B, {self.encoding_dim}, T], got {list(embeddings.shape)}")
        x = ((embeddings - self.mean) / self.std).transpose(1, 2)  # [B, T, 128]
        x = dropout(self.norm_in(x) + self._positions(x), self.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        y = self.head(self.norm_out(x)).transpose(1, 2)  # [B, 128, T]
        return y.float() * self.std + self.mean

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        """Sinusoidal positions [T, 128] (Vaswani et al. 2017, section 3.5), computed once for each length."""
        time = x.shape[1]
        if self.positions.shape[0] < time or self.positions.device != x.device:
            steps = torch.arange(time, device=x.device, dtype=torch.float32)
            rates = torch.exp(
                torch.arange(0, self.encoding_dim, 2, device=x.device) * (-math.log(10000.0) / self.encoding_dim)
            )
            angles = steps[:, None] * rates
            self.positions = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        return self.positions[:time]


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def load_checkpoint(path: str | os.PathLike, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint of this project: tensors and plain values only, nothing in it is executed.

    Raises UserError if the file is missing, damaged or no such checkpoint.
    """
    try:
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder; name a checkpoint in it, best_model.pt for one")
        checkpoint = load_tensors(unseal(Path(path).read_bytes()), device)
        _check_fields(checkpoint)
        simple_transformer_from(checkpoint)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such checkpoint; train first (train_simple_ddp.py) or name one with --checkpoint"
        ) from error
    except (UserError, OSError):
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path}: damaged, or no checkpoint of this project; use another, last.pt for one") from error
    return checkpoint


def _check_fields(checkpoint: dict) -> None:
    """ValueError if a checkpoint does not hold what is read from it, or a size that no training gives it."""
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        raise ValueError(f"its format is not {CHECKPOINT_FORMAT!r}")
    values = [(checkpoint[name], kind) for kind, names in FIELDS.items() for name in names.split()]
    values += [(checkpoint["baselines"][name], float) for name in ("training_mean", "repeat_input")]
    if not all(isinstance(value, kind) for value, kind in values):
        raise ValueError("it holds a value of another type than a training saves")
    model, rate, samples = checkpoint["model_config"], checkpoint["sample_rate"], checkpoint["num_samples"]
    if not 1 <= rate <= samples <= 600 * rate <= 600 * 10**6:
        raise ValueError("its segments are of no length")
    # A layer has a dozen tensors: what is built is no larger than what was read.
    if model["encoding_dim"] != 128 or model["num_layers"] > len(checkpoint["model"]):
        raise ValueError("its model is not of the size of its weights")


def load_simple_transformer(
    checkpoint_path: str | os.PathLike, device: str | torch.device = "cpu"
) -> SimpleTransformer:
    """Rebuild a trained model from what the checkpoint itself says, in evaluation mode on `device`."""
    return simple_transformer_from(load_checkpoint(checkpoint_path), device)


def simple_transformer_from(checkpoint: dict, device: str | torch.device = "cpu") -> SimpleTransformer:
    """The same from a checkpoint that has been read."""
    model = SimpleTransformer(**checkpoint["model_config"])
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval()


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = SimpleTransformer()
    print(model)
    print(f"{count_parameters(model):,} trainable parameters")
    return 0


if __name__ == "__main__":
    run_script(main)
