"""EnCodec's frozen encoder and decoder: waveform -> continuous embeddings -> waveform.

This is the 24 kHz EnCodec at 6 kbps from the `encodec` package. `encode` returns the encoder's output *before*
quantization, `decode` turns embeddings into waveforms, and `quantize` snaps them to the 6 kbps codebooks.
"""

from __future__ import annotations

import torch
from encodec.model import EncodecModel
from torch import nn

from audio.codec_model import HOP_LENGTH
from audio.encodec_on_cpu import PiecewiseEncodec
from audio.weights import DEMO, PRETRAINED, UNTRAINED, digest, load_model

WARMUP_S = 1  # after this, frames are the same as in mid-stream (README, "Departures", 2)
BANNERS = {
    PRETRAINED: "",
    DEMO: "*** DEMO CODEC: this project's small codec, not EnCodec's published weights",
    UNTRAINED: "*** UNTRAINED CODEC: --encodec_weights untrained has EnCodec's architecture with random weights.\n"
    "*** Everything runs, but the decoded sound is only noise.",
}


class FrozenEncodec(nn.Module):
    """EnCodec's encoder, quantizer and decoder in evaluation mode, without gradients.

    Attributes: those of `audio.codec.Codec`, here 24,000 Hz, 320 samples per frame, 75 frames per second and 128
    channels; `model` (the `EncodecModel`), `bandwidth` (kbit/s), and `kind` ("pretrained", "demo" or "untrained").
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
        """Stay in evaluation mode, even if a parent module switches to training."""
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
        """Embeddings [B, 128, frames] -> the same after residual quantization at `bandwidth`."""
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

    weights: "pretrained" (from torch hub's cache or a download), "demo" (the small codec in demo/), "untrained"
    (EnCodec's architecture with seeded random weights, which decodes to noise), or a file or folder of weights. The
    file's name must contain the first 8 hex digits of its SHA-256.
    device: where it runs. "mps" means the CPU, because EnCodec is silently wrong on Apple's MPS (audiocraft PR 612).
    bandwidth: kbit/s of `quantize`: 1.5, 3 or 6. The published weights also allow 12 and 24.

    Raises UserError if the weights are not available or don't match the checksum in their name.
    """
    device = torch.device(device)
    device = torch.device("cpu") if device.type == "mps" else device
    if device.type == "cuda":
        # Otherwise convolutions and the LSTM use TF32, with only three digits. Nothing else here uses cuDNN.
        torch.backends.cudnn.allow_tf32 = False
    model, kind = load_model(weights)
    model.set_target_bandwidth(bandwidth)
    # The last bits of random weights may differ between machines, so their recipe identifies them, not their digest.
    name = {PRETRAINED: "encodec_24khz", DEMO: "demo"}.get(kind)
    fingerprint = f"{name}-{digest(model.state_dict())}" if name else "untrained-1"
    return FrozenEncodec(model, fingerprint, kind).to(device)


def _fold_weight_norm(model: nn.Module) -> None:
    """Compute each normalized weight (g v / |v|) once instead of at every call. The result is the same."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
