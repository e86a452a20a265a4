"""An MP3 as its frames: how much it really holds, and where it breaks off. Used by whole_audio.py.

Nothing to run. An MP3 has no length: libsndfile takes it from a header frame (Xing), or else guesses it from the
file's size and reads no further; and what is no frame is passed over without a word. Walking from frame to frame
tells the truth, at thousands of times real time.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO, NamedTuple

# kbit/s by (MPEG 1 or 2, layer) and the header's index 1 to 14; samples by the same (ISO 11172-3, ISO 13818-3).
_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
BIT_RATES = {
    (1, 1): tuple(range(32, 449, 32)),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): _LOW,
    (2, 3): _LOW,
}
FRAME_SAMPLES = {(1, 1): 384, (1, 2): 1152, (1, 3): 1152, (2, 1): 384, (2, 2): 1152, (2, 3): 576}
SAME_STREAM = 0xFFFE0C00  # the header's sync word, version, layer and sample rate
UNGUESSED_SIZE = 1 << 40


class Mp3Frames(NamedTuple):
    """What a walk over the frames of an MP3 found."""

    samples: int  # in the frames before `problem`, or in all
    promised: int | None  # samples that the header frame gives, before they are trimmed; None if there is none
    problem: str  # what is wrong behind these samples; "" if nothing is


class UnguessedFile(io.FileIO):
    """An MP3 for libsndfile that seems endless, so that what it guesses never ends the reading early."""

    at_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at_end = (offset, whence) == (0, os.SEEK_END)  # only the size is asked for in this way
        return UNGUESSED_SIZE if self.at_end else super().seek(offset, whence)

    def tell(self) -> int:
        return UNGUESSED_SIZE if self.at_end else super().tell()


def walk_frames(path: str | os.PathLike) -> Mp3Frames:
    """Walk over all frames of an MP3 (layer 1, 2 or 3; OSError if it cannot be read).

    Tags before the first frame and anything behind the last one belong there. What stands between two frames
    does not: the walk ends before it and says so.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = _find_frame(file, _skip_id3(file))
        if at is None:
            return Mp3Frames(0, None, "holds no MP3 frames of a known bit rate")
        first = _frame_at(file, at)
        promised = _promised_frames(_read_at(file, at, first.length))
        if promised is not None:
            promised *= first.samples
            at += first.length  # the header frame holds no audio
        samples, problem = 0, ""
        while (frame := _frame_at(file, at)) and frame.stream == first.stream:
            at, samples = at + frame.length, samples + frame.samples
        if at > size:
            samples -= first.samples
        if size - 4 < at != size:
            problem = "its last frame is cut off"
        elif (follows := _find_frame(file, at, first.stream)) is not None:
            problem = f"{follows - at} bytes in its middle, from byte {at}, are no MP3"
        elif frame:
            problem = "goes on in another format"
        elif promised is not None and samples > promised:
            samples, problem = promised, "goes on behind the end that its header gives"
        return Mp3Frames(samples, promised, problem)


class _Frame(NamedTuple):
    length: int  # bytes
    samples: int
    stream: int  # what all frames of a stream have in common


def _frame_at(file: BinaryIO, at: int) -> _Frame | None:
    """The frame whose header stands at this byte; None if none does."""
    header = _read_at(file, at, 4)
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # version 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    bit_rate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    kind = (1 if version == 3 else 2, layer)
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    slot = 4 if layer == 1 else 1  # bytes
    slots = FRAME_SAMPLES[kind] // 8 // slot * 1000 * BIT_RATES[kind][bit_rate - 1] // hertz
    padding = header[2] >> 1 & 1
    return _Frame((slots + padding) * slot, FRAME_SAMPLES[kind], int.from_bytes(header, "big") & SAME_STREAM)


def _find_frame(file: BinaryIO, start: int, stream: int | None = None) -> int | None:
    """Where from `start` on two frames of one stream (of this stream) first stand together; None if nowhere."""
    at = start
    while block := _read_at(file, at, 1 << 20):
        position = block.find(0xFF)
        while position >= 0:
            frame = _frame_at(file, at + position)
            if frame and stream in (None, frame.stream):
                behind = _frame_at(file, at + position + frame.length)
                if behind and behind.stream == frame.stream:
                    return at + position
            position = block.find(0xFF, position + 1)
        at += len(block)
    return None


def _skip_id3(file: BinaryIO) -> int:
    """Where the ID3v2 tags at the start end."""
    at = 0
    while (head := _read_at(file, at, 10))[:3] == b"ID3" and len(head) == 10:
        length = 0
        for byte in head[6:]:  # 7 bits each
            length = length << 7 | byte & 0x7F
        at += 10 + length + (10 if head[5] & 0x10 else 0)
    return at


def _promised_frames(frame: bytes) -> int | None:
    """The number of frames that a Xing (variable bit rate) or Info (constant) header frame gives."""
    for name in (b"Xing", b"Info"):
        at = frame.find(name, 0, 48)
        if at >= 0 and len(frame) >= at + 12 and frame[at + 7] & 1:
            return int.from_bytes(frame[at + 8 : at + 12], "big")
    return None


def _read_at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
