"""What the readers of audio files have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")  # between the frames of an MP3, and behind the end of any file
# A size in a header: from here on it means that the program which wrote it, to a pipe, did not know it; what is less.
UNKNOWN_BYTES, SLACK_BYTES = 0x7FFF0000, 4096
SECOND_FILE = re.compile(rb"RIFF....WAVE|fLaC\0\0\0\x22", re.DOTALL)


class AudioError(Exception):
    """Why one audio file cannot be used, in a few words."""


class AudioReader:
    """An opened audio file: iterate once over its mono blocks, float32 [samples]."""

    sample_rate = 0  # Hz
    duration_s = 0.0  # by the header, or FFmpeg's estimate; 0 if unknown
    seconds = 0.0  # read so far
    problem = ""  # known after the last block
    channels_cancel = False  # a loud block whose mean over the channels is silence was met

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @np.errstate(over="ignore", invalid="ignore")  # a damaged file of floats may hold any
    def _mono(self, block: np.ndarray) -> np.ndarray:
        """float32, or int16, [samples, channels] -> float32 [samples].

        Channel by channel, so that each sum has one order in any block; of int16 the sums are exact.
        """
        channels = block.shape[1]
        mono = np.add(block[:, 0], block[:, 1] if channels > 1 else np.float32(0), dtype=np.float32)
        for channel in range(2, channels):
            mono += block[:, channel]
        full_scale = 32768 if block.dtype == np.int16 else 1
        mono /= channels * full_scale
        if channels > 1 and not self.channels_cancel and mono @ mono < 1e-6 * len(mono):
            first = block[:, 0].astype(np.float32) / full_scale
            self.channels_cancel = first @ first > 1e-4 * len(first)
        return mono


def second_file(file: BinaryIO, end: int) -> str:
    """What to say if another WAV or FLAC stands behind the first, which ends at this byte at the latest."""
    file.seek(end)
    return "a second file behind its end is not used" if SECOND_FILE.search(file.read(1 << 17)) else ""
