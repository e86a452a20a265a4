"""The model: a 4-layer, 8-head transformer from one segment's embeddings to the next one's.

    python model_simple_transformer.py        # its layers and its 859,520 trainable parameters

It works on EnCodec's continuous embeddings, [B, 128, T]; there are no tokens.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn


class SimpleTransformer(nn.Module):
    """Predict the next segment's embeddings from one segment's, frame for frame: [B, 128, T] -> [B, 128, T].

    encoding_dim: EnCodec's 128. num_heads, num_layers, dropout: the experiment's 8, 4 and 0.1.
    attention_dropout: dropout on the attention probabilities (README, "Departures", 4).

    The untrained model predicts `channel_regression`, from each channel's mean and gain in the training set
    (`set_statistics`). The head starts at zero and learns the difference from it, in standard deviations.

    Building a model turns off two of torch's attention implementations in the whole process. The eval-mode fast path
    (`torch.backends.mha`) does not use the fused kernel and takes more than twice as long. cuDNN's kernel has been
    reported to give NaNs in the backward pass in bf16.
    """

    def __init__(
        self,
        encoding_dim: int = 128,
        num_heads: int = 8,
        num_layers: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config = settings  # all arguments, so that a checkpoint can rebuild this model
        if encoding_dim % 2 or encoding_dim % num_heads:
            raise ValueError(f"encoding_dim {encoding_dim} must be even and a multiple of num_heads {num_heads}")
        self.register_buffer("mean", torch.zeros(encoding_dim, 1))
        self.register_buffer("std", torch.ones(encoding_dim, 1))
        self.register_buffer("gain", torch.zeros(encoding_dim, 1))

        self.norm_in = nn.LayerNorm(encoding_dim)
        self.dropout = Dropout(dropout)
        sizes = (encoding_dim, num_heads, dropout, attention_dropout)
        self.layers = nn.ModuleList(transformer_layer(*sizes) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(encoding_dim)
        self.head = nn.Sequential(
            nn.Linear(encoding_dim, 2 * encoding_dim), nn.GELU(), nn.Linear(2 * encoding_dim, encoding_dim)
        )
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.cuda.enable_cudnn_sdp(False)

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, device: str | torch.device = "cpu") -> SimpleTransformer:
        """The trained model in a checkpoint (see training.checkpoint.load_checkpoint), in eval mode."""
        model = cls(**checkpoint["model_config"])
        model.load_state_dict(checkpoint["model"])
        return model.to(device).eval()

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor, gain: torch.Tensor) -> None:
        """Set each channel's mean, standard deviation (above 0) and gain from input to target, [encoding_dim] each."""
        for buffer, values in ((self.mean, mean), (self.std, std), (self.gain, gain)):
            buffer.copy_(values.view(-1, 1))

    def channel_regression(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The untrained model's prediction: the input, pulled towards the training mean by each channel's gain."""
        return self.mean + self.gain * (embeddings - self.mean)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """One segment's embeddings [B, 128, T] -> the prediction of the next segment's, same shape."""
        if embeddings.dim() != 3 or embeddings.shape[1] != len(self.mean) or embeddings.shape[2] == 0:
            raise ValueError(f"expected embeddings [B, {len(self.mean)}, T], got {list(embeddings.shape)}")
        x = ((embeddings - self.mean) / self.std).transpose(1, 2)  # [B, T, 128]
        x = self.dropout(self.norm_in(x) + positions(x.shape[1], x.shape[2], x.device))
        for layer in self.layers:
            x = layer(x)
        y = self.head(self.norm_out(x)).transpose(1, 2)  # [B, 128, T]
        return self.channel_regression(embeddings) + self.std * y.float()


def transformer_layer(
    dim: int, num_heads: int, dropout: float, attention_dropout: float = 0.0
) -> nn.TransformerEncoderLayer:
    """torch's pre-norm GELU layer with a feed-forward of 4 * dim, [B, T, dim] -> [B, T, dim].

    Dropout on the attention probabilities has its own rate. Above 0, torch cannot use its fused attention kernel on a
    CPU, and a training step takes several times as long (README, "Departures", 4).
    """
    layer = nn.TransformerEncoderLayer(
        dim, num_heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    layer.self_attn.dropout = attention_dropout
    layer.dropout, layer.dropout1, layer.dropout2 = Dropout(dropout), Dropout(dropout), Dropout(dropout)
    return layer


class Dropout(nn.Dropout):
    """nn.Dropout that, on a CPU, draws one 64-bit random number for every four elements instead of one for each.

    This saves a tenth of a training step. The probability is exact to 1/65536.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * 65536), 65535)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        keep = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
        return x * (keep * (65536 / (65536 - dropped))).to(x.dtype)


@functools.lru_cache(maxsize=4)
def positions(time: int, dim: int, device: torch.device) -> torch.Tensor:
    """Sinusoidal positions [time, dim] (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(time, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


if __name__ == "__main__":
    print(SimpleTransformer())
    print(f"{count_parameters(SimpleTransformer()):,} trainable parameters")
