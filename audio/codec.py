"""The interface of a codec. The pipeline uses `FrozenEncodec`, but any class with these members works."""

from __future__ import annotations

from typing import Protocol

import torch


class Codec(Protocol):
    """A frozen codec: waveforms to continuous embeddings of C channels, and back."""

    sample_rate: int  # Hz
    hop_length: int  # samples per frame
    embedding_dim: int  # C, the channels of an embedding
    warmup_frames: int  # frames until the effect of the codec's start-up is gone; 0 if there is none
    fingerprint: str  # identifies the weights: embeddings with different fingerprints never mix
    is_pretrained: bool  # whether these are the published weights
    banner: str  # printed before its results; may be empty

    @property
    def frame_rate(self) -> float:
        """Frames per second: sample_rate / hop_length."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms [B, 1, samples] -> embeddings [B, C, ceil(samples / hop_length)]."""

    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, C, frames] -> waveforms [B, 1, frames * hop_length]."""

    def quantize(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, C, frames] -> the same, snapped to the codec's codebooks."""
