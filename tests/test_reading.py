"""Every kind of audio file is read correctly up to its first damage, and the damage is reported with its reason."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from audio_files import EXACT, FFMPEG, mono_song
from audio_zoo import ZOO

from audio.reading import AudioError, open_audio


def read(path: Path) -> tuple[np.ndarray, int, str]:
    with open_audio(path) as audio:
        blocks = [np.zeros(0, np.float32), *audio]
        assert all(block.dtype == np.float32 and block.ndim == 1 for block in blocks)
        samples = np.concatenate(blocks)
        assert audio.seconds == pytest.approx(len(samples) / audio.sample_rate, abs=0.05)
        return samples, audio.sample_rate, audio.problem


def snr_db(truth: np.ndarray, got: np.ndarray) -> tuple[float, int]:
    """The SNR of `got` against `truth` at the best gain and delay, without 0.1 s at both ends; and the delay."""
    count = min(len(truth), len(got))
    size = count + count // 4  # allows delays up to a quarter, far more than occur
    spectra = (np.fft.rfft(samples[:count], size) for samples in (truth, got))
    match = np.fft.irfft(next(spectra).conj() * next(spectra))
    delay = int(np.abs(match).argmax())
    delay -= size if delay > size // 2 else 0
    a, b = truth[max(0, -delay) :], got[max(0, delay) :]
    count = min(len(a), len(b))
    a, b = a[4410 : count - 4410].astype(float), b[4410 : count - 4410].astype(float)
    scaled = a * (a @ b) / (a @ a)
    with np.errstate(divide="ignore"):  # infinite if they are equal
        return 10 * np.log10((scaled @ scaled) / ((b - scaled) @ (b - scaled))), delay


@pytest.mark.parametrize("name", ZOO, ids=ascii)
def test_a_file_is_read_up_to_its_first_damage(tmp_path, name, capfd):
    animal, path = ZOO[name], tmp_path / name
    animal.make(path)
    if animal.refused:
        with pytest.raises(AudioError, match=animal.refused):
            read(path)
        assert capfd.readouterr() == ("", ""), "the decoder writes to the terminal"
        return
    samples, rate, problem = read(path)
    assert capfd.readouterr() == ("", ""), "the decoder writes to the terminal"
    assert animal.says in problem and bool(animal.says) == bool(problem), problem
    assert animal.seconds - 0.05 <= len(samples) / rate
    assert len(samples) / rate <= (25 if animal.seconds > 13 or "chained" in name else 12.3)
    # Each part is the song's, at the right time. So the speed is right and nothing is spliced.
    truth, seconds = mono_song(rate), min(12, len(samples) / rate)
    if animal.snr_db == EXACT:
        np.testing.assert_array_equal(samples[: len(truth)], truth[: len(samples)])
        return
    delays = []
    for start in np.arange(0, seconds - 1.99, 2):
        here = slice(int(start * rate), int((start + 2) * rate))
        quality, delay = snr_db(truth[here], samples[here])
        assert quality >= animal.snr_db, f"{quality:.1f} dB from {start} s on"
        delays.append(delay)
    assert max(delays) - min(delays) <= 2 and abs(delays[0]) < 0.06 * rate, delays


WITH_CHECKSUMS = ["plain.flac", "plain.ogg", "by ffmpeg.opus", "lossless.oga", "lossless.wv", "lossless.tta"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_CHECKSUMS if name in ZOO])
def test_damage_anywhere_is_never_read_as_music(tmp_path, name, rng):
    """Bytes are overwritten, removed, zeroed or cut off. All audio that is read is the song's, at the right time."""
    path = tmp_path / name
    ZOO[name].make(path)
    whole = path.read_bytes()
    for _ in range(8):
        damaged, where = bytearray(whole), int(rng.integers(len(whole)))
        length = int(rng.choice([1, 50, 2000]))
        how = rng.choice(["removed", "overwritten", "zeroed", "cut"])
        if how == "cut":
            del damaged[where:]
        else:
            new = {"removed": b"", "overwritten": rng.bytes(length), "zeroed": bytes(length)}[how]
            damaged[where : where + length] = new
        path.write_bytes(damaged)
        try:
            samples, rate, problem = read(path)
        except AudioError:
            continue
        if damaged == whole:
            continue
        # The first page may be missing. From there on, every second is the song's, at the right time.
        truth, seconds = mono_song(rate), len(samples) / rate
        start_s = place_of(samples[rate // 10 : rate], truth) / rate - 0.1 if seconds > 1 else 0
        damage = f"{how} {length} at {where} of {len(whole)}"
        assert problem or start_s + seconds > 11.7, damage
        for second in range(int(seconds)):
            here = slice(second * rate, (second + 1) * rate)
            there = slice(round((start_s + second) * rate), round((start_s + second + 1) * rate))
            quality, delay = snr_db(truth[there], samples[here])
            assert quality > 15 and abs(delay) < 20, f"{damage}: {quality:.0f} dB, {second} s"


FUZZED = ["plain.wav", "plain.flac", "plain.mp3", "plain.ogg", "plain.aiff"]
FUZZED += ["by ffmpeg.m4a", "by ffmpeg.wma", "by ffmpeg.opus", "film.avi"] if FFMPEG else []


@pytest.mark.parametrize("name", FUZZED)
def test_no_damaged_header_raises_another_error(tmp_path, name, rng, recwarn):
    """A changed byte or a cut anywhere gives samples or an AudioError. If the process dies, the test crashes."""
    path = tmp_path / name
    ZOO[name].make(path)
    whole = path.read_bytes()[:40_000]
    ends = [*range(64), *rng.integers(64, 4096, 20), *rng.integers(64, len(whole), 20)]
    contents = [whole[:end] for end in ends]
    for at in [*rng.integers(0, 2048, 40), *rng.integers(0, len(whole), 40)]:
        contents.append(whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :])
    for content in contents:
        path.write_bytes(content)
        with contextlib.suppress(AudioError):
            read(path)
    assert not [str(warning.message) for warning in recwarn], "a warning on the user's terminal"


def place_of(part: np.ndarray, whole: np.ndarray) -> int:
    """The position of the samples `part` in `whole`."""
    size = 1 << (len(whole) + len(part)).bit_length()
    match = np.fft.irfft(np.fft.rfft(whole, size) * np.fft.rfft(part, size).conj())
    return int(match[: len(whole)].argmax())
