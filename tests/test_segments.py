"""The segments of a track, joined, are bit-identical to the whole track resampled, without its tail."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from conftest import noise

from audio.reading import open_audio
from audio.segments import read_last_samples, stream_segments, to_pcm16, wav_bytes


def whole_resample(audio: np.ndarray, rate: int) -> np.ndarray:
    """[samples, channels] at `rate` -> the mean of the channels at 24 kHz, in one piece."""
    return soxr.resample(audio.mean(axis=1, dtype=np.float32), rate, 24000, "HQ")


def segments_of(path, seconds: int) -> list[np.ndarray]:
    with open_audio(path) as audio:
        return list(stream_segments(audio, seconds, 24000))


@pytest.mark.parametrize(
    "rate, channels, seconds", [(4000, 1, 8), (24000, 1, 2), (44100, 2, 2), (44100, 6, 2), (96000, 1, 2), (11127, 1, 4)]
)
def test_segments_and_the_end_are_the_whole_track_resampled(tmp_path, rng, rate, channels, seconds):
    audio = noise(rng, int(3.3 * seconds * rate), channels)
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    expected = whole_resample(audio, rate)
    segments = segments_of(tmp_path / "a.wav", seconds)
    assert len(segments) == 3 and all(s.shape == (24000 * seconds,) and s.dtype == np.float32 for s in segments)
    last, problem = read_last_samples(tmp_path / "a.wav", 3 * 24000 + 17, 24000)
    assert problem == ""
    for got, whole in (
        (np.concatenate(segments), expected[: 3 * 24000 * seconds]),
        (last, expected[-3 * 24000 - 17 :]),
    ):
        if channels == 6:  # NumPy may add six channels in another order
            np.testing.assert_allclose(got, whole, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("more, count", [(-1, 2), (0, 3)])
def test_only_a_tail_shorter_than_a_segment_is_lost(tmp_path, rng, more, count):
    audio = noise(rng, 3 * 2 * 24000 + more)
    soundfile.write(tmp_path / "a.wav", audio, 24000, subtype="FLOAT")
    segments = segments_of(tmp_path / "a.wav", 2)
    assert len(segments) == count
    np.testing.assert_array_equal(np.concatenate(segments), audio[: count * 2 * 24000, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -101])
@pytest.mark.parametrize("at_s", [2.5, 3.9999])
def test_a_segment_with_invalid_samples_is_nan_and_its_neighbors_are_clean(tmp_path, rng, value, at_s):
    audio = noise(rng, 6 * 44100)
    clean = whole_resample(audio, 44100)
    audio[int(at_s * 44100)] = value
    soundfile.write(tmp_path / "a.wav", audio, 44100, subtype="FLOAT")
    segments = segments_of(tmp_path / "a.wav", 1)
    broken = {2} if at_s == 2.5 else {3, 4}  # near a border, the resampling filter spreads it into the next segment
    for index, segment in enumerate(segments):
        if index in broken:
            assert np.isnan(segment).all()
        else:
            np.testing.assert_array_equal(segment, clean[index * 24000 : (index + 1) * 24000])


def test_16_bit_samples_come_back_unchanged():
    pcm16 = np.arange(-32768, 32768, dtype=np.int16)
    converted, clipped = to_pcm16(pcm16.astype(np.float32) / 32768)
    np.testing.assert_array_equal(converted, pcm16)
    assert clipped == 0


def test_clipping_is_counted_and_never_wraps():
    pcm16, clipped = to_pcm16(np.array([0.0, 0.5, 1.0, 1.5, -1.0, -1.5], np.float32))
    assert clipped == 3 and pcm16.tolist() == [0, 16384, 32767, 32767, -32768, -32768]


def test_a_wav_holds_the_samples_and_its_comment_near_the_start(rng):
    pcm16 = rng.integers(-32768, 32768, 1000).astype(np.int16)
    assert len(wav_bytes(pcm16, 24000)) == 44 + 2000  # dataset/split_index.py relies on this size
    content = wav_bytes(pcm16, 24000, "Jingle_D continuation")
    assert b"Jingle_D continuation" in content[:256]  # where dataset/sources.py looks for it
    with soundfile.SoundFile(io.BytesIO(content)) as wav:
        assert (wav.samplerate, wav.channels, wav.subtype, wav.comment) == (24000, 1, "PCM_16", "Jingle_D continuation")
        np.testing.assert_array_equal(wav.read(dtype="int16"), pcm16)
