"""The architecture: EnCodec's causal 24 kHz mono model of any width and any number of codebooks."""

from __future__ import annotations

import warnings

import torch
from encodec.model import EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer

from audio.segments import SAMPLE_RATE

HOP_LENGTH = 320  # samples a frame: the product of the encoder's strides 2, 4, 5 and 8
CODEBOOK_KBPS = 0.75  # 75 frames a second, each with an index of 10 bits
PUBLISHED_SIZES = {"num_filters": 32, "num_codebooks": 32}  # of the weights that Meta published


def build_model(num_filters: int, num_codebooks: int) -> EncodecModel:
    """An `EncodecModel` with torch's own random weights and empty codebooks.

    num_filters: channels of the first convolution; they double at each stride.
    num_codebooks: of 1024 entries each; 32 are the published model's 24 kbit/s, 8 are 6 kbit/s.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
        sizes = {"channels": 1, "dimension": 128, "n_filters": num_filters, "norm": "weight_norm", "causal": True}
        encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**sizes)
    quantizer = ResidualVectorQuantizer(dimension=128, n_q=num_codebooks, bins=1024)
    bandwidths = [kbps for kbps in (1.5, 3.0, 6.0, 12.0, 24.0) if kbps <= CODEBOOK_KBPS * num_codebooks]
    return EncodecModel(encoder, decoder, quantizer, bandwidths, SAMPLE_RATE, channels=1).eval()


def model_from(state: dict[str, torch.Tensor]) -> EncodecModel:
    """The model that a state dict, in single or half precision, is of; its sizes follow from the tensors' shapes.

    `embed_avg`, which only training needs, may be missing: it is the codebook. Raises KeyError or RuntimeError
    if the state is of another kind of model.
    """
    codebooks = [name for name in state if name.endswith("._codebook.embed")]
    model = build_model(len(state["encoder.model.0.conv.conv.bias"]), len(codebooks))
    averages = {f"{name}_avg": state[name] for name in codebooks}
    model.load_state_dict(averages | state)  # copying into the model makes them float32
    return model


def half_precision(model: EncodecModel) -> dict[str, torch.Tensor]:
    """The state that `model_from` takes back, in half precision and without `embed_avg`."""
    state = model.state_dict().items()
    return {name: value.detach().cpu().half() for name, value in state if not name.endswith("embed_avg")}
