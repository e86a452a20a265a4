"""Read any audio file as blocks of mono samples: PCM and FLAC with libsndfile, everything else with FFmpeg (PyAV).

    with open_audio("song.mp3") as audio:
        for block in audio: ...     float32 [samples] at audio.sample_rate Hz, the mean of all channels
    audio.problem                   what is wrong with the file, in a few words; "" if nothing

Files are read forward only, because seeking is inexact in some formats and fails in some files. A file is used up to
its first error. Consecutive streams in one file (chained Ogg, joined MP3s) are all used.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from audio.base import SLACK_BYTES, TAGS, UNKNOWN_BYTES, AudioError, AudioReader, second_file
from audio.ffmpeg import FfmpegReader

__all__ = ["AudioError", "AudioReader", "open_audio"]

# Files for libsndfile, except MP3 in a WAV (format tag 0x55), which only FFmpeg reads.
PCM_HEAD = re.compile(rb"RIF[FX]|RF64|FORM|caff|\.snd|fLaC")
VORBIS = b"\x01vorbis"
MP3_IN_WAV = re.compile(rb"fmt ....\x55\0", re.DOTALL)
UNKNOWN_FRAMES = 1 << 62  # the length that libsndfile reports for a FLAC that was written to a pipe
READ_VALUES = 1 << 17  # samples x channels read at once: about a second
FEW_VALUES = 4096  # the usual size of a FLAC frame
# In libsndfile's log: the length in the header and the actual one. Programs that write to a pipe put the maximum.
LENGTHS = re.compile(r": (\d+) \(should be (\d+)\)")
# Sync words of DTS (16 and 14 bits, either byte order) and S/PDIF (IEC 61937) that are stored as 16-bit PCM.
CODED = re.compile(
    rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\0\x07[\xf0-\xff]|\xff\x1f\0\xe8[\xf0-\xff]\x07|\x72\xf8\x1f\x4e"
)
FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9][\x10-\xef]")  # all frames of a stream begin with the same three bytes


def open_audio(path: str | os.PathLike) -> AudioReader:
    """Open an audio file. Raises AudioError with the reason if it cannot be read."""
    file = None
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError("a folder" if os.access(path, os.R_OK | os.X_OK) else "a folder without read permission")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            raise AudioError("not a regular file")
        file = open(path, "rb")  # noqa: SIM115
        start = _behind_tag(file)
        file.seek(start)
        head = file.read(4096)
        if not head:
            raise AudioError("empty file")
        reader: AudioReader | None = None
        if PCM_HEAD.match(head) and not MP3_IN_WAV.search(head):
            with contextlib.suppress(soundfile.SoundFileError, TypeError, ValueError):
                reader = SndfileReader(file)
        try:
            reader = reader or FfmpegReader(path, file, start)
        except AudioError as error:
            # FFmpeg refuses some Vorbis headers that libvorbis reads.
            with contextlib.suppress(soundfile.SoundFileError, TypeError, ValueError):
                reader = SndfileReader(file) if VORBIS in head else None
            if reader is None:
                raise error from error.__cause__
        if not 1000 <= reader.sample_rate <= 1_000_000:
            raise AudioError(f"sample rate of {reader.sample_rate} Hz is not supported; convert it first")
        return reader
    except BaseException as error:
        if file is not None:
            file.close()
        if isinstance(error, OSError):
            raise AudioError(error.strerror or str(error)) from error
        raise


def _behind_tag(file: BinaryIO) -> int:
    """The first byte after an ID3v2 tag, or 0 if there is none. Bytes 6 to 9 hold its size, 7 bits each."""
    head = file.read(10)
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    footer = 10 if head[5] & 16 else 0
    end = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)) + footer
    return end if end < os.fstat(file.fileno()).st_size else 0


class SndfileReader(AudioReader):
    """Reads PCM-like formats and FLAC. Raises ValueError if libsndfile does not know the length."""

    _read_values = READ_VALUES

    class _Forwards(soundfile.SoundFile):
        def seekable(self) -> bool:  # otherwise soundfile seeks after each read
            return False

    def __init__(self, file: BinaryIO):
        self._file = file
        self._open()
        self._frames, self.sample_rate = self._audio.frames, self._audio.samplerate
        if not 0 < self._frames < UNKNOWN_FRAMES:
            self._audio.close()
            raise ValueError("unknown length")
        self.duration_s = self._frames / self.sample_rate
        try:
            self._first = self._read(0)
        except soundfile.SoundFileError:  # damaged in the first second: use what is before that
            self._audio.close()
            self._open()
            self._read_values = FEW_VALUES
            self._first = self._read(0)
        if self._first.dtype == np.int16 and len(CODED.findall(self._first.tobytes())) > 9:
            self._audio.close()
            if self._audio.format != "WAV":
                raise AudioError("its samples are DTS or S/PDIF data; decode it first")
            raise ValueError("a coded stream in a WAV, which FFmpeg can read")

    def _open(self) -> None:
        self._file.seek(0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)  # Python may only have moved within its buffer
        self._audio = self._Forwards(self._file.fileno(), closefd=False)

    def close(self) -> None:
        self._audio.close()
        self._file.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        done, block = 0, self._first
        try:
            while len(block):
                done += len(block)
                self.seconds = done / self.sample_rate
                yield self._mono(block)
                block = self._read(done)
        except soundfile.SoundFileError as error:
            reason = (getattr(error, "error_string", None) or str(error)).removeprefix("Error : ").strip().rstrip(".")
            self.problem = f"damaged at {self.seconds:.2f} s ({reason}); nothing after that is used"
            return
        self.problem = self._problem(done)

    def _read(self, done: int) -> np.ndarray:
        numbers = "int16" if self._audio.subtype == "PCM_16" else "float32"  # int16 takes a third of the time
        wanted = min(self._frames - done, max(1, self._read_values // self._audio.channels))
        return self._audio.read(wanted, numbers, always_2d=True)

    def _problem(self, done: int) -> str:
        seconds = f"{self.seconds:.2f} s"
        if self._frames - done > 0.01 * self.sample_rate:
            return f"cut off at {seconds} of {self.duration_s:.2f} s"
        if any(
            int(promised) < UNKNOWN_BYTES and int(promised) - int(there) > SLACK_BYTES
            for promised, there in LENGTHS.findall(self._audio.extra_info)
        ):
            return f"cut off at {seconds}, although its header states more"
        position, size = os.lseek(self._file.fileno(), 0, os.SEEK_CUR), os.fstat(self._file.fileno()).st_size
        if self._audio.format == "FLAC":
            another = second_file(self._file, max(64, position - (1 << 16)))  # libFLAC reads ahead
            self._file.seek(position)
            frames = collections.Counter(FLAC_FRAME.findall(self._file.read(1 << 17)))
            more = max(frames.values(), default=0) > 3
        elif self._audio.format in ("WAV", "WAVEX"):
            if size >= 1 << 32:
                return f"larger than a WAV header can describe; only the first {seconds} are used"
            position = self._chunks_end(position, size)
            another = second_file(self._file, position)
            self._file.seek(position)
            rest = self._file.read(1 << 17)
            more = len(rest) > SLACK_BYTES and rest.strip(b"\0") and not rest.startswith(TAGS)
        else:
            another, more = second_file(self._file, position), False
        return another or (f"longer than its header states; only the first {seconds} are used" if more else "")

    def _chunks_end(self, position: int, size: int) -> int:
        """The end of the chunks that follow the samples in a WAV of `size` bytes."""
        while True:
            self._file.seek(position)
            name, length = struct.unpack("<4sI", self._file.read(8).ljust(8, b"\0"))
            after = position + 8 + length + length % 2
            if name == b"RIFF" or not all(32 <= byte < 127 for byte in name) or after > size + 1:
                return position
            position = after
