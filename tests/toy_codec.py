"""A codec with none of EnCodec's numbers: 16 kHz, 200 samples per frame, 64 channels, no warm-up."""

from __future__ import annotations

import torch


class ToyCodec:
    """Maps each frame to the lowest 64 of its 200 DCT coefficients, and back."""

    sample_rate, embedding_dim, frame_rate = 16_000, 64, 80.0
    fingerprint, is_pretrained, banner = "toy-1", False, ""
    device = torch.device("cpu")

    def __init__(self, hop_length: int = 200, warmup_frames: int = 0) -> None:
        self.hop_length, self.warmup_frames = hop_length, warmup_frames
        k, n = torch.arange(self.embedding_dim)[:, None], torch.arange(self.hop_length)
        basis = torch.cos(torch.pi / self.hop_length * (n + 0.5) * k)  # DCT-II
        self.basis = basis / basis.norm(dim=1, keepdim=True)  # [C, hop]

    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        padding = -waveforms.shape[2] % self.hop_length
        frames = torch.nn.functional.pad(waveforms[:, 0], (0, padding)).unflatten(1, (-1, self.hop_length))
        return (frames @ self.basis.T).transpose(1, 2)

    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        return (embeddings.transpose(1, 2) @ self.basis).flatten(1).unsqueeze(1)

    def quantize(self, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.round(embeddings * 8) / 8
