"""The continuation: three files, a seam without a click, and errors before any work."""

import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import SHARED_MUSIC, checkpoint_of, one_line_error, run_script, write_track

import generate_continuation
from common.errors import UserError
from generate_continuation import continue_embeddings, decode_joined
from model_simple_transformer import SimpleTransformer
from training.checkpoint import save_checkpoint

SCRIPT = "generate_continuation.py"
UNTRAINED = ("--encodec_weights", "untrained", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model for two-second segments, with random weights instead of trained ones."""
    torch.manual_seed(0)
    model = SimpleTransformer(num_layers=1)
    torch.nn.init.normal_(model.head[2].weight, std=0.05)
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pt"
    save_checkpoint(path, checkpoint_of(model, num_samples=48000))
    return path


def seam_is_smooth(waveform: np.ndarray, seam: int) -> bool:
    """Is the step into sample `seam` within the spread of the steps in the 0.1 s around it?"""
    steps = np.abs(np.diff(waveform[seam - 1201 : seam + 1200]))
    return steps[1200] <= np.quantile(np.delete(steps, 1200), 0.999)


def test_three_files_that_belong_together(tmp_path, checkpoint):
    write_track(tmp_path / "my song.flac", 5.3, seed=1, rate=44100, channels=2)
    run_script(
        SCRIPT, tmp_path / "my song.flac", "--checkpoint", checkpoint, "--output_dir", tmp_path / "o", *UNTRAINED
    )
    context, continuation, joined = (
        soundfile.read(tmp_path / "o" / f"my song_{part}.wav")[0] for part in ("context", "continuation", "joined")
    )
    assert len(context) == len(continuation) == 48000 and len(joined) == 96000
    np.testing.assert_array_equal(joined[48000:], continuation)
    original = soundfile.read(tmp_path / "my song.flac")[0].mean(axis=1)
    end = original[-2 * 44100 :]
    assert np.sqrt((context**2).mean()) == pytest.approx(np.sqrt((end**2).mean()), rel=0.35)  # less above 12 kHz
    assert seam_is_smooth(joined, 48000) and np.abs(continuation).max() > 0.001


def test_the_seam_does_not_click_on_true_music(codec):
    """True consecutive embeddings, decoded in one piece and apart: only apart is there a click."""
    time = np.arange(4 * 24000) / 24000
    music = sum(np.sin(2 * np.pi * f * time) for f in (110, 220.5, 331)) * 0.1
    embeddings = codec.encode(torch.from_numpy(music).float().view(1, 1, -1))
    first, second = embeddings[:, :, :150], embeddings[:, :, 150:]
    joined, seam = decode_joined(codec, first, second)
    assert seam == 48000 and joined.shape == (1, 1, 96000)
    assert seam_is_smooth(joined.flatten().numpy(), seam)
    apart = torch.cat([codec.decode(first), codec.decode(second)], dim=2)
    assert not torch.allclose(apart[:, :, seam : seam + 100], joined[:, :, seam : seam + 100], atol=1e-3)


def test_each_segment_is_predicted_from_the_one_before():
    model = SimpleTransformer(num_layers=1).eval()
    torch.nn.init.normal_(model.head[2].weight)
    context = torch.randn(2, 128, 30)
    long = continue_embeddings(model, context, 3)
    assert long.shape == (2, 128, 90)
    assert torch.equal(long[:, :, 60:], continue_embeddings(model, long[:, :, 30:60], 1))


def test_its_own_files_are_replaced_and_others_are_not(tmp_path, checkpoint, monkeypatch):
    song = write_track(tmp_path / "song.wav", 2.5, seed=1)
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(song), "--checkpoint", str(checkpoint), *UNTRAINED])
    monkeypatch.chdir(tmp_path)
    assert generate_continuation.main() == generate_continuation.main() == 0
    for name in ("song_joined.wav", "song_context.wav"):
        (own := tmp_path / "continuations" / name).unlink()
        shutil.copy(song, own)
        with pytest.raises(UserError, match=f"{name}: is not from this script"):
            generate_continuation.main()
        assert own.read_bytes() == song.read_bytes()
        own.unlink()


def test_longer_and_quantized(tmp_path, checkpoint):
    write_track(tmp_path / "a.wav", 2.5, seed=1)
    for name, args in (("plain", ()), ("quantized", ("--quantize",))):
        args = (*args, "--num_segments", 3, "--output_dir", tmp_path / name, *UNTRAINED)
        result = run_script(SCRIPT, tmp_path / "a.wav", "--checkpoint", checkpoint, *args)
        assert "UNTRAINED CODEC" in result.stderr
    plain, quantized = (soundfile.read(tmp_path / n / "a_continuation.wav")[0] for n in ("plain", "quantized"))
    assert len(plain) == len(quantized) == 3 * 48000 and not np.array_equal(plain, quantized)


def test_what_cannot_be_continued_is_named_before_any_work(tmp_path, checkpoint):
    good, short = write_track(tmp_path / "good.wav", 3, 1), write_track(tmp_path / "short.wav", 1.5, 2)
    (tmp_path / "text.wav").write_text("no music")
    args = ("--checkpoint", checkpoint, "--output_dir", tmp_path / "o", *UNTRAINED)
    one_line_error(SCRIPT, good, short, *args, says="short.wav: 1.50 s long; a continuation needs at least 2 s")
    one_line_error(SCRIPT, good, tmp_path / "text.wav", *args, says="text.wav: not readable as audio")
    one_line_error(SCRIPT, good, tmp_path / "none.wav", *args, says="none.wav: No such file")
    other = write_track(tmp_path / "sub" / "good.flac", 3, 3)
    one_line_error(SCRIPT, good, other, *args, says="would overwrite the continuation of")
    assert not (tmp_path / "o").exists()


def test_two_codecs_do_not_mix(tmp_path, checkpoint):
    content = torch.load(checkpoint, weights_only=True) | {"codec": "encodec_24khz-0123456789ab"}
    save_checkpoint(tmp_path / "other.pt", content)
    track = write_track(tmp_path / "a.wav", 3, 1)
    line = one_line_error(SCRIPT, track, "--checkpoint", tmp_path / "other.pt", *UNTRAINED, says="untrained-1")
    assert "encodec_24khz-0123456789ab" in line


@pytest.mark.skipif(not SHARED_MUSIC.is_dir(), reason="the shared recordings are not here")
def test_real_recordings(tmp_path, checkpoint):
    songs = sorted(SHARED_MUSIC.glob("*.ogg"))
    run_script(SCRIPT, *songs, "--checkpoint", checkpoint, "--output_dir", tmp_path, *UNTRAINED)
    for song in songs:
        joined = soundfile.read(tmp_path / f"{song.stem}_joined.wav")[0]
        assert len(joined) == 96000 and seam_is_smooth(joined, 48000)
