"""Every kind of audio file is read correctly up to its first damage, and the damage is reported with its reason."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import FFMPEG, RATE, mono_song, song, write
from audio_zoo import ZOO

from audio.reading import AudioError, open_audio
from audio.segments import read_last_samples


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
    delays = []
    for start in np.arange(0, seconds - 1.99, 2):
        here = slice(int(start * rate), int((start + 2) * rate))
        quality, delay = snr_db(truth[here], samples[here])
        assert quality >= animal.snr_db, f"{quality:.1f} dB from {start} s on"
        delays.append(delay)
    assert max(delays) - min(delays) <= 2 and abs(delays[0]) < 0.06 * rate, delays


def test_a_song_in_another_lossless_container_is_the_same_song(tmp_path):
    kinds = ["wav", "flac", "aiff", "caf", "w64", "au"]
    for kind in kinds:
        write(tmp_path / f"a.{kind}", (song() * 32767).astype(np.int16), format=kind.upper(), subtype="PCM_16")
    if FFMPEG:
        for kind, options in {"m4a": ("-c:a", "alac"), "wv": (), "tta": ()}.items():
            command = ["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", *options, tmp_path / f"a.{kind}"]
            subprocess.run(command, check=True)
            kinds.append(kind)
    first = read(tmp_path / "a.wav")[0]
    for kind in kinds:
        np.testing.assert_array_equal(read(tmp_path / f"a.{kind}")[0], first)


def test_the_end_of_a_file_that_cannot_be_seeked_is_found(tmp_path):
    for name in ("cover in front.flac", "by ffmpeg.m4a", "plain.ogg"):
        if name in ZOO:
            ZOO[name].make(tmp_path / name)
            got, problem = read_last_samples(tmp_path / name, 2 * 24000, 24000)
            truth = mono_song(24000)[-2 * 24000 :]
            assert problem == "" and snr_db(truth, got)[0] > 28, name


def test_channels_that_cancel_are_noticed(tmp_path):
    left = song(2)[:, :1]
    for name, audio in {"opposite": np.hstack([left, -left]), "stereo": song(2), "silent": 0 * song(2)}.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE)
        with open_audio(tmp_path / f"{name}.wav") as opened:
            assert sum(len(block) for block in opened) == 2 * RATE
            assert bool(opened.channels_cancel) == (name == "opposite")


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
        except AudioError as error:
            assert str(error)
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


def test_a_flac_that_is_damaged_in_its_first_second_is_used_up_to_there(tmp_path):
    """FFmpeg would drop a frame without a word, and shift what follows."""
    path = tmp_path / "plain.flac"
    ZOO["plain.flac"].make(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 50] ^= 255
    path.write_bytes(damaged)
    samples, rate, problem = read(path)
    assert problem.startswith("damaged at 0.") and 0 < len(samples) < 0.3 * rate
    np.testing.assert_allclose(samples, mono_song(rate)[: len(samples)], atol=1e-3)


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
        try:
            read(path)
        except AudioError as error:
            assert str(error)
    assert not [str(warning.message) for warning in recwarn], "a warning on the user's terminal"


def place_of(part: np.ndarray, whole: np.ndarray) -> int:
    """The position of the samples `part` in `whole`."""
    size = 1 << (len(whole) + len(part)).bit_length()
    match = np.fft.irfft(np.fft.rfft(whole, size) * np.fft.rfft(part, size).conj())
    return int(match[: len(whole)].argmax())
