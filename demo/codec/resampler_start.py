"""Initialize EnCodec's encoder and decoder as a resampler, so that audio passes through before any training.

With torch's random weights, the first thousand training steps are a plateau on which no audio passes. But EnCodec's
architecture can express a resampler. Strided convolutions can gather each frame of 320 samples into channels. The last
one can keep the lowest 128 of the frame's 320 frequencies, which is audio up to 4.8 kHz. The decoder can reverse this.
Residual blocks and the LSTM have shortcuts, and ELU(x) is nearly x for small x. A tenth of the random weights stays, so
that training has something to start from.
"""

from __future__ import annotations

import math

import torch
from encodec.model import EncodecModel
from torch import nn

RANDOM_SHARE = 0.1
INNER_GAIN = 0.2  # keeps the signal in the linear part of ELU
EMBEDDING_GAIN = 8.0  # gives embeddings of loud music a deviation of about 1


@torch.no_grad()
def start_as_resampler(model: EncodecModel) -> None:
    """Give an `EncodecModel` with at least 8 filters the weights of a resampler."""
    for name, parameter in [*model.encoder.named_parameters(), *model.decoder.named_parameters()]:
        if "bias" in name:
            parameter.zero_()
        elif "lstm" in name:
            parameter.mul_(RANDOM_SHARE)
    encoder, decoder = list(model.encoder.model), list(model.decoder.model)
    dimension, hop = model.encoder.dimension, int(model.encoder.hop_length)
    frequencies = cosine_transform(dimension)  # [128, 128]
    resampler = frequencies.T @ cosine_transform(hop)[:dimension]  # 320 samples -> 128, [128, 320]

    first, last = convolution(encoder[0]), convolution(decoder[-1])
    mix_in(first, at_tap(torch.eye(first.weight_v.shape[0], 1), first, -1), INNER_GAIN)
    mix_in(last, at_tap(torch.eye(1, last.weight_v.shape[1]), last, -1), 1 / INNER_GAIN)
    into, out_of = convolution(encoder[-1]), convolution(decoder[0])
    mix_in(into, at_tap(widened(frequencies, into), into, -1), EMBEDDING_GAIN / INNER_GAIN)
    mix_in(out_of, at_tap(widened(frequencies.T, out_of), out_of, -1), INNER_GAIN / EMBEDDING_GAIN)

    gathered = 1  # samples in the channels so far
    for stage, stride in enumerate(model.encoder.ratios):
        block, down = encoder[3 * stage + 1], convolution(encoder[3 * stage + 3])
        up, mirrored_block = convolution(decoder[-3 * stage - 4]), decoder[-3 * stage - 3]
        pass_on(block)
        pass_on(mirrored_block)
        coarse, fine = down.weight_v.shape[:2]
        gather = torch.zeros(coarse, fine, stride)
        for time in range(stride):
            if gathered * stride < hop:
                for sample in range(gathered):
                    gather[time * gathered + sample, sample, time] = 1
            else:
                gather[:dimension, :gathered, time] = resampler[:, time * gathered : (time + 1) * gathered]
        nothing = torch.zeros_like(gather)  # a kernel spans the previous stride and this one
        mix_in(down, torch.cat([nothing, gather], dim=2))
        mix_in(up, torch.cat([gather, nothing], dim=2))
        gathered *= stride


def cosine_transform(size: int) -> torch.Tensor:
    """The orthonormal DCT-II, [frequency, sample]."""
    frequency, sample = torch.arange(size)[:, None], torch.arange(size)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * frequency * (sample + 0.5) / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def convolution(module: nn.Module) -> nn.Module:
    """The weight-normalized convolution inside one of EnCodec's wrappers."""
    return module.conv.conv if hasattr(module, "conv") else module.convtr.convtr


def pass_on(block: nn.Module) -> None:
    """Make a residual block pass on its input with little added."""
    shortcut, last = convolution(block.shortcut), convolution(block.block[-1])
    mix_in(shortcut, at_tap(torch.eye(shortcut.weight_v.shape[0]), shortcut, 0))
    mix_in(last, torch.zeros_like(last.weight_v))


def widened(matrix: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Pad a matrix with zeros to the channels of a wider layer."""
    result = torch.zeros(layer.weight_v.shape[:2])
    result[: len(matrix), : matrix.shape[1]] = matrix
    return result


def at_tap(matrix: torch.Tensor, layer: nn.Module, tap: int) -> torch.Tensor:
    """A convolution's weight [out, in, kernel] that is a matrix at one tap and zero at the others."""
    weight = torch.zeros_like(layer.weight_v)
    weight[:, :, tap] = matrix
    return weight


def mix_in(layer: nn.Module, structure: torch.Tensor, gain: float = 1.0) -> None:
    """Set a layer's weight to `structure` plus a share of its random weight."""
    set_weight(layer, gain * (RANDOM_SHARE * weight_of(layer) + structure))


def weight_of(layer: nn.Module) -> torch.Tensor:
    """The effective weight of a weight-normalized layer."""
    return layer.weight_v * (layer.weight_g / layer.weight_v.norm(dim=(1, 2), keepdim=True))


def set_weight(layer: nn.Module, weight: torch.Tensor) -> None:
    layer.weight_v.copy_(weight)
    layer.weight_g.copy_(weight.norm(dim=(1, 2), keepdim=True))
