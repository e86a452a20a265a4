"""Find and verify the codec's weights, and load the model. Used by frozen_encodec.py."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import urllib.error
from pathlib import Path

import encodec.model
import torch

from audio.codec_model import PUBLISHED_SIZES, build_model, model_from
from common.errors import UserError

PRETRAINED, DEMO, UNTRAINED = "pretrained", "demo", "untrained"  # values of --encodec_weights other than paths
WEIGHTS_NAME = "encodec_24khz-d7cc33bc.th"  # the file name in the encodec package
DEMO_FOLDER = Path(__file__).parent.parent / "demo"  # contains codec-XXXXXXXX.th, made by demo/codec/train_codec.py


def load_model(weights: str) -> tuple[encodec.model.EncodecModel, str]:
    """Load the model for `--encodec_weights`. Its kind is "pretrained", "demo" (any smaller model) or "untrained".

    Raises UserError if the weights are not available or don't match the checksum in their name.
    """
    # Building a model draws random weights. The fork leaves the caller's random state unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if weights == UNTRAINED:
            model = build_model(**PUBLISHED_SIZES)
            _draw_untrained(model)
            return model, UNTRAINED
        path = find_weights(weights)
        try:
            model = model_from(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises many kinds of errors for other files
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path}: not the weights of the 24 kHz EnCodec ({reason})") from error
    is_published = model.encoder.n_filters == PUBLISHED_SIZES["num_filters"]
    return model, PRETRAINED if is_published else DEMO


def find_weights(weights: str) -> Path:
    """The verified weights file for `--encodec_weights`, downloaded if necessary.

    Raises UserError if there is none or its SHA-256 does not start with the digits in its name.
    """
    if weights == PRETRAINED:
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
        if not path.exists():
            _download(path)
    else:
        path = DEMO_FOLDER if weights == DEMO else Path(weights)
        if path.is_dir():
            candidates = [*path.glob("encodec_24khz-*.th"), *path.glob("codec-*.th")]
            name = "codec-*.th" if weights == DEMO else WEIGHTS_NAME
            path = candidates[0] if len(candidates) == 1 else path / name
        if not path.is_file():
            raise UserError(
                f"--encodec_weights {weights}: no file {path}; use 'pretrained', 'demo', 'untrained' or the file's path"
            )
    match = re.fullmatch(r".+-([0-9a-f]{8,64})\.th", path.name)
    if not match:
        raise UserError(
            f"--encodec_weights {weights}: {path.name} has no checksum in its name; rename it to {WEIGHTS_NAME}"
        )
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if not actual.startswith(match[1]):
        raise UserError(
            f"{path}: damaged or misnamed (its SHA-256 starts with {actual[:8]}, not {match[1][:8]}); "
            "delete it and download it again"
        )
    return path


def weights_source(weights: str) -> str:
    """The form of `--encodec_weights` that a checkpoint stores, so that later commands find the same codec."""
    return weights if weights in (PRETRAINED, DEMO, UNTRAINED) else os.path.abspath(weights)


def digest(state: dict[str, torch.Tensor]) -> str:
    """A hash of every name and value in a state dict, 12 hex digits."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


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
            f"no EnCodec weights at {path}, and the download failed ({reason}); run python test_simple_setup.py on a "
            "machine with network access, then copy the file to that path or pass it with --encodec_weights FILE; set "
            "TORCH_HOME to use another folder, or use --encodec_weights demo"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@torch.no_grad()
def _draw_untrained(model: encodec.model.EncodecModel) -> None:
    """Give random weights the scale of a trained codec.

    With torch's initialization the signal fades from layer to layer. Embeddings then vary by 0.0005, where Adam's
    epsilon would stop any training, and the codebooks are zeros. These gains were found by trial on music: embeddings
    vary by 2 around means of 1.4, and the output is as loud as the input.
    """
    for name, module in model.named_modules():
        if hasattr(module, "weight_g"):
            module.weight_g.mul_(2.5 if name.startswith("encoder") else 1.4)
            module.bias.zero_()
    for depth, layer in enumerate(model.quantizer.vq.layers):
        codebook = layer._codebook
        codebook.embed.normal_(std=0.8**depth)  # each stage refines the previous one
        codebook.embed_avg.copy_(codebook.embed)
        codebook.inited.fill_(1)
