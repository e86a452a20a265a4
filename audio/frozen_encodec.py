"""EnCodec's two frozen halves: waveform -> continuous embeddings -> waveform.

The 24 kHz EnCodec at 6 kbps, as the `encodec` package defines it, without gradients. `encode` returns the
encoder's output *before* quantisation, `decode` takes embeddings back to sound, `quantize` snaps them to
the 6 kbps codebooks.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import urllib.error
import warnings
from pathlib import Path

import encodec.model
import torch
from torch import nn

from audio.encodec_on_cpu import PiecewiseEncodec
from common.errors import UserError

WEIGHTS_NAME = "encodec_24khz-d7cc33bc.th"  # the name the encodec package gives the 24 kHz weights
HOP_LENGTH = 320  # samples a frame: the product of the encoder's strides 2, 4, 5 and 8


class FrozenEncodec(nn.Module):
    """EnCodec's encoder, quantiser and decoder in evaluation mode, without gradients.

    Attributes: `model` (the `EncodecModel`), `sample_rate` (24000 Hz), `frame_rate` (75 frames a second),
    `embedding_dim` (128), `bandwidth` (kbit/s), `is_pretrained`, and `fingerprint`, which names the weights:
    embeddings from codecs with different fingerprints do not mix.
    """

    def __init__(self, model: encodec.model.EncodecModel, fingerprint: str, is_pretrained: bool):
        super().__init__()
        _fold_weight_norm(model)
        self.model = model.requires_grad_(False)
        self.fingerprint = fingerprint
        self.is_pretrained = is_pretrained
        self.sample_rate: int = model.sample_rate
        self.frame_rate: int = model.frame_rate
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
    weights: str = "pretrained", device: str | torch.device = "cpu", bandwidth: float = 6.0
) -> FrozenEncodec:
    """Load the frozen 24 kHz codec.

    weights: "pretrained" (torch hub's cache, else a download), "untrained" (the real architecture
    with seeded random weights: its sound is noise), or a file or folder holding the weights, the
    first 8 hex digits of whose SHA-256 stand in the name.
    device: where it runs; on Apple's MPS EnCodec is silently wrong (audiocraft PR 612), so "mps" means the CPU.
    bandwidth: kbit/s of `quantize`, one of 1.5, 3, 6, 12, 24.

    Raises UserError where the weights cannot be had or are not what their name promises.
    """
    device = torch.device(device)
    device = torch.device("cpu") if device.type == "mps" else device
    if device.type == "cuda":
        # Its convolutions and LSTM would run in TF32, which keeps three digits; nothing else here uses cuDNN.
        torch.backends.cudnn.allow_tf32 = False
    # The random weights are drawn here in any case, without disturbing anyone else's random numbers.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
        torch.manual_seed(0)
        model = encodec.model.EncodecModel.encodec_model_24khz(pretrained=False)
        if weights == "untrained":
            with torch.no_grad():
                _draw_untrained(model)
    if weights != "untrained":
        _load_weights(model, find_weights(weights))
    model.set_target_bandwidth(bandwidth)
    # Random weights may differ in their last bits between machines; their recipe is what they are.
    fingerprint = "untrained-1" if weights == "untrained" else f"encodec_24khz-{_digest(model.state_dict())}"
    return FrozenEncodec(model, fingerprint, is_pretrained=weights != "untrained").to(device)


def untrained_banner(codec: FrozenEncodec) -> str:
    """A warning to print before an untrained codec is heard; empty for a trained one."""
    if codec.is_pretrained:
        return ""
    return (
        "*** UNTRAINED CODEC: --encodec_weights untrained has EnCodec's architecture with random weights.\n"
        "*** Everything runs as it would, but whatever it decodes is noise: the sound means nothing."
    )


def find_weights(weights: str) -> Path:
    """The checked file of EnCodec weights that `--encodec_weights` means, downloaded if need be.

    Raises UserError if there is none or its SHA-256 does not begin with the digits in its name.
    """
    if weights == "pretrained":
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
        if not path.exists():
            _download(path)
    else:
        path = Path(weights)
        if path.is_dir():
            candidates = sorted(path.glob("encodec_24khz-*.th"))
            path = path / WEIGHTS_NAME if len(candidates) != 1 else candidates[0]
        if not path.is_file():
            raise UserError(
                f"--encodec_weights {weights}: no file {path}; give 'pretrained', 'untrained' or a path to it"
            )
    match = re.fullmatch(r".+-([0-9a-f]{8,64})\.th", path.name)
    if not match:
        raise UserError(
            f"--encodec_weights {weights}: {path.name} has no checksum in its name; keep it as {WEIGHTS_NAME}"
        )
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if not actual.startswith(match[1]):
        raise UserError(
            f"{path}: damaged or not what its name says (SHA-256 begins {actual[:8]}, not {match[1][:8]}); "
            "delete it and fetch it again"
        )
    return path


def weights_source(weights: str) -> str:
    """What a checkpoint remembers of `--encodec_weights`, so that a later command finds the same codec."""
    return weights if weights in ("pretrained", "untrained") else os.path.abspath(weights)


def _download(path: Path) -> None:
    url = encodec.model.ROOT_URL + WEIGHTS_NAME
    digits = WEIGHTS_NAME.rsplit("-", 1)[1].removesuffix(".th")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a compute node without a network must not hang
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=os.isatty(2))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"no EnCodec weights at {path} and no way to fetch them ({reason}); on a machine with a network run "
            "python test_simple_setup.py, then copy the file there, or name it with --encodec_weights FILE; "
            "TORCH_HOME moves the folder"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _load_weights(model: encodec.model.EncodecModel, path: Path) -> None:
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for a file of another form
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not the weights of the 24 kHz EnCodec ({reason})") from error


def _draw_untrained(model: encodec.model.EncodecModel) -> None:
    """Give random weights the scale of a trained codec.

    As torch initialises them, the signal fades from layer to layer until embeddings vary by 0.0005, where
    Adam's epsilon would stop any training, and the codebooks are zeros. With these gains, found by trial
    on music, embeddings vary by 2 around means of 1.4, and sound comes out as loud as it went in.
    """
    for name, module in model.named_modules():
        if hasattr(module, "weight_g"):
            module.weight_g.mul_(2.5 if name.startswith("encoder") else 1.4)
            module.bias.zero_()
    for depth, layer in enumerate(model.quantizer.vq.layers):
        codebook = layer._codebook
        codebook.embed.normal_(std=0.8**depth)  # each stage refines the one before
        codebook.embed_avg.copy_(codebook.embed)
        codebook.inited.fill_(1)


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _fold_weight_norm(model: nn.Module) -> None:
    """Compute each normalised weight (g v / |v|) once instead of at every call; the result is the same."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
