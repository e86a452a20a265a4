"""Cut tracks into exact segments at the codec's sample rate, and write WAV files. Used for datasets and continuations.

Tracks are read as a stream, so a three-hour mix needs no more memory than a song.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr

from audio.reading import AudioReader, open_audio
from common.files import atomic_write

SAMPLE_RATE = 24000  # Hz, the rate of EnCodec's 24 kHz model
WAV_COMMENT = "Jingle_D"  # marks WAVs written for listening, so that dataset creation ignores them
MAX_SAMPLE = 100.0  # float samples beyond this are treated as invalid; full scale is 1


def resampled_blocks(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Resample a track's mono blocks from `rate` to `sample_rate` Hz. Yields float32 [samples].

    The result does not depend on the block sizes. Invalid samples become NaN, and so does everything that the
    resampling filter computes from them.
    """
    resampler = None
    if rate != sample_rate:
        resampler = soxr.ResampleStream(rate, sample_rate, 1, "float32", "HQ")
    for block in blocks:
        if len(block) and not (block.max() <= MAX_SAMPLE and block.min() >= -MAX_SAMPLE):  # also true for NaN
            block = np.where(np.abs(block) <= MAX_SAMPLE, block, np.float32(np.nan))
        yield resampler.resample_chunk(block) if resampler else block
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def stream_segments(audio: AudioReader, segment_duration: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield a track's consecutive segments: float32 [segment_duration * sample_rate], mono.

    A remainder shorter than a segment is dropped. A segment with an invalid sample is all NaN.
    """
    length = segment_duration * sample_rate
    pieces: list[np.ndarray] = []
    have = 0
    for block in resampled_blocks(audio, audio.sample_rate, sample_rate):
        pieces.append(block)
        have += len(block)
        if have < length:
            continue
        samples = np.concatenate(pieces)
        while len(samples) >= length:
            segment, samples = samples[:length], samples[length:]
            yield segment if np.isfinite(segment).all() else np.full(length, np.nan, np.float32)
        pieces, have = [samples], len(samples)


def read_last_samples(path: str | os.PathLike, num_samples: int, sample_rate: int) -> tuple[np.ndarray, str]:
    """The last `num_samples` of a file at `sample_rate` Hz: float32 [at most num_samples], mono.

    Also returns what is wrong with the file ("" if nothing). Raises AudioError if the file cannot be read.
    """
    with open_audio(path) as audio:
        tail: deque[np.ndarray] = deque()
        have = 0
        for block in resampled_blocks(audio, audio.sample_rate, sample_rate):
            tail.append(block)
            have += len(block)
            while have - len(tail[0]) >= num_samples:
                have -= len(tail.popleft())
        return np.concatenate([np.zeros(0, np.float32), *tail])[-num_samples:], audio.problem


def level_dbfs(segment: np.ndarray) -> float:
    """RMS level of a segment [samples] in dB relative to full scale; -inf for silence.

    The mean is subtracted first, because a constant offset is silent too.
    """
    centered = segment - segment.mean(dtype=np.float64).astype(np.float32)
    mean_square = float(centered @ centered) / len(segment)
    return 10 * math.log10(mean_square) if mean_square > 0 else -math.inf


def to_pcm16(segment: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 in [-1, 1) -> int16, and the number of clipped samples.

    This inverts libsndfile's int16 / 32768, so 16-bit input comes back unchanged.
    """
    scaled = segment * np.float32(32768)
    np.rint(scaled, out=scaled)
    if scaled.max() <= 32767 and scaled.min() >= -32768:
        return scaled.astype(np.int16), 0
    clipped = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def write_wav(path: str | os.PathLike, pcm16: np.ndarray, sample_rate: int, comment: str = "") -> None:
    """Write int16 [samples] atomically as a mono 16-bit WAV with `comment` in its header."""
    atomic_write(path, wav_bytes(pcm16, sample_rate, comment))


def wav_bytes(pcm16: np.ndarray, sample_rate: int, comment: str = "") -> bytes:
    """int16 [samples] -> the content of a mono 16-bit WAV with `comment` in its header.

    It is made in memory, because libsndfile hides "disk full" errors.
    """
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", sample_rate, 1, "PCM_16", format="WAV") as wav:
        if comment:
            wav.comment = comment
        wav.write(pcm16)
    return content.getvalue()
