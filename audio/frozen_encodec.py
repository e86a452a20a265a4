"""EnCodec's two frozen halves: waveform -> continuous embeddings -> waveform.

    python test_simple_setup.py                       fetch the pretrained weights (once, on a machine with a network)
    python test_simple_setup.py --encodec_weights F   check a file or folder of weights

The 24 kHz EnCodec at 6 kbps, as the `encodec` package defines it, with the gradient switched off
everywhere. `encode` returns the encoder's output *before* quantisation, `decode` takes embeddings
back to sound, `quantize` snaps them to the 6 kbps codebooks.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import re
import socket
import threading
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path

import encodec.model
import torch
import torch.nn.functional as F
from encodec.modules import SConv1d
from encodec.modules.seanet import SEANetResnetBlock
from torch import nn

from common.arguments import file_path
from common.devices import pick_device
from common.errors import UserError, run_script
from dataset.cache import load_tensors

WEIGHTS_NAME = "encodec_24khz-d7cc33bc.th"  # the name the encodec package gives the 24 kHz weights
HOP_LENGTH = 320  # samples a frame: the product of the encoder's strides 2, 4, 5 and 8
# The convolutions look back 478 samples through all strides (`_samples_looked_back`), which is under 2 frames.
# A piece that starts 3 frames early therefore has every later frame as the whole signal has it.
CONTEXT_FRAMES = 3
PIECE_FRAMES = 80  # so that a piece's activations stay in a core's cache (benchmarks/NOTES.md)
_USE_OF_CORES = threading.Lock()  # how many threads torch uses is a setting of the whole process


class FrozenEncodec(nn.Module):
    """EnCodec's encoder, quantiser and decoder in evaluation mode, without gradient.

    Attributes: `sample_rate` (24000 Hz), `frame_rate` (75 frames a second), `embedding_dim` (128),
    `bandwidth` (kbit/s), `is_pretrained`, and `fingerprint`, which names the weights: embeddings
    from codecs with different fingerprints do not mix.
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

        encoder, decoder = model.encoder.model, model.decoder.model
        lstm_at = next(i for i, layer in enumerate(encoder) if type(layer).__name__ == "SLSTM")
        self._encoder_convolutions, self._encoder_end = encoder[:lstm_at], encoder[lstm_at:]
        self._decoder_start, self._decoder_convolutions = decoder[:2], decoder[2:]
        self._looked_back = _samples_looked_back(self._encoder_convolutions)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncodec:
        """Stay in evaluation mode: the codec is frozen, whatever a surrounding module does."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms [B, 1, samples] at 24 kHz -> embeddings [B, 128, ceil(samples / 320)].

        Equal to EnCodec's own encoder under no_grad, up to the last bits on a CPU: the convolutions are causal, so
        they are run piece by piece, each piece with exactly the past they look back on, and the LSTM over
        the whole. The result for one waveform does not depend on what else is in the batch.
        """
        if waveforms.dim() != 3 or waveforms.shape[1] != 1 or waveforms.shape[2] == 0:
            raise ValueError(f"expected waveforms [B, 1, samples], got {list(waveforms.shape)}")
        num_frames = -(-waveforms.shape[2] // HOP_LENGTH)

        def convolve(waveforms: torch.Tensor, first: int, start: int, stop: int) -> torch.Tensor:
            end = stop * HOP_LENGTH
            if start * HOP_LENGTH >= self._looked_back and end <= waveforms.shape[2]:
                piece = waveforms[:, :, start * HOP_LENGTH - self._looked_back : end]
                return _convolve_unpadded(self._encoder_convolutions, piece)
            # EnCodec pads the beginning, and an end that is no whole frame.
            return self._encoder_convolutions(waveforms[:, :, first * HOP_LENGTH : end])[:, :, start - first :]

        hidden = self._in_pieces(convolve, waveforms.to(self.device), num_frames)
        return self._alike_in_any_batch(self._encoder_end, hidden)

    @torch.no_grad()
    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128, frames] -> waveforms [B, 1, frames * 320] at 24 kHz.

        The LSTM runs over the whole, the upsampling convolutions piece by piece (they look back
        under 2 frames, as the encoder's do).
        """
        self._check_embeddings(embeddings)

        def convolve(hidden: torch.Tensor, first: int, start: int, stop: int) -> torch.Tensor:
            return self._decoder_convolutions(hidden[:, :, first:stop])[:, :, (start - first) * HOP_LENGTH :]

        hidden = self._alike_in_any_batch(self._decoder_start, embeddings.to(self.device))
        return self._in_pieces(convolve, hidden, hidden.shape[2])

    @torch.no_grad()
    def quantize(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128, frames] -> the nearest that `bandwidth` can express, same shape."""
        self._check_embeddings(embeddings)
        quantizer = self.model.quantizer
        codes = quantizer.encode(embeddings.to(self.device), self.frame_rate, self.bandwidth)
        return quantizer.decode(codes)

    def _check_embeddings(self, embeddings: torch.Tensor) -> None:
        if embeddings.dim() != 3 or embeddings.shape[1] != self.embedding_dim or embeddings.shape[2] == 0:
            raise ValueError(f"expected embeddings [B, {self.embedding_dim}, frames], got {list(embeddings.shape)}")

    def _in_pieces(self, convolve: Callable[..., torch.Tensor], batch: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Apply `convolve(item, first frame computed, first frame kept, end)` to pieces of a batch and join them.

        On a CPU each piece of each item is one core's work: its activations stay in that core's cache, no core waits
        for another within a layer, and the bits of an item depend neither on the batch nor on how many cores there are.
        """
        # A GPU has no use for small pieces.
        step = PIECE_FRAMES if self.device.type == "cpu" else num_frames
        pieces = [
            (max(0, start - CONTEXT_FRAMES), start, min(start + step, num_frames))
            for start in range(0, num_frames, step)
        ]
        if self.device.type != "cpu":
            return convolve(batch, *pieces[0])
        with _USE_OF_CORES:
            cores = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                with concurrent.futures.ThreadPoolExecutor(cores) as pool:
                    rows = [[pool.submit(convolve, item, *piece) for piece in pieces] for item in batch.split(1)]
                    return torch.cat([torch.cat([piece.result() for piece in row], dim=2) for row in rows])
            finally:
                torch.set_num_threads(cores)

    @staticmethod
    def _alike_in_any_batch(layers: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Apply layers with an LSTM so that a lone item gets the bits it would get in a batch.

        For a single row the matrix library takes another route than for several, and its last bits
        differ. A batch of one runs as two: cached embeddings then do not depend on how many
        segments happened to be missing together.
        """
        if batch.shape[0] > 1:
            return layers(batch)
        return layers(batch.expand(2, -1, -1))[:1]


def _samples_looked_back(layers: nn.Sequential) -> int:
    """How many samples before its own the first frame of causal convolutions depends on: 478 for the encoder."""
    samples = 0
    for layer in reversed(layers):
        if isinstance(layer, SEANetResnetBlock):
            samples += _samples_looked_back(layer.block)
        elif isinstance(layer, SConv1d):
            convolution = layer.conv.conv
            samples = samples * convolution.stride[0] + convolution.kernel_size[0] - convolution.stride[0]
    return samples


def _convolve_unpadded(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """EnCodec's convolutions without its padding, on a piece that begins with its past: [B, C, samples].

    Inside a signal there is nothing to pad. Without the padded copy of every layer's input, and with the
    activations in place, this takes a fifth less time than EnCodec's own forward, with the same result.
    A convolution's output is shorter than its input by what it looks back; x may be overwritten.
    """
    for layer in layers:
        if isinstance(layer, SConv1d):
            x = layer.conv.conv(x)
        elif isinstance(layer, SEANetResnetBlock):
            shortcut = layer.shortcut.conv.conv(x)
            x = _convolve_unpadded(layer.block, x)
            x += shortcut[:, :, shortcut.shape[2] - x.shape[2] :]
        else:
            x = F.elu_(x)
    return x


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
    """What to tell the user before an untrained codec is heard; empty for a trained one."""
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
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)
    if not actual.startswith(match[1]):
        raise UserError(
            f"{path}: damaged or not what its name says (SHA-256 begins {actual[:8]}, not {match[1][:8]}); "
            "delete it and fetch it again"
        )
    return path


def _sha256(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    url = encodec.model.ROOT_URL + WEIGHTS_NAME
    digits = WEIGHTS_NAME.rsplit("-", 1)[1].removesuffix(".th")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a compute node without a network must say so, not hang
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=os.isatty(2))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"no EnCodec weights at {path} and no way to fetch them ({reason}); on a machine with a network run "
            f"'python test_simple_setup.py', then copy the file there, or name it with --encodec_weights FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _load_weights(model: encodec.model.EncodecModel, path: Path) -> None:
    try:
        model.load_state_dict(load_tensors(path.read_bytes(), "cpu"))
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
    """Multiply each weight by its norm once instead of at every call; the result is the same."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encodec_weights",
        type=file_path,
        default="pretrained",
        help="pretrained, untrained, or a file or folder (default: %(default)s)",
    )
    args = parser.parse_args()
    codec = load_frozen_encodec(args.encodec_weights, pick_device("cpu"))
    print(f"EnCodec {codec.sample_rate} Hz, {codec.bandwidth} kbps, frozen: {codec.fingerprint}")
    return 0


if __name__ == "__main__":
    run_script(main)
