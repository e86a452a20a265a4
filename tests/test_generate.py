"""Continuations: three files, no click at the seam, any input, and errors before any work."""

import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from audio_files import FFMPEG
from audio_zoo import DEADLY, ZOO
from conftest import CODEC, checkpoint_of, noise, write_track

from generate_continuation import continue_embeddings, decode_joined, encode_end, read_end
from model_simple_transformer import SimpleTransformer
from training.checkpoint import save_checkpoint

SCRIPT, RATE = "generate_continuation.py", 24000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with random weights for segments of one second."""
    torch.manual_seed(0)
    model = SimpleTransformer(num_layers=1)
    torch.nn.init.normal_(model.head[2].weight, std=0.05)
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pt"
    save_checkpoint([path], checkpoint_of(model))
    return path


@pytest.fixture
def generate(run, checkpoint, tmp_path):
    """Continue inputs into tmp_path/o."""
    return lambda *args, status=0: run(
        SCRIPT, *args, "--checkpoint", checkpoint, "--output_dir", tmp_path / "o", *CODEC, status=status
    )


def seam_is_smooth(waveform: np.ndarray, seam: int) -> bool:
    """Whether the step into sample `seam` is within the range of the steps in the 0.1 s around it."""
    steps = np.abs(np.diff(waveform[seam - 1201 : seam + 1200]))
    return steps[1200] <= np.quantile(np.delete(steps, 1200), 0.999)


def test_three_files_that_belong_together(tmp_path, generate):
    song = write_track(tmp_path / "my song.flac", 3.3, seed=1, rate=44100, channels=2)
    generate(song)
    context, continuation, joined = (
        soundfile.read(tmp_path / "o" / f"my song_{part}.wav")[0] for part in ("context", "continuation", "joined")
    )
    assert len(context) == len(continuation) == RATE and len(joined) == 2 * RATE
    np.testing.assert_array_equal(joined[RATE:], continuation)
    end = soundfile.read(song)[0].mean(axis=1)[-44100:]
    assert context.std() == pytest.approx(end.std(), rel=0.35)  # the context lacks everything above 12 kHz
    assert np.abs(continuation).max() > 0.001


def test_the_seam_does_not_click_on_true_music(codec):
    """True consecutive embeddings join smoothly if they are decoded in one piece, but not if decoded separately."""
    time = np.arange(2 * RATE) / RATE
    music = sum(np.sin(2 * np.pi * f * time) for f in (110, 220.5, 331)) * 0.1
    embeddings = codec.encode(torch.from_numpy(music).float().view(1, 1, -1))
    first, second = embeddings[:, :, :75], embeddings[:, :, 75:]
    joined, seam = decode_joined(codec, first, second)
    assert seam == RATE and joined.shape == (1, 1, 2 * RATE) and seam_is_smooth(joined.flatten().numpy(), seam)
    torch.testing.assert_close(joined, codec.decode(embeddings), atol=1e-5, rtol=0)
    apart = codec.decode(second)
    assert not torch.allclose(apart[:, :, :100], joined[:, :, seam : seam + 100], atol=1e-3)


def test_the_end_is_encoded_in_mid_stream(tmp_path, codec, rng):
    """The embedding of the end equals the one in the whole song's embedding, without the codec's start-up transient."""
    audio = noise(rng, 4 * RATE)
    soundfile.write(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    end = read_end(str(tmp_path / "a.wav"), RATE, RATE, RATE)
    np.testing.assert_array_equal(np.concatenate([end.before, end.segment]), audio[-2 * RATE :, 0])
    whole = codec.encode(torch.from_numpy(audio).view(1, 1, -1))[:, :, -75:]
    with_context, alone = (encode_end(codec, end.segment, before) for before in (end.before, end.before[:0]))
    assert with_context.shape == alone.shape == whole.shape
    error, start_up = ((x - whole).square().mean() / whole.var() for x in (with_context, alone))
    assert error < 1e-4 < 1e-3 < start_up
    soundfile.write(tmp_path / "short.wav", audio[: int(1.9 * RATE)], RATE, subtype="FLOAT")
    assert len(read_end(str(tmp_path / "short.wav"), RATE, RATE, RATE).before) == 0, "no whole second before it"


def test_each_segment_is_predicted_from_the_one_before():
    model = SimpleTransformer(num_layers=1).eval()
    torch.nn.init.normal_(model.head[2].weight)
    long = continue_embeddings(model, torch.randn(2, 128, 30), 3)
    assert long.shape == (2, 128, 90)
    assert torch.equal(long[:, :, 60:], continue_embeddings(model, long[:, :, 30:60], 1))


def test_several_segments_and_quantized(tmp_path, generate):
    song, waveforms = write_track(tmp_path / "a.wav", 1.5, seed=1), []
    for args in ((), ("--quantize",)):
        assert "DEMO CODEC" in generate(song, "--num_segments", 2, *args).stderr
        waveforms.append(soundfile.read(tmp_path / "o/a_continuation.wav")[0])
    plain, quantized = waveforms
    assert len(plain) == len(quantized) == 2 * RATE and not np.array_equal(plain, quantized)


def test_its_own_files_are_replaced_and_others_are_not(tmp_path, generate):
    song = write_track(tmp_path / "song.wav", 1.5, seed=1)
    generate(song)
    generate(song)
    path = tmp_path / "o/song_context.wav"
    path.unlink()
    shutil.copy(song, path)
    assert "song_context.wav: is not from this script" in generate(song, status=1).stderr
    assert path.read_bytes() == song.read_bytes()


def test_bad_inputs_are_skipped_and_the_others_are_continued(tmp_path, generate, rng):
    one, two = (write_track(tmp_path / f"{name}.wav", 2, seed) for seed, name in enumerate(["one", "two"]))
    short = write_track(tmp_path / "short.wav", 0.5, 2)
    (tmp_path / "text.wav").write_text("no music")
    (tmp_path / "deadly.adx").write_bytes(DEADLY)
    audio = noise(rng, 3 * RATE)
    audio[-5] = np.nan
    soundfile.write(tmp_path / "nan.wav", audio, RATE, subtype="FLOAT")
    audio[RATE:] = 0
    soundfile.write(tmp_path / "fades.wav", audio, RATE, subtype="FLOAT")
    bad = [short, *(tmp_path / name for name in ("text.wav", "none.wav", "nan.wav", "deadly.adx"))]
    said = generate(one, *bad, tmp_path / "fades.wav", two, status=1).stderr
    for reason in (
        "short.wav: 0.50 s long; a continuation needs at least 1 s",
        "text.wav: not readable as audio",
        "none.wav: No such file",
        "nan.wav: its end contains NaN",
        "deadly.adx",
    ):
        assert sum(line.startswith("skipped ") and reason in line for line in said.splitlines()) == 1, reason
    assert "fades.wav: ends in 2.0 s of silence and is continued from there" in said
    continued = {path.name for path in (tmp_path / "o").glob("*_joined.wav")}
    assert continued == {"one_joined.wav", "two_joined.wav", "fades_joined.wav"}


@pytest.mark.parametrize("second", ["Song", "so\u0301ng", "long"])
def test_names_that_clash_or_are_too_long_are_refused_before_any_work(tmp_path, generate, second):
    first = {"Song": "song", "so\u0301ng": unicodedata.normalize("NFC", "so\u0301ng"), "long": "x" * 250}[second]
    paths = [write_track(tmp_path / "m" / f"{first}.wav", 2, 1)]
    if second != "long":
        paths.append(write_track(tmp_path / "n" / f"{second}.wav", 2, 2))
    said = generate(*paths, status=1).stderr
    assert ("its name is too long" if second == "long" else "would overwrite the continuation of") in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "o").exists()


def test_two_codecs_do_not_mix(tmp_path, checkpoint, fails):
    content = torch.load(checkpoint, weights_only=True) | {"codec": "encodec_24khz-0123456789ab"}
    save_checkpoint([tmp_path / "other.pt"], content)
    track = write_track(tmp_path / "a.wav", 2, 1)
    line = fails(SCRIPT, track, "--checkpoint", tmp_path / "other.pt", *CODEC, says="demo-")
    assert "encodec_24khz-0123456789ab" in line


@pytest.mark.skipif(not FFMPEG, reason="ffmpeg is not installed")
def test_any_kind_of_file_is_continued(tmp_path, generate):
    names = ["by ffmpeg.m4a", "cover in front.flac", "chained.ogg", "hole.ogg", "mono, then stereo.mp3"]
    for number, name in enumerate(names):
        ZOO[name].make(tmp_path / f"{number} {name}")
    result = generate(*sorted(tmp_path.iterdir()))
    assert len(list((tmp_path / "o").glob("*_joined.wav"))) == len(names)
    assert "hole.ogg: " in result.stderr and "are missing at" in result.stderr
