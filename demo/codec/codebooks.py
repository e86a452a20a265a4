"""Fit the codebooks for `demo/codec/train_codec.py`, and rescale the embeddings that they quantize."""

from __future__ import annotations

import torch
from encodec.model import EncodecModel
from torch.nn import functional as F

from audio.codec_model import HOP_LENGTH
from demo.codec.resampler_start import convolution, set_weight, weight_of

KBPS = 6.0  # eight codebooks of 1024 entries, 75 times per second
ROUNDS = 8  # iterations of k-means
MEMORY_FRAMES = 8  # how long an embedding affects the decoder's output


@torch.no_grad()
def scale_by_audibility(model: EncodecModel, tracks: torch.Tensor, seed: int) -> None:
    """Rotate and scale the embeddings so that equal distances mean equal errors in the decoded waveform.

    k-means and the search for the nearest codebook entry only see distances between embeddings. Adding a small d to an
    embedding changes the waveform by about J d, so the error is d' M d with M = J' J. After multiplying embeddings by
    M^½, their distances are these errors. J is estimated by adding noise to embeddings of tracks [N, samples]. The
    encoder ends with a convolution and the decoder begins with one. The matrix and its inverse are merged into these,
    so nothing else changes.
    """
    device, dimension = next(model.parameters()).device, model.encoder.dimension
    draw = torch.Generator().manual_seed(seed)
    response = torch.zeros(MEMORY_FRAMES, HOP_LENGTH, dimension, device=device)  # J, by frames after the change
    power = 0.0
    for one in tracks:
        embeddings = model.encoder(one[None, None].to(device))
        noise = 0.03 * embeddings.std() * torch.randn(embeddings.shape, generator=draw).to(device)
        change = (model.decoder(embeddings + noise) - model.decoder(embeddings)).view(-1, HOP_LENGTH)
        for later in range(MEMORY_FRAMES):
            response[later] += change[later:].T @ noise[0].T[: len(change) - later]
        power += float(noise.square().sum()) / dimension
    metric = torch.einsum("fsd,fse->de", response, response) / power**2
    values, vectors = torch.linalg.eigh(metric / metric.trace() * dimension)
    roots = values.clamp_min(1e-3).sqrt()
    first, last = convolution(model.decoder.model[0]), convolution(model.encoder.model[-1])
    set_weight(last, torch.einsum("de,eik->dik", (vectors * roots) @ vectors.T, weight_of(last)))
    last.bias.copy_((vectors * roots) @ vectors.T @ last.bias)
    set_weight(first, torch.einsum("oek,ed->odk", weight_of(first), (vectors / roots) @ vectors.T))


@torch.no_grad()
def fit_codebooks(model: EncodecModel, tracks: torch.Tensor, seed: int, frames: int) -> float:
    """Fit the codebooks to `frames` frames of tracks [N, samples]. Returns the share of power in the residual."""
    device = next(model.parameters()).device
    embeddings = torch.cat([model.encoder(one[None, None].to(device))[0].T for one in tracks])  # [frames, 128]
    draw = torch.Generator().manual_seed(seed)
    residual = embeddings[torch.randperm(len(embeddings), generator=draw)[:frames].to(device)]
    power = residual.square().sum()
    for layer in model.quantizer.vq.layers:
        codebook = layer._codebook
        codebook.embed.copy_(k_means(residual, codebook.codebook_size, draw))
        codebook.embed_avg.copy_(codebook.embed)
        codebook.inited.fill_(1)
        residual = residual - F.embedding(nearest(residual, codebook.embed), codebook.embed)
    return float(residual.square().sum() / power)


def are_fitted(model: EncodecModel) -> bool:
    return all(bool(layer._codebook.inited) for layer in model.quantizer.vq.layers)


def k_means(points: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
    """Centers [count, 128] of points [N, 128]. An empty cluster's center moves to a random point."""

    def random_points() -> torch.Tensor:
        return points[torch.randint(len(points), (count,), generator=draw).to(points.device)]

    centers = random_points()
    for _ in range(ROUNDS):
        which = nearest(points, centers)
        sizes = torch.bincount(which, minlength=count)[:, None]
        sums = torch.zeros_like(centers).index_add_(0, which, points)
        centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), random_points())
    return centers


def nearest(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """The index of the nearest center for each point, [N]."""
    half_norms = centers.square().sum(dim=1) / 2
    return torch.cat([(some @ centers.T - half_norms).argmax(dim=1) for some in points.split(8192)])


@torch.no_grad()
def quantize(model: EncodecModel, embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, 128, frames] -> the same, quantized."""
    return model.quantizer.decode(model.quantizer.encode(embeddings, model.frame_rate, KBPS))
