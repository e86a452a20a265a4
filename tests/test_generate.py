"""The continuation: three files, a seam without a click, any input, and errors before any work."""

import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from audio_zoo import DEADLY, FFMPEG, ZOO
from conftest import SHARED_MUSIC, UNTRAINED, checkpoint_of, noise, write_track

from common import progress
from generate_continuation import continue_embeddings, decode_joined, encode_end, read_end
from model_simple_transformer import SimpleTransformer
from training.checkpoint import save_checkpoint

SCRIPT = "generate_continuation.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model for two-second segments, with random weights instead of trained ones."""
    torch.manual_seed(0)
    model = SimpleTransformer(num_layers=1)
    torch.nn.init.normal_(model.head[2].weight, std=0.05)
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pt"
    save_checkpoint([path], checkpoint_of(model, num_samples=48000))
    return path


@pytest.fixture
def generate(run, checkpoint, tmp_path):
    """Continue inputs into tmp_path/o."""
    return lambda *args, status=0: run(
        SCRIPT, *args, "--checkpoint", checkpoint, "--output_dir", tmp_path / "o", *UNTRAINED, status=status
    )


def seam_is_smooth(waveform: np.ndarray, seam: int) -> bool:
    """Is the step into sample `seam` within the spread of the steps in the 0.1 s around it?"""
    steps = np.abs(np.diff(waveform[seam - 1201 : seam + 1200]))
    return steps[1200] <= np.quantile(np.delete(steps, 1200), 0.999)


def test_three_files_that_belong_together(tmp_path, generate):
    write_track(tmp_path / "my song.flac", 5.3, seed=1, rate=44100, channels=2)
    generate(tmp_path / "my song.flac")
    context, continuation, joined = (
        soundfile.read(tmp_path / "o" / f"my song_{part}.wav")[0] for part in ("context", "continuation", "joined")
    )
    assert len(context) == len(continuation) == 48000 and len(joined) == 96000
    np.testing.assert_array_equal(joined[48000:], continuation)
    end = soundfile.read(tmp_path / "my song.flac")[0].mean(axis=1)[-2 * 44100 :]
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


def test_the_end_is_encoded_in_mid_stream(tmp_path, codec, rng):
    """As the whole song's embedding has it, not with the codec's start-up in it."""
    audio = noise(rng, 6 * 24000)
    soundfile.write(tmp_path / "a.wav", audio, 24000, subtype="FLOAT")
    end = read_end(str(tmp_path / "a.wav"), 48000, 24000, 24000)
    np.testing.assert_array_equal(np.concatenate([end.before, end.segment]), audio[-72000:, 0])
    whole = codec.encode(torch.from_numpy(audio).view(1, 1, -1))[:, :, -150:]
    with_context, alone = (encode_end(codec, end.segment, before) for before in (end.before, end.before[:0]))
    assert with_context.shape == alone.shape == whole.shape
    error, start_up = ((x - whole).square().mean() / whole.var() for x in (with_context, alone))
    assert error < 1e-4 < 1e-3 < start_up
    soundfile.write(tmp_path / "short.wav", audio[: int(2.9 * 24000)], 24000, subtype="FLOAT")
    assert len(read_end(str(tmp_path / "short.wav"), 48000, 24000, 24000).before) == 0, "no whole second before it"


def test_each_segment_is_predicted_from_the_one_before():
    model = SimpleTransformer(num_layers=1).eval()
    torch.nn.init.normal_(model.head[2].weight)
    context = torch.randn(2, 128, 30)
    long = continue_embeddings(model, context, 3)
    assert long.shape == (2, 128, 90)
    assert torch.equal(long[:, :, 60:], continue_embeddings(model, long[:, :, 30:60], 1))


def test_longer_and_quantized(tmp_path, generate):
    write_track(tmp_path / "a.wav", 2.5, seed=1)
    waveforms = []
    for args in ((), ("--quantize",)):
        assert "UNTRAINED CODEC" in generate(tmp_path / "a.wav", "--num_segments", 3, *args).stderr
        waveforms.append(soundfile.read(tmp_path / "o/a_continuation.wav")[0])
    plain, quantized = waveforms
    assert len(plain) == len(quantized) == 3 * 48000 and not np.array_equal(plain, quantized)


def test_its_own_files_are_replaced_and_others_are_not(tmp_path, generate):
    song = write_track(tmp_path / "song.wav", 2.5, seed=1)
    generate(song)
    generate(song)
    for name in ("song_joined.wav", "song_context.wav"):
        (own := tmp_path / "o" / name).unlink()
        shutil.copy(song, own)
        assert f"{name}: is not from this script" in generate(song, status=1).stderr
        assert own.read_bytes() == song.read_bytes()
        own.unlink()


def test_one_bad_input_is_skipped_and_the_others_are_continued(tmp_path, generate, rng):
    good = [write_track(tmp_path / f"{name}.wav", 3, seed) for seed, name in enumerate(["one", "two"])]
    short = write_track(tmp_path / "short.wav", 1.5, 2)
    (tmp_path / "text.wav").write_text("no music")
    audio = noise(rng, 4 * 24000)
    audio[-5] = np.nan
    soundfile.write(tmp_path / "nan.wav", audio, 24000, subtype="FLOAT")
    audio[48000:] = 0
    soundfile.write(tmp_path / "fades.wav", audio, 24000, subtype="FLOAT")
    bad = [short, tmp_path / "text.wav", tmp_path / "none.wav", tmp_path / "nan.wav"]
    result = generate(good[0], *bad, tmp_path / "fades.wav", good[1], status=1)
    for reason in ("short.wav: 1.50 s long; a continuation needs at least 2 s", "text.wav: not readable as audio",
                   "none.wav: No such file", "nan.wav: its end contains NaN"):  # fmt: skip
        assert sum(line.startswith("skipped ") and reason in line for line in result.stderr.splitlines()) == 1
    assert "fades.wav: ends in 2.0 s of silence and is continued from there" in result.stderr
    assert {p.name for p in (tmp_path / "o").glob("*_joined.wav")} == {"one_joined.wav", "two_joined.wav",
                                                                       "fades_joined.wav"}  # fmt: skip
    shutil.rmtree(tmp_path / "o")
    generate(*bad, status=1)
    assert not (tmp_path / "o").exists()


def test_an_input_that_ends_the_process_that_reads_it_is_skipped(tmp_path, generate):
    good = [write_track(tmp_path / f"{name}.wav", 3, seed) for seed, name in enumerate(["one", "two"])]
    (tmp_path / "deadly.adx").write_bytes(DEADLY)
    result = generate(good[0], tmp_path / "deadly.adx", good[1], status=1)
    assert sum(line.startswith("skipped ") and "deadly.adx" in line for line in result.stderr.splitlines()) == 1
    assert {p.name for p in (tmp_path / "o").glob("*_joined.wav")} == {"one_joined.wav", "two_joined.wav"}


def test_reading_a_long_input_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1)
    song = write_track(tmp_path / "a.wav", 90, seed=1)
    read_end(str(song), 48000, 24000, 24000)
    lines = capsys.readouterr().out.splitlines()
    done = [float(line.split()[0]) for line in lines]
    assert done == sorted(done) and done[-1] == 1.5 and len(done) > 10
    assert all("of 1.50 minutes of the input read" in line for line in lines)


@pytest.mark.parametrize("second", ["Song", "so\u0301ng", "long"])
def test_names_that_clash_or_are_too_long_are_refused_before_any_work(tmp_path, generate, second):
    first = {"Song": "song", "so\u0301ng": unicodedata.normalize("NFC", "so\u0301ng"), "long": "x" * 250}[second]
    paths = [write_track(tmp_path / "m" / f"{first}.wav", 3, 1)]
    if second != "long":
        paths.append(write_track(tmp_path / "n" / f"{second}.wav", 3, 2))
    said = generate(*paths, status=1).stderr
    assert ("its name is too long" if second == "long" else "would overwrite the continuation of") in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "o").exists()


def test_two_codecs_do_not_mix(tmp_path, checkpoint, fails):
    content = torch.load(checkpoint, weights_only=True) | {"codec": "encodec_24khz-0123456789ab"}
    save_checkpoint([tmp_path / "other.pt"], content)
    track = write_track(tmp_path / "a.wav", 3, 1)
    line = fails(SCRIPT, track, "--checkpoint", tmp_path / "other.pt", *UNTRAINED, says="untrained-1")
    assert "encodec_24khz-0123456789ab" in line


@pytest.mark.skipif(not FFMPEG, reason="ffmpeg is not installed")
def test_any_kind_of_file_is_continued(tmp_path, generate):
    names = [
        "by ffmpeg.m4a",
        "by ffmpeg.webm",
        "cover in front.flac",
        "chained.ogg",
        "hole.ogg",
        "mono, then stereo.mp3",
    ]
    for number, name in enumerate(names):
        ZOO[name].make(tmp_path / f"{number} {name}")
    result = generate(*sorted(tmp_path.iterdir()))
    assert len(list((tmp_path / "o").glob("*_joined.wav"))) == len(names)
    assert "hole.ogg: " in result.stderr and "are missing at" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_MUSIC.is_dir(), reason="the shared recordings are not here")
def test_real_recordings(tmp_path, generate):
    songs = sorted(SHARED_MUSIC.glob("*.ogg"))
    generate(*songs)
    for song in songs:
        joined = soundfile.read(tmp_path / "o" / f"{song.stem}_joined.wav")[0]
        assert len(joined) == 96000 and seam_is_smooth(joined, 48000)
