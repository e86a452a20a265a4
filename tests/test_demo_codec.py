"""The demo's small codec: its weights decode music, bad weights are refused, and it can be trained."""

import hashlib
import importlib
import io

import numpy as np
import pytest
import torch
import torchaudio
from conftest import ROOT
from forks import run_in_fork

from audio.codec_model import build_model, model_from
from audio.frozen_encodec import FrozenEncodec, load_frozen_encodec
from audio.weights import find_weights
from common.errors import UserError

TRAIN = "demo/codec/train_codec.py"
TINY = ("--joint_steps", 3, "--decoder_steps", 3, "--batch_size", 2, "--num_tracks", 2)
TINY += ("--val_tracks", 1, "--codebook_frames", 1100, "--report_every", 1, "--device", "cpu", "--seed", 7)


@pytest.fixture(scope="module")
def demo_codec() -> FrozenEncodec:
    return load_frozen_encodec("demo")


@pytest.fixture(scope="module")
def song() -> torch.Tensor:
    """Six seconds of the demo's music that the codec was not trained on, [1, 1, samples] at 24 kHz."""
    music = importlib.import_module("demo.make_music")
    riffs = [music.Riff(np.random.default_rng([1234, k]), k, 3) for k in range(2)]
    stereo = torch.from_numpy(music.play(np.random.default_rng(1234), riffs))
    return torchaudio.functional.resample(stereo.mean(dim=1), music.SAMPLE_RATE, 24000)[None, None]


def signal_to_noise_db(truth: torch.Tensor, decoded: torch.Tensor) -> float:
    error = truth - decoded[:, :, : truth.shape[2]]
    return float(10 * torch.log10(truth.square().sum() / error.square().sum()))


# ------------------------------------------------------------------ the weights that come with it


def test_the_weights_are_small_and_are_named_apart(demo_codec):
    assert find_weights("demo").stat().st_size <= 5e6
    assert demo_codec.fingerprint.startswith("demo-") and demo_codec.kind == "demo" and not demo_codec.is_pretrained
    assert demo_codec.banner.endswith("DEMO CODEC: this project's small codec, not EnCodec's published weights")
    untrained = load_frozen_encodec("untrained")
    assert untrained.fingerprint == "untrained-1" and untrained.kind == "untrained" and not untrained.is_pretrained
    assert load_frozen_encodec(str(find_weights("demo"))).fingerprint == demo_codec.fingerprint


def test_the_weights_decode_music_and_shuffled_ones_noise(demo_codec, song):
    embeddings = demo_codec.encode(song)
    assert embeddings.shape == (1, 128, 450)  # 75 a second
    assert signal_to_noise_db(song, demo_codec.decode(embeddings)) > 12
    assert signal_to_noise_db(song, demo_codec.decode(demo_codec.quantize(embeddings))) > 8
    shuffled = model_from(torch.load(find_weights("demo"), weights_only=True))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in shuffled.decoder.parameters():
            order = torch.randperm(parameter.numel(), generator=draw)
            parameter.copy_(parameter.flatten()[order].view(parameter.shape))
    noise = FrozenEncodec(shuffled, "test", "demo").decode(embeddings)
    assert signal_to_noise_db(song, noise) < 1


@torch.no_grad()
@pytest.mark.parametrize("num_filters", [2, 16])
def test_any_width_runs_in_pieces(num_filters):
    torch.manual_seed(0)
    codec, waveforms = FrozenEncodec(build_model(num_filters, 8), "test", "demo"), 0.1 * torch.randn(2, 1, 60000)
    expected = codec.model.encoder(waveforms)
    torch.testing.assert_close(codec.encode(waveforms), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.decode(expected), codec.model.decoder(expected), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ files


def saved(content: object) -> tuple[str, bytes]:
    """A weights file: its name, with the first digits of its SHA-256, and its bytes."""
    file = io.BytesIO()
    torch.save(content, file)
    return f"codec-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.th", file.getvalue()


def test_a_damaged_renamed_or_foreign_file_gives_one_line(tmp_path):
    shipped = find_weights("demo")
    whole = shipped.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    state = torch.load(shipped, weights_only=True)
    for says, name, content in (
        ("damaged or misnamed", shipped.name, flipped),
        ("damaged or misnamed", "codec-00000000.th", whole),
        ("damaged or misnamed", shipped.name, whole[:1000]),
        ("not the weights", *saved({name: value for name, value in state.items() if name.startswith("encoder")})),
        ("not the weights", *saved([1, 2, 3])),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says) as caught:
            load_frozen_encodec(str(tmp_path / name))
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


# ------------------------------------------------------------------ training


@pytest.mark.slow
def test_a_short_training_writes_a_codec_that_loads(tmp_path):
    status, said = run_in_fork(ROOT / TRAIN, "--output_dir", tmp_path, *TINY)
    assert status == 0, said
    assert said.count("codebooks fitted") == 1 and "step 6/6: loss" in said and "dB 6 kbit/s" in said
    trained = load_frozen_encodec(str(tmp_path))
    assert trained.kind == "demo" and trained.quantize(torch.zeros(1, 128, 3)).shape == (1, 128, 3)
