"""The codec equals EnCodec's own, is frozen, and refuses wrong weights."""

import concurrent.futures
import copy
import hashlib
import socket
import urllib.request
from pathlib import Path

import encodec.model
import pytest
import torch

from audio import weights
from audio.frozen_encodec import load_frozen_encodec
from audio.weights import find_weights
from common.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm")


@pytest.fixture(scope="module")
def codec():
    """EnCodec's architecture at its full size."""
    return load_frozen_encodec("untrained")


@pytest.fixture(scope="module")
def waveforms():
    """Four seconds of two chords over noise, [2, 1, samples]."""
    time = torch.arange(4 * 24000) / 24000
    notes = torch.stack([torch.sin(6.2832 * f * time) for f in (220.0, 331.0)])
    return (0.2 * notes + 0.05 * torch.randn(2, len(time), generator=torch.Generator().manual_seed(1))).unsqueeze(1)


@torch.no_grad()
def test_pieces_give_encodecs_own_result(codec, waveforms):
    got, expected = codec.encode(waveforms), codec.model.encoder(waveforms)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 319, 320, 321, 15999, 16961, 40000])
def test_any_length_is_as_exact_as_encodecs_own(codec, waveforms, samples):
    """EnCodec's own code in float64 gives the exact result. How much float32 is off depends on the CPU."""
    short, exact = waveforms[:, :, :samples], copy.deepcopy(codec.model).double()
    embeddings = exact.encoder(short.double())
    waveform = exact.decoder(embeddings.float().double())
    assert codec.encode(short).shape == embeddings.shape == (2, 128, -(-samples // 320))
    for ours, theirs, expected in (
        (codec.encode(short), codec.model.encoder(short), embeddings),
        (codec.decode(embeddings.float()), codec.model.decoder(embeddings.float()), waveform),
    ):
        assert (ours - expected).abs().max() <= 2 * (theirs - expected).abs().max()


@pytest.mark.parametrize("samples", [1600, 24000, 48000])  # 5, 75 and 150 frames
def test_sound_and_embeddings_do_not_depend_on_the_batch(codec, waveforms, samples):
    batch = waveforms[:, :, :samples].repeat(3, 1, 1) * torch.linspace(0.5, 1, 6)[:, None, None]
    for function, items in ((codec.encode, batch), (codec.decode, codec.encode(batch))):
        together = function(items)
        assert torch.equal(function(items[:5]), together[:5])
        assert all(torch.equal(function(items[k : k + 1]), together[k : k + 1]) for k in range(6))


def test_several_threads_may_encode_at_once(codec, waveforms):
    """The thread that reads a damaged cache entry encodes it again, so several threads may encode at once."""
    before, short = torch.get_num_threads(), waveforms[:, :, :12000]
    expected = codec.encode(short)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(codec.encode, [short] * 8))
    assert torch.get_num_threads() == before


def test_quantize_equals_encodecs_codes_at_6_kbps(codec, waveforms):
    """Equal to EnCodec's own codes, decoded; 8 codebooks of 10 bits at 75 frames a second are 6 kbps."""
    short = waveforms[:, :, :32000]
    ((codes, _),) = codec.model.encode(short)
    assert codes.shape == (2, 8, 100)
    expected = codec.model.quantizer.decode(codes.transpose(0, 1))
    torch.testing.assert_close(codec.quantize(codec.encode(short)), expected)


def test_frozen(codec, waveforms):
    assert not any(p.requires_grad for p in codec.parameters())
    assert not codec.train().training and not codec.model.encoder.training
    short = waveforms[:, :, :3200].clone().requires_grad_(True)
    embeddings = codec.encode(short)
    assert not embeddings.requires_grad and not codec.decode(embeddings).requires_grad


def test_wrong_shapes_say_what_is_expected(codec):
    with pytest.raises(ValueError, match=r"\[B, 1, samples\], got \[2, 2, 100\]"):
        codec.encode(torch.zeros(2, 2, 100))
    for call in (codec.decode, codec.quantize):
        with pytest.raises(ValueError, match=r"\[B, 128, frames\], got \[1, 64, 10\]"):
            call(torch.zeros(1, 64, 10))


def test_untrained_weights_are_always_the_same(codec):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = load_frozen_encodec("untrained")
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.fingerprint == codec.fingerprint and not again.is_pretrained
    assert all(torch.equal(a, b) for a, b in zip(codec.state_dict().values(), again.state_dict().values(), strict=True))


# ------------------------------------------------------------------ weights


def encodecs_own(seed: int) -> encodec.model.EncodecModel:
    torch.manual_seed(seed)
    return encodec.model.EncodecModel.encodec_model_24khz(pretrained=False)


def save_weights(folder: Path, content: object) -> Path:
    """Write a weights file whose name has the first digits of its SHA-256."""
    torch.save(content, folder / "weights")
    digits = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    return (folder / "weights").rename(folder / f"encodec_24khz-{digits}.th")


def test_weights_from_a_file_or_a_folder(tmp_path, waveforms):
    plain = encodecs_own(seed=1)
    path = save_weights(tmp_path, plain.state_dict())
    from_file, from_folder = load_frozen_encodec(str(path)), load_frozen_encodec(str(tmp_path))
    assert from_file.is_pretrained and from_file.fingerprint == from_folder.fingerprint
    short = waveforms[:, :, :8000]
    torch.testing.assert_close(from_file.encode(short), plain.encoder(short).detach(), atol=1e-6, rtol=1e-4)
    (tmp_path / "other").mkdir()
    other = save_weights(tmp_path / "other", encodecs_own(seed=2).state_dict())
    assert load_frozen_encodec(str(other)).fingerprint != from_file.fingerprint


class Payload:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    """Even with a matching hash in its name."""
    path = save_weights(tmp_path, {"model": Payload(tmp_path / "trace")})
    with pytest.raises(UserError, match="not the weights"):
        load_frozen_encodec(str(path))
    assert not (tmp_path / "trace").exists()


def test_the_download_lands_in_torch_hubs_cache(tmp_path, monkeypatch):
    """The real download code, from a folder."""
    (tmp_path / "served").mkdir()
    path = save_weights(tmp_path / "served", content={})
    content = path.read_bytes()
    monkeypatch.setattr(encodec.model, "ROOT_URL", f"file://{path.parent}/")
    monkeypatch.setattr(weights, "WEIGHTS_NAME", path.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    found = find_weights("pretrained")
    assert found == tmp_path / "home" / "hub" / "checkpoints" / path.name
    assert found.read_bytes() == content
    path.unlink()
    assert find_weights("pretrained") == found, "the second time it is not downloaded"


def test_no_weights_and_no_network_gives_one_line(tmp_path, monkeypatch):
    """A proxy accepts connections and never answers, as some compute nodes' networks do."""
    set_timeout = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and seconds / 100))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of the first download
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    message = f"no EnCodec weights at {tmp_path}.*timed out.*test_simple_setup.py"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match=message) as caught:
            find_weights("pretrained")
    assert "--encodec_weights FILE" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_of_weights_is_named():
    with pytest.raises(UserError, match="--encodec_weights none: no file none"):
        find_weights("none")
