"""EnCodec's causal 24 kHz mono architecture, with any width and number of codebooks. Used by weights.py and demo/."""

from __future__ import annotations

import warnings

import torch
from encodec.model import EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer

from audio.segments import SAMPLE_RATE

HOP_LENGTH = 320  # samples per frame: the product of the encoder's strides 2, 4, 5 and 8
CODEBOOK_KBPS = 0.75  # 75 frames per second, each with a 10-bit index
PUBLISHED_SIZES = {"num_filters": 32, "num_codebooks": 32}  # sizes of the weights that Meta published


def build_model(num_filters: int, num_codebooks: int) -> EncodecModel:
    """An `EncodecModel` with torch's own random weights and empty codebooks.

    num_filters: channels of the first convolution. Each stride doubles them.
    num_codebooks: codebooks of 1024 entries. The published model has 32 for 24 kbit/s; 8 give 6 kbit/s.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
        sizes = {"channels": 1, "dimension": 128, "n_filters": num_filters, "norm": "weight_norm", "causal": True}
        encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**sizes)
    quantizer = ResidualVectorQuantizer(dimension=128, n_q=num_codebooks, bins=1024)
    bandwidths = [kbps for kbps in (1.5, 3.0, 6.0, 12.0, 24.0) if kbps <= CODEBOOK_KBPS * num_codebooks]
    return EncodecModel(encoder, decoder, quantizer, bandwidths, SAMPLE_RATE, channels=1).eval()


def model_from(state: dict[str, torch.Tensor]) -> EncodecModel:
    """Build the model for a state dict in single or half precision. The tensors' shapes give its sizes.

    `embed_avg` may be missing: only training needs it, and it equals the codebook. Raises KeyError or RuntimeError
    if the state belongs to a different kind of model.
    """
    codebooks = [name for name in state if name.endswith("._codebook.embed")]
    model = build_model(len(state["encoder.model.0.conv.conv.bias"]), len(codebooks))
    averages = {f"{name}_avg": state[name] for name in codebooks}
    model.load_state_dict(averages | state)  # copying into the model makes them float32
    return model


def half_precision(model: EncodecModel) -> dict[str, torch.Tensor]:
    """The state dict in half precision and without `embed_avg`. `model_from` reads it."""
    state = model.state_dict().items()
    return {name: value.detach().cpu().half() for name, value in state if not name.endswith("embed_avg")}
