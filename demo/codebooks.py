"""The codebooks of `demo/train_codec.py`: fitted by k-means, each to what those before it leave over."""

from __future__ import annotations

import torch
from encodec.model import EncodecModel
from torch.nn import functional as F

KBPS = 6.0  # eight codebooks of 1024 entries, 75 times a second
ROUNDS = 8  # of k-means


@torch.no_grad()
def fit_codebooks(model: EncodecModel, tracks: torch.Tensor, seed: int, frames: int) -> float:
    """Fit the codebooks to that many frames of tracks [N, samples]; the share of their power that is left over."""
    device = next(model.parameters()).device
    embeddings = torch.cat([model.encoder(one[None, None].to(device))[0].T for one in tracks])  # [frames, 128]
    draw = torch.Generator().manual_seed(seed)
    residual = embeddings[torch.randperm(len(embeddings), generator=draw)[:frames].to(device)]
    power = residual.square().sum()
    for layer in model.quantizer.vq.layers:
        codebook = layer._codebook
        codebook.embed.copy_(k_means(residual, codebook.codebook_size, draw))
        codebook.embed_avg.copy_(codebook.embed)
        codebook.cluster_size.fill_(1)
        codebook.inited.fill_(1)
        residual = residual - F.embedding(nearest(residual, codebook.embed), codebook.embed)
    return float(residual.square().sum() / power)


def are_fitted(model: EncodecModel) -> bool:
    return all(bool(layer._codebook.inited) for layer in model.quantizer.vq.layers)


def k_means(points: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
    """Centres [count, 128] of points [N, 128]; one that no point is nearest to moves to a random point."""

    def random_points() -> torch.Tensor:
        return points[torch.randint(len(points), (count,), generator=draw).to(points.device)]

    centres = random_points()
    for _ in range(ROUNDS):
        which = nearest(points, centres)
        sizes = torch.bincount(which, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, which, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), random_points())
    return centres


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The index of the centre nearest to each point, [N]."""
    half_norms = centres.square().sum(dim=1) / 2
    return torch.cat([(some @ centres.T - half_norms).argmax(dim=1) for some in points.split(8192)])


@torch.no_grad()
def quantize(model: EncodecModel, embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, 128, frames] -> the same through the codebooks."""
    return model.quantizer.decode(model.quantizer.encode(embeddings, model.frame_rate, KBPS))


def quantize_and_follow(model: EncodecModel, embeddings: torch.Tensor) -> torch.Tensor:
    """The same for training: the gradient passes as if nothing had happened, the codebooks follow the encoder."""
    for layer in model.quantizer.vq.layers:
        layer._codebook.threshold_ema_dead_code = 0  # else entries would be moved that a small batch seldom meets
    return model.quantizer(embeddings, model.frame_rate, KBPS).quantized
