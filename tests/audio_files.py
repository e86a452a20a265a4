"""Audio files as bytes, for the tests of the readers: one song in any format, and ways to damage it."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

SECONDS, RATE = 12.0, 44100
EXACT = float("inf")  # the SNR of a lossless file
FFMPEG = shutil.which("ffmpeg")


@dataclass(frozen=True)
class Animal:
    """A file and what a reader must do with it."""

    make: Callable[[Path], object]
    seconds: float = SECONDS  # how much of the song must be read
    snr_db: float = EXACT
    says: str = ""  # part of the line about its damage; "" if there is none
    refused: str = ""  # part of the error if it cannot be read at all


@functools.cache
def song(rate: int = RATE) -> np.ndarray:
    """A rising tone in each channel and a steady one in both, float64 [samples, 2]. No two parts are alike.

    The samples fit 16 bits.
    """
    t = np.arange(round(SECONDS * rate))[:, None] / rate
    tones = np.sin(2 * np.pi * (np.array([[190.0, 330.0]]) * t + np.array([[23.0, 17.0]]) * t * t))
    audio = np.rint(32768 * (0.33 * tones + 0.11 * np.sin(2 * np.pi * 523.25 * t))) / 32768
    audio.flags.writeable = False
    return audio


@functools.cache
def mono_song(rate: int) -> np.ndarray:
    """The samples that a reader must return for the song, float64 [samples]."""
    return song(rate).mean(axis=1)


@functools.cache
def stored(kind: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    """The song as libsndfile writes it."""
    content = io.BytesIO()
    soundfile.write(content, song(rate), rate, subtype, format=kind)
    return content.getvalue()


wav = functools.partial(stored, "WAV")  # 16 bits, with a header of 44 bytes
flac = functools.partial(stored, "FLAC")


@functools.cache
def encode(end: str, *options: str, rate: int = RATE) -> bytes:
    """The song as ffmpeg encodes it for this file extension."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["ffmpeg", "-v", "error", "-f", "wav", "-i", "-", *options, f"{folder}/out.{end}"]
        subprocess.run(command, input=wav(rate=rate), check=True)
        return Path(folder, f"out.{end}").read_bytes()


# ------------------------------------------------------------------ damage


def cut(whole: bytes, share: float) -> bytes:
    return whole[: int(len(whole) * share)]


def overwritten(whole: bytes, share: float, new: bytes) -> bytes:
    at = int(len(whole) * share)
    return whole[:at] + new + whole[at + len(new) :]


def removed(whole: bytes, share: float, count: int) -> bytes:
    at = int(len(whole) * share)
    return whole[:at] + whole[at + count :]


# ------------------------------------------------------------------ tags


END_TAG = b"TAG" + b"A title".ljust(125)  # ID3v1


def id3_tag(size: int, claimed: int | None = None) -> bytes:
    """An ID3v2 tag of `size` bytes whose header claims `claimed` bytes. Its content looks like MP3 frames."""
    stated = size if claimed is None else claimed
    head = b"ID3\3\0\0" + bytes(stated >> shift & 127 for shift in (21, 14, 7, 0))
    return head + (b"\xff\xfbjpeg" * (size // 6 + 1))[:size]
