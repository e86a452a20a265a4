"""What the two readers of audio files share. Used by reading.py and ffmpeg.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")  # found between the frames of an MP3 and after the end of any file
# Programs that write to a pipe don't know the size and put a huge one into the header: ignore sizes from
# UNKNOWN_BYTES on. A file that is at most SLACK_BYTES shorter than its header says counts as whole.
UNKNOWN_BYTES, SLACK_BYTES = 0x7FFF0000, 4096
SECOND_FILE = re.compile(rb"RIFF....WAVE|fLaC\0\0\0\x22", re.DOTALL)


class AudioError(Exception):
    """Why one audio file cannot be used, in a few words."""


class AudioReader:
    """An open audio file. Iterate over it once to get its mono blocks, float32 [samples]."""

    sample_rate = 0  # Hz
    duration_s = 0.0  # from the header or estimated by FFmpeg; 0 if unknown
    seconds = 0.0  # read so far
    problem = ""  # what is wrong with the file; known after the last block
    channels_cancel = False  # whether the channels of a loud block canceled out when averaged

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @np.errstate(over="ignore", invalid="ignore")  # a damaged float file may contain any value
    def _mono(self, block: np.ndarray) -> np.ndarray:
        """float32 or int16 [samples, channels] -> float32 [samples].

        Adds channel by channel, so that the result doesn't depend on the block size. Sums of int16 are exact.
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
    """A message if another WAV or FLAC follows the first, which ends at byte `end` at the latest; else ""."""
    file.seek(end)
    return "a second file follows the first and is not used" if SECOND_FILE.search(file.read(1 << 17)) else ""
