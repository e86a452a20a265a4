"""A zoo of audio: files that are broken, odd, or fine but unusual, each small and made in a moment.

`ZOO` maps a file's name to the function that makes it at a given path. Where the audio is intact it is
`song`, which can be computed at any rate, so that decoding and resampling can be held against it.
"""

from __future__ import annotations

import functools
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

Maker = Callable[[Path], None]
ZOO: dict[str, Maker] = {}
LONG_NAME = "ø" * 123 + ".wav"  # 250 bytes
NOT_UTF8 = os.fsdecode(b"\xff\xfe not utf8.wav")
SECONDS = 2.5


def song(seconds: float = SECONDS, rate: int = 24000, start: float = 0.0) -> np.ndarray:
    """Two tones, one of which rises: float64 [samples] that are never twice the same, all below 1.2 kHz."""
    t = start + np.arange(round(seconds * rate)) / rate
    return 0.35 * np.sin(2 * np.pi * (200 * t + 8 * t**2)) + 0.15 * np.sin(2 * np.pi * 431 * t)


def channels_of(mono: np.ndarray, channels: int) -> np.ndarray:
    """[samples] -> [samples, channels]: all different, with `mono` as their mean."""
    difference = 0.2 * np.roll(mono, 1000)
    turns = np.cos(2 * np.pi * np.arange(channels) / channels) if channels > 1 else np.zeros(1)
    return mono[:, None] + difference[:, None] * turns


def write(path: Path, audio: np.ndarray | None = None, rate: int = 24000, **kwargs: object) -> None:
    soundfile.write(os.fsencode(path), song(rate=rate) if audio is None else audio, rate, **kwargs)


def add(name: str, maker: Callable[..., None], *args: object, **kwargs: object) -> None:
    assert name not in ZOO, name
    ZOO[name] = lambda path: maker(path, *args, **kwargs)


def encoded(seconds: float = SECONDS, *, end: str = "", rate: int = 24000, **kwargs: object) -> bytes:
    """The bytes of the song in a format that soundfile writes."""
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"bad_audio_{os.getpid()}{end}")
    try:
        write(path, song(seconds, rate), rate, **kwargs)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def put(make: Callable[[], bytes]) -> Maker:
    return lambda path: Path(path).write_bytes(make())


def ffmpeg(path: Path, *options: str, seconds: float = SECONDS) -> None:
    """Encode the song with ffmpeg; FileNotFoundError where there is none."""
    raw = (song(seconds) * 32767).astype("<i2").tobytes()
    command = ["ffmpeg", "-v", "error", "-y", "-f", "s16le", "-ar", "24000", "-ac", "1", "-i", "-", *options]
    subprocess.run([*command, os.fsdecode(path)], input=raw, check=True)


# ------------------------------------------------------------------ fine, but unusual

for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"):
    add(f"{subtype.lower()}.wav", write, subtype=subtype)
for kind, kwargs in {
    "w64": {"format": "W64"}, "rf64": {"format": "RF64"}, "aiff": {}, "caf": {}, "au": {}, "voc": {}, "flac": {},
    "ogg": {}, "opus": {"format": "OGG", "subtype": "OPUS"}, "mp3": {},
}.items():  # fmt: skip
    add(f"plain.{kind}", write, **kwargs)
add("extensible.wav", write, format="WAVEX", subtype="PCM_24")
add("wav inside.mp3", write, format="WAV")
add("24 bits.flac", write, subtype="PCM_24")
for rate in (4000, 8000, 11025, 22050, 37800, 44100, 48000, 96000, 192000, 384000):
    add(f"{rate}.wav", write, rate=rate, subtype="PCM_24")
for channels in (2, 6, 32):
    add(f"{channels} channels.wav", lambda path, n=channels: write(path, channels_of(song(), n), subtype="FLOAT"))
for name in ("spaces in it.wav", "'quotes\" & $(touch x); `id`.wav", "new\nline\ttab.wav", "-leading dash.wav"):
    add(name, write)
add(NOT_UTF8, write)
add(LONG_NAME, write)
for samples in (16 * 24000, 32 * 24000):
    for extra in (-1, 0, 1):
        name = f"{samples // 24000} s {extra:+d} samples.wav"
        add(name, lambda path, n=samples + extra: write(path, song(40)[:n]))

# ------------------------------------------------------------------ levels and numbers


def spoil(path: Path, change: Callable[[np.ndarray], None], subtype: str = "FLOAT") -> None:
    """The song, 5 s of it, after `change`."""
    audio = song(5)
    change(audio)
    write(path, audio, subtype=subtype)


def at(value: float, where: int = 60000) -> Callable[[np.ndarray], None]:
    return lambda audio: audio.__setitem__(where, value)


add("nan.wav", spoil, at(np.nan))
add("infinity.wav", spoil, at(np.inf))
add("minus infinity.wav", spoil, at(-np.inf), "DOUBLE")
add("beyond float32.wav", spoil, at(1e300), "DOUBLE")
add("nan throughout.wav", spoil, lambda audio: audio.fill(np.nan))
add("over full scale.wav", spoil, lambda audio: np.multiply(audio, 4, out=audio))
add("offset.wav", spoil, lambda audio: np.add(audio, 0.3, out=audio))
add("dc.wav", spoil, lambda audio: audio.fill(0.5))
add("silence.wav", spoil, lambda audio: audio.fill(0))
add("silent start.wav", spoil, lambda audio: audio[: 2 * 24000].fill(0))
add("silent middle.wav", spoil, lambda audio: audio[2 * 24000 : 3 * 24000].fill(0))
add("opposite phase.wav", lambda path: write(path, np.stack([song(), -song()], axis=1)))
add("one sample.wav", lambda path: write(path, song()[:1]))
add("no samples.wav", lambda path: write(path, song()[:0]))

# ------------------------------------------------------------------ no audio, or not all of it


def cut(share: float, seconds: float = 6, **kwargs: object) -> Maker:
    def make(path: Path) -> None:
        whole = encoded(seconds, end=path.suffix, **kwargs)
        path.write_bytes(whole[: int(share * len(whole)) if share < 1 else int(share)])

    return make


def changed(start: int | float, length: int, new: bytes, seconds: float = 6, **kwargs: object) -> Maker:
    """The song with `length` bytes from `start` (or that share of the file) on replaced."""

    def make(path: Path) -> None:
        whole = encoded(seconds, end=path.suffix, **kwargs)
        first = int(start * len(whole)) if isinstance(start, float) else start
        path.write_bytes(whole[:first] + new + whole[first + length :])

    return make


OPUS = {"format": "OGG", "subtype": "OPUS"}
NOISE = np.random.default_rng(1).bytes(3000)
add("empty.wav", put(bytes))
add("text.wav", put(lambda: b"just a text\n" * 100))
add("zeros.mp3", put(lambda: bytes(10000)))
add("random.flac", put(lambda: NOISE))
for end, size in {"wav": 20, "flac": 30, "mp3": 40, "ogg": 60, "opus": 60, "aiff": 20, "caf": 20}.items():
    add(f"cut in header.{end}", cut(size, **(OPUS if end == "opus" else {})))
    add(f"cut in data.{end}", cut(0.7, **(OPUS if end == "opus" else {})))
add("promises more.wav", changed(40, 4, struct.pack("<I", 10**7)))
add("promises 4 GB.wav", changed(40, 4, b"\xff\xff\xff\xff"))
add("flipped.flac", changed(0.6, 1, b"\x77"))
add("flipped.ogg", changed(0.6, 1, b"\x77", 30))
add("first page damaged.ogg", changed(0.3, 1, b"\x77", 11))
add("flipped.opus", changed(0.6, 1, b"\x77", **OPUS))
add("hole.ogg", changed(0.5, 3000, b"", 30))
add("zeros inside.opus", changed(0.5, 3000, bytes(3000), 15, **OPUS))
add("junk at its end.ogg", put(lambda: encoded(end=".ogg") + bytes(200_000)))
add("chained.ogg", put(lambda: encoded(end=".ogg") + encoded(end=".ogg")))


def mp3_frames(whole: bytes) -> list[bytes]:
    """The frames of an MPEG 2 layer 3 stream of 24 kHz, as soundfile writes it; the first is the header frame."""
    frames, position = [], 0
    while position + 4 <= len(whole):
        head = whole[position : position + 4]
        assert head[:2] == b"\xff\xf3" and head[2] >> 2 & 3 == 1, f"no frame of 24 kHz at {position}"
        kbps = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[(head[2] >> 4) - 1]
        length = 72 * kbps * 1000 // 24000 + (head[2] >> 1 & 1)
        frames.append(whole[position : position + length])
        position += length
    return frames


def mp3(change: Callable[[list[bytes]], list[bytes]], audio: np.ndarray | None = None, **kwargs: object) -> Maker:
    """The song's MP3 frames (6 s, 24 ms each) after `change`."""

    def make(path: Path) -> None:
        write(path, song(6) if audio is None else audio, **kwargs)
        path.write_bytes(b"".join(change(mp3_frames(path.read_bytes()))))

    return make


VARIABLE = {"bitrate_mode": "VARIABLE", "compression_level": 0.3}
ID3V2 = b"ID3\x03\x00\x00\x00\x00\x0f\x6e" + b"\xff\xfbcover" * 290  # 2030 bytes, with what looks like headers
ID3V1 = b"TAG" + b"Title".ljust(125, b"\x00")
APE = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 1 << 31) + b"\xff\xf3" * 16
rising = song(6) * np.repeat([0.001, 1.0], 72000)  # variable bit rate: the first half in far fewer bytes
add("tags.mp3", mp3(lambda frames: [ID3V2, ID3V2, *frames, APE, ID3V1]))
add("variable.mp3", mp3(lambda frames: frames, rising, **VARIABLE))
add("variable without header.mp3", mp3(lambda frames: frames[1:], rising, **VARIABLE))
add("variable without header, tagged.mp3", mp3(lambda frames: [ID3V2, *frames[1:], ID3V1], rising, **VARIABLE))
add("constant without header.mp3", mp3(lambda frames: frames[1:]))
add("garbage between frames.mp3", mp3(lambda frames: [*frames[:150], NOISE, *frames[150:]]))
add("tag between frames.mp3", mp3(lambda frames: [*frames[1:150], ID3V1, *frames[150:]]))
add("flipped header.mp3", mp3(lambda frames: [*frames[:150], b"\xff\x00" + frames[150][2:], *frames[151:]]))
add("frames missing.mp3", mp3(lambda frames: frames[:120] + frames[150:]))
add("two in one.mp3", mp3(lambda frames: frames + frames))
add("one frame.mp3", mp3(lambda frames: frames[1:2]))
add("free format.mp3", mp3(lambda frames: [f[:2] + bytes([f[2] & 0x0F]) + f[3:] for f in frames[1:]]))
add("goes on at 44100.mp3", mp3(lambda frames: [*frames, encoded(end=".mp3", rate=44100)]))
add("junk at its end.mp3", mp3(lambda frames: [*frames, bytes(5000), NOISE]))

# ------------------------------------------------------------------ crafted headers


def crafted(
    channels: int = 1, rate: int = 24000, align: int = 2, bits: int = 16, fmt_size: int = 16, extra: bytes = b""
) -> bytes:
    """A WAV of 60,000 samples whose header says what it likes; `extra` stands before the data."""
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    data = (song() * 32767).astype("<i2").tobytes()
    body = b"WAVEfmt " + struct.pack("<I", fmt_size) + fmt + extra + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = struct.pack("<I", 0x7FFFFF00)
for name, kwargs in {
    "65535 channels": {"channels": 65535, "align": 65534},
    "1024 channels": {"channels": 1024, "align": 2048},
    "no channels": {"channels": 0, "align": 0},
    "4 GHz": {"rate": 4294967295},
    "2 GHz": {"rate": 2**31 - 1},
    "0 Hz": {"rate": 0},
    "100 Hz": {"rate": 100},
    "44101 Hz": {"rate": 44101},
    "no bits": {"bits": 0, "align": 0},
    "65535 bits": {"bits": 65535, "align": 65535},
    "giant fmt": {"fmt_size": 0x7FFFFFFF},
    "giant list": {"extra": b"LIST" + HUGE + b"INFOINAM" + HUGE},
    "giant peak": {"extra": b"PEAK" + HUGE},
    "giant cart": {"extra": b"cart" + HUGE},
    "giant bext": {"extra": b"bext" + HUGE},
    "giant cue": {"extra": b"cue " + HUGE + HUGE},
    "giant sampler": {"extra": b"smpl" + HUGE + bytes(28) + HUGE + HUGE},
}.items():
    add(f"crafted {name}.wav", put(functools.partial(crafted, **kwargs)))
add("crafted giant info.caf", put(lambda: encoded(end=".caf")[:8] + b"info" + struct.pack(">q", 1 << 40) + bytes(64)))
add("crafted giant tag.mp3", put(lambda: b"ID3\x03\x00\x00\x7f\x7f\x7f\x7fTIT2\x7f\xff\xff\xff\x00\x00" + NOISE))
add("crafted giant comment.ogg", changed(0x60, 4, b"\xff\xff\xff\x7f", 2.5))

# ------------------------------------------------------------------ files that are no plain files


add("dangling link.wav", lambda path: path.symlink_to("nowhere.wav"))
add("link to itself.wav", lambda path: path.symlink_to(path.name))
add("named pipe.wav", lambda path: os.mkfifo(path))
add("unreadable.wav", lambda path: (write(path), path.chmod(0)))
add("._resource fork.wav", put(lambda: b"\x00\x05\x16\x07" + bytes(4000)))
add("cover.jpg", put(lambda: NOISE))


def folder_named_wav(path: Path) -> None:
    path.mkdir()
    write(path / "inside.wav", song(SECONDS, start=100))


def loop_of_links(path: Path) -> None:
    path.mkdir()
    (path / "back").symlink_to(path.parent, target_is_directory=True)


add("a folder.wav", folder_named_wav)
add("loop", loop_of_links)

# ------------------------------------------------------------------ what only ffmpeg makes

if shutil.which("ffmpeg"):
    add("layer 2.mp2", ffmpeg)
    add("lame.mp3", ffmpeg, "-q:a", "2")
    add("aac.m4a", ffmpeg)
    add("streamed.flac", lambda path: path.write_bytes(_piped("flac")))
    add("streamed.wav", lambda path: path.write_bytes(_piped("wav")))


def _piped(kind: str) -> bytes:
    """Written to a pipe, so that the header never learns the length."""
    raw = (song() * 32767).astype("<i2").tobytes()
    command = ["ffmpeg", "-v", "error", "-f", "s16le", "-ar", "24000", "-ac", "1", "-i", "-", "-f", kind, "-"]
    return subprocess.run(command, input=raw, capture_output=True, check=True).stdout
