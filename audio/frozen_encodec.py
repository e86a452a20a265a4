"""EnCodec's two frozen halves: waveform -> continuous embeddings -> waveform.

The 24 kHz EnCodec at 6 kbps, as the `encodec` package defines it, without gradients. `encode` returns the
encoder's output *before* quantisation, `decode` takes embeddings back to sound, `quantize` snaps them to
the 6 kbps codebooks.
"""

from __future__ import annotations

import torch
from encodec.model import EncodecModel
from torch import nn

from audio.codec_model import HOP_LENGTH
from audio.encodec_on_cpu import PiecewiseEncodec
from audio.weights import DEMO, PRETRAINED, UNTRAINED, digest, load_model

WARMUP_S = 1  # after this long, frames are as they would be in mid-stream (README, "Departures", 2)
BANNERS = {
    PRETRAINED: "",
    DEMO: "*** small codec of this project, for the demo: not EnCodec's published weights",
    UNTRAINED: "*** UNTRAINED CODEC: --encodec_weights untrained has EnCodec's architecture with random weights.\n"
    "*** Everything runs as it would, but whatever it decodes is noise: the sound means nothing.",
}


class FrozenEncodec(nn.Module):
    """EnCodec's encoder, quantiser and decoder in evaluation mode, without gradients.

    Attributes: those of `audio.codec.Codec`, here 24,000 Hz, 320 samples a frame, 75 frames a second and 128 channels;
    `model` (the `EncodecModel`), `bandwidth` (kbit/s), and `kind` ("pretrained", "demo" or "untrained").
    """

    def __init__(self, model: EncodecModel, fingerprint: str, kind: str):
        super().__init__()
        _fold_weight_norm(model)
        self.model = model.requires_grad_(False)
        self.fingerprint = fingerprint
        self.kind, self.banner, self.is_pretrained = kind, BANNERS[kind], kind == PRETRAINED
        self.sample_rate: int = model.sample_rate
        self.hop_length: int = HOP_LENGTH
        self.frame_rate: int = model.frame_rate
        self.warmup_frames: int = WARMUP_S * model.frame_rate
        self.bandwidth: float = model.bandwidth
        self.embedding_dim: int = model.encoder.dimension
        self._on_cpu = PiecewiseEncodec(model, HOP_LENGTH)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncodec:
        """Stay in evaluation mode: the codec is frozen, whatever a surrounding module does."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms [B, 1, samples] at 24 kHz -> embeddings [B, 128, ceil(samples / 320)]."""
        if waveforms.dim() != 3 or waveforms.shape[1] != 1 or waveforms.shape[2] == 0:
            raise ValueError(f"expected waveforms [B, 1, samples], got {list(waveforms.shape)}")
        encoder = self._on_cpu.encode if self.device.type == "cpu" else self.model.encoder
        return encoder(waveforms.to(self.device))

    @torch.no_grad()
    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128, frames] -> waveforms [B, 1, frames * 320] at 24 kHz."""
        self._check_embeddings(embeddings)
        decoder = self._on_cpu.decode if self.device.type == "cpu" else self.model.decoder
        return decoder(embeddings.to(self.device))

    @torch.no_grad()
    def quantize(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128, frames] -> the same after residual quantisation at `bandwidth`."""
        self._check_embeddings(embeddings)
        quantizer = self.model.quantizer
        codes = quantizer.encode(embeddings.to(self.device), self.frame_rate, self.bandwidth)
        return quantizer.decode(codes)

    def _check_embeddings(self, embeddings: torch.Tensor) -> None:
        if embeddings.dim() != 3 or embeddings.shape[1] != self.embedding_dim or embeddings.shape[2] == 0:
            raise ValueError(f"expected embeddings [B, {self.embedding_dim}, frames], got {list(embeddings.shape)}")


def load_frozen_encodec(
    weights: str = PRETRAINED, device: str | torch.device = "cpu", bandwidth: float = 6.0
) -> FrozenEncodec:
    """Load the frozen 24 kHz codec.

    weights: "pretrained" (torch hub's cache, else a download), "demo" (the small codec in demo/), "untrained" (the
    real architecture with seeded random weights: its sound is noise), or a file or folder holding the weights,
    the first 8 hex digits of whose SHA-256 stand in the name.
    device: where it runs; on Apple's MPS EnCodec is silently wrong (audiocraft PR 612), so "mps" means the CPU.
    bandwidth: kbit/s of `quantize`, one of 1.5, 3, 6, and with the published weights 12 and 24.

    Raises UserError where the weights cannot be had or are not what their name promises.
    """
    device = torch.device(device)
    device = torch.device("cpu") if device.type == "mps" else device
    if device.type == "cuda":
        # Its convolutions and LSTM would run in TF32, which keeps three digits; nothing else here uses cuDNN.
        torch.backends.cudnn.allow_tf32 = False
    model, kind = load_model(weights)
    model.set_target_bandwidth(bandwidth)
    # Random weights may differ in their last bits between machines; their recipe is what they are.
    name = {PRETRAINED: "encodec_24khz", DEMO: "demo"}.get(kind)
    fingerprint = f"{name}-{digest(model.state_dict())}" if name else "untrained-1"
    return FrozenEncodec(model, fingerprint, kind).to(device)


def _fold_weight_norm(model: nn.Module) -> None:
    """Compute each normalised weight (g v / |v|) once instead of at every call; the result is the same."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
