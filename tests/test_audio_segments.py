"""Segments put end to end are the whole track's resample, to the last bit."""

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from conftest import noise

from audio.segments import (
    BETA,
    FILTER_WIDTH,
    ROLLOFF,
    AudioError,
    find_audio_files,
    level_dbfs,
    open_audio,
    read_last_segment,
    stream_segments,
    to_pcm16,
)


def whole_resample(audio: np.ndarray, rate: int) -> np.ndarray:
    mono = torch.from_numpy(audio).mean(dim=1)
    return torchaudio.functional.resample(
        mono, rate, 24000, lowpass_filter_width=FILTER_WIDTH, rolloff=ROLLOFF,
        resampling_method="sinc_interp_kaiser", beta=BETA,
    ).numpy()  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 192000])
def test_segments_are_the_whole_resample(tmp_path, rng, rate, channels):
    audio = noise(rng, int(13.3 * rate), channels)
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    with open_audio(tmp_path / "a.wav", 24000) as opened:
        segments = list(stream_segments(opened, 4, 24000))
    assert len(segments) == 3 and all(s.shape == (96000,) and s.dtype == np.float32 for s in segments)
    expected = whole_resample(audio, rate)[: 3 * 96000]
    if channels == 6:  # torch may add six channels in another order
        np.testing.assert_allclose(np.concatenate(segments), expected, atol=1e-6)
    else:
        np.testing.assert_array_equal(np.concatenate(segments), expected)


@pytest.mark.parametrize("rate, duration", [(4000, 16), (44056, 4), (384000, 4)])
def test_odd_rates_too(tmp_path, rng, rate, duration):
    audio = noise(rng, int(2.4 * duration * rate))
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    with open_audio(tmp_path / "a.wav", 24000) as opened:
        got = np.concatenate(list(stream_segments(opened, duration, 24000)))
    np.testing.assert_array_equal(got, whole_resample(audio, rate)[: 2 * duration * 24000])


def test_six_channels_do_not_depend_on_the_segmentation(tmp_path, rng):
    audio = noise(rng, 12 * 44100, 6)
    soundfile.write(tmp_path / "a.wav", audio, 44100, subtype="FLOAT")
    results = []
    for duration in (2, 6):
        with open_audio(tmp_path / "a.wav", 24000) as opened:
            results.append(np.concatenate(list(stream_segments(opened, duration, 24000))))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("extra, expected", [(-1, 1), (0, 2), (1, 2)])
def test_a_remainder_is_dropped(tmp_path, rng, extra, expected):
    soundfile.write(tmp_path / "a.wav", noise(rng, 2 * 44100 + extra), 44100)
    with open_audio(tmp_path / "a.wav", 24000) as opened:
        assert len(list(stream_segments(opened, 1, 24000))) == expected


@pytest.mark.parametrize("rate", [24000, 44100, 48000])
def test_last_segment_is_the_end_of_the_whole_resample(tmp_path, rng, rate):
    audio = noise(rng, int(3.7 * rate) + 11, 2)
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    np.testing.assert_array_equal(read_last_segment(tmp_path / "a.wav", 2, 24000), whole_resample(audio, rate)[-48000:])


def test_16_bit_audio_at_24_khz_comes_back_unchanged(tmp_path, rng):
    pcm16 = rng.integers(-32768, 32768, 48000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", pcm16, 24000)
    with open_audio(tmp_path / "a.wav", 24000) as opened:
        converted = [to_pcm16(segment) for segment in stream_segments(opened, 1, 24000)]
    np.testing.assert_array_equal(np.concatenate([pcm for pcm, _ in converted]), pcm16)
    assert [clipped for _, clipped in converted] == [0, 0]


def test_clipping_is_counted_and_never_wraps():
    pcm16, clipped = to_pcm16(np.array([0.0, 0.5, 1.0, 1.5, -1.0, -1.5], np.float32))
    assert clipped == 3 and pcm16.tolist() == [0, 16384, 32767, 32767, -32768, -32768]


def test_level_of_a_full_scale_sine_and_of_silence():
    sine = np.sin(2 * np.pi * 440 * np.arange(24000) / 24000).astype(np.float32)
    assert level_dbfs(sine) == pytest.approx(-3.01, abs=0.01)
    assert level_dbfs(np.zeros(10, np.float32)) == level_dbfs(np.full(10, 0.5, np.float32)) == -np.inf


def test_a_folder_is_searched_once_whatever_it_links_to(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one.WAV", "a/two.flac", "a/b/three.mp3", "a/cover.jpg", "a/._two.flac", ".hidden.wav"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert find_audio_files(tmp_path) == ["a/b/three.mp3", "a/two.flac", "one.WAV"]


@pytest.mark.parametrize("content, reason", [(b"", "empty"), (b"no audio at all", "not readable as audio")])
def test_what_is_no_audio_is_named(tmp_path, content, reason):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=reason):
        open_audio(tmp_path / "a.wav", 24000)


def test_a_rate_with_a_monstrous_filter_is_refused_before_it_is_made(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 44101)
    with pytest.raises(AudioError, match="44101 Hz"):
        open_audio(tmp_path / "a.wav", 24000)
