"""The small codec of the demo: its weights decode music, a file of weights is read with care, its training resumes."""

import hashlib
import importlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from conftest import ROOT, one_line, run_script

from audio.codec_model import build_model, half_precision, model_from
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
    """Six seconds of the demo's music that the codec has not heard, [1, 1, samples] at 24 kHz."""
    music = importlib.import_module("demo.make_music")
    riffs = [music.Riff(np.random.default_rng([1234, k]), k, 3) for k in range(2)]
    stereo = torch.from_numpy(music.play(np.random.default_rng(1234), riffs))
    return torchaudio.functional.resample(stereo.mean(dim=1), music.SAMPLE_RATE, 24000)[None, None]


def signal_to_noise_db(truth: torch.Tensor, decoded: torch.Tensor) -> float:
    error = truth - decoded[:, :, : truth.shape[2]]
    return float(10 * torch.log10(truth.square().sum() / error.square().sum()))


# ------------------------------------------------------------------ the weights that come with it


def test_the_weights_are_small_and_are_named_apart(demo_codec, codec):
    assert find_weights("demo").stat().st_size <= 5e6
    assert demo_codec.fingerprint.startswith("demo-") and demo_codec.kind == "demo" and not demo_codec.is_pretrained
    assert demo_codec.banner.endswith("small codec of this project, for the demo: not EnCodec's published weights")
    assert codec.fingerprint == "untrained-1" and codec.kind == "untrained" and not codec.is_pretrained
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
def test_in_pieces_it_gives_encodecs_own_result(demo_codec, song):
    expected = demo_codec.model.encoder(song)
    assert (demo_codec.encode(song) - expected).abs().max() <= 1e-5 * expected.abs().max()
    torch.testing.assert_close(demo_codec.decode(expected), demo_codec.model.decoder(expected), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_filters", [2, 16])
def test_any_width_runs_in_pieces(num_filters):
    torch.manual_seed(0)
    codec, waveforms = FrozenEncodec(build_model(num_filters, 8), "test", "demo"), 0.1 * torch.randn(2, 1, 60000)
    expected = codec.model.encoder(waveforms)
    torch.testing.assert_close(codec.encode(waveforms), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.decode(expected), codec.model.decoder(expected), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ files


def save(folder: Path, content: object) -> Path:
    """A file of weights with the first digits of its SHA-256 in its name."""
    torch.save(content, folder / "weights")
    digits = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    return (folder / "weights").rename(folder / f"codec-{digits}.th")


def test_sizes_follow_from_the_file_and_half_precision_keeps_three_digits(tmp_path):
    torch.manual_seed(1)
    model = build_model(num_filters=4, num_codebooks=8)
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_()
    path = save(tmp_path, half_precision(model))
    read = model_from(torch.load(path, weights_only=True))
    assert read.encoder.n_filters == 4 and read.target_bandwidths == [1.5, 3.0, 6.0]
    for name, value in read.state_dict().items():
        wanted = model.state_dict()[name.replace("embed_avg", "embed")]
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-3)
    for found in (load_frozen_encodec(str(path)), load_frozen_encodec(str(tmp_path))):
        assert found.kind == "demo" and found.encode(torch.zeros(1, 1, 640)).shape == (1, 128, 2)


def broken_copies(folder: Path) -> dict[str, Path]:
    shipped = find_weights("demo")
    content = bytearray(shipped.read_bytes())
    content[len(content) // 2] ^= 1
    damaged, renamed = folder / shipped.name, folder / "codec-00000000.th"
    damaged.write_bytes(content)
    shutil.copy(shipped, renamed)
    (folder / "cut").mkdir()
    (folder / "cut" / shipped.name).write_bytes(shipped.read_bytes()[:1000])
    state = torch.load(shipped, weights_only=True)
    half_of_it = {name: value for name, value in state.items() if name.startswith("encoder")}
    (folder / "foreign").mkdir()
    return {
        "damaged": damaged,
        "damaged or misnamed": renamed,
        "SHA-256 starts": folder / "cut" / shipped.name,
        "not the weights": save(folder / "foreign", half_of_it),
    }


def test_a_damaged_renamed_or_foreign_file_is_one_line(tmp_path):
    for says, path in broken_copies(tmp_path).items():
        with pytest.raises(UserError, match=says) as caught:
            load_frozen_encodec(str(path))
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not the weights"):
        load_frozen_encodec(str(save(tmp_path / "cut", [1, 2, 3])))


# ------------------------------------------------------------------ training


def test_an_untrained_start_already_carries_sound(song):
    torch.manual_seed(0)
    model = build_model(8, 8)
    importlib.import_module("demo.codec.resampler_start").start_as_resampler(model)
    codec = FrozenEncodec(model, "test", "demo")
    assert signal_to_noise_db(song, codec.decode(codec.encode(song))) > 8


@torch.no_grad()
def test_measuring_by_ear_changes_the_embeddings_and_not_the_sound(song):
    """And makes noise of one loudness equally audible wherever it is added."""
    torch.manual_seed(0)
    model = build_model(8, 8)
    importlib.import_module("demo.codec.resampler_start").start_as_resampler(model)
    # Embeddings in which the same noise is up to a hundred times as loud in some channels.
    into = model.encoder.model[-1].conv.conv
    scale = torch.logspace(-0.5, 0.5, 128)
    into.weight_g.mul_(scale[:, None, None])
    out_of = model.decoder.model[0].conv.conv
    weight = out_of.weight_v * (out_of.weight_g / out_of.weight_v.norm(dim=(1, 2), keepdim=True))
    out_of.weight_v.copy_(weight / scale[:, None])
    out_of.weight_g.copy_(out_of.weight_v.norm(dim=(1, 2), keepdim=True))
    before = model.decoder(model.encoder(song))

    def spread() -> float:
        """How many times as loud the same noise is in one channel as in another, in power."""
        embeddings, audible = model.encoder(song), []
        for channel in range(0, 128, 16):
            noise = torch.zeros_like(embeddings)
            noise[:, channel] = 0.05 * embeddings.std() * torch.randn(embeddings.shape[2])
            audible.append(float((model.decoder(embeddings + noise) - before).square().mean()))
        return max(audible) / min(audible)

    uneven = spread()
    importlib.import_module("demo.codec.codebooks").measure_by_ear(model, song[0, :, :96000].repeat(8, 1), 0)
    torch.testing.assert_close(model.decoder(model.encoder(song)), before, atol=2e-3, rtol=0)
    assert uneven > 40 and spread() < uneven / 5


def test_varied_music_is_varied_and_follows_from_the_seed():
    track = importlib.import_module("demo.codec.varied_music").track
    tracks = np.stack([track(3, number, 2.0) for number in range(20)])
    assert tracks.dtype == np.float32 and np.isfinite(tracks).all() and np.abs(tracks).max() <= 1
    levels = 20 * np.log10(tracks.std(axis=1) + 1e-9)
    assert levels.max() - levels.min() > 20
    assert np.array_equal(tracks[5], track(3, 5, 2.0)) and not np.array_equal(tracks[5], track(4, 5, 2.0))


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = run_script(TRAIN, "--output_dir", whole, *TINY).stdout
    assert output.count("codebooks fitted") == 1 and "step 6/6: loss" in output and "dB 6 kbit/s" in output
    command = [sys.executable, "-u", ROOT / TRAIN, "--output_dir", killed, *map(str, TINY)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "resuming at step" in run_script(TRAIN, "--output_dir", killed, *TINY).stdout
    states = [torch.load(folder / "state.pt", weights_only=True)["model"] for folder in (whole, killed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert [path.name for path in whole.glob("codec-*.th")] == [path.name for path in killed.glob("codec-*.th")]
    trained = load_frozen_encodec(str(whole))
    assert trained.kind == "demo" and trained.quantize(torch.zeros(1, 128, 3)).shape == (1, 128, 3)

    says = "from a run with --seed 7; choose another --output_dir or delete it"
    one_line(run_script(TRAIN, "--output_dir", whole, "--seed", 8, status=1).stderr, says)
    (whole / "state.pt").write_bytes(b"nothing")
    one_line(run_script(TRAIN, "--output_dir", whole, status=1).stderr, "not a saved training state")
