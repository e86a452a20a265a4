"""Exact segments of a track at the codec's rate, and WAV out: for the dataset and for the continuation.

Files are read as a stream, so a three-hour mix needs no more memory than a song.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torchaudio.transforms

from audio.reading import AudioError, AudioReader, open_audio
from common.files import atomic_write

SAMPLE_RATE = 24000  # Hz, that of EnCodec's 24 kHz model
WAV_COMMENT = "Jingle_D"  # begins the comment in WAVs that are made for listening: they are no music for a dataset
# Kaiser-windowed sinc, the "kaiser_best" setting that torchaudio's documentation takes from resampy.
FILTER_WIDTH, ROLLOFF, BETA = 64, 0.9475937167399596, 14.769656459379492
# torchaudio's filter table holds (rate / gcd) x (24000 / gcd) taps: 16.5 million for 44,056 Hz, but
# a thousand million for 44,101 Hz, which is no rate of any real recording.
MAX_FILTER_TAPS = 25_000_000
MAX_SAMPLE = 100.0  # float files are full scale at 1; what is beyond this is no sound


def stream_segments(audio: AudioReader, segment_duration: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield a track's consecutive segments: float32 [segment_duration * sample_rate], mono.

    Put end to end they equal `torchaudio.functional.resample` of the whole track to the last bit. Proof: with o and n
    the two rates divided by their greatest common divisor, the resampler computes n outputs from each period of o
    inputs and the `half_width` inputs on both sides. A segment is whole seconds, hence whole periods; a block that
    begins whole periods (at least half_width inputs) before its segment and ends as far behind it gives the
    segment's outputs from the same inputs through the same sums. (For blocks of about a second and less, oneDNN may
    pick a kernel that adds in another order: there the last bit can differ.)

    A remainder shorter than a segment is dropped. A segment is all NaN if a sample that it is computed from is not
    finite or beyond `MAX_SAMPLE`. Raises AudioError for a sample rate that cannot be resampled.
    """
    o, n = _ratio(audio.sample_rate, sample_rate)
    context = _context_periods(o, n) * o
    segment_in, segment_out = segment_duration * audio.sample_rate, segment_duration * sample_rate
    blocks = iter(audio)
    track = np.zeros(0, np.float32)  # from `track_start` on
    track_start = segment_start = 0
    while True:
        wanted = segment_start + segment_in + context - track_start
        pieces, have = [track], len(track)
        while have < wanted and (block := next(blocks, None)) is not None:
            pieces.append(block)
            have += len(block)
        track = np.concatenate(pieces) if len(pieces) > 1 else track
        if track_start + have < segment_start + segment_in:
            return
        heard = track[:wanted]
        if heard.max() <= MAX_SAMPLE and heard.min() >= -MAX_SAMPLE:  # false for NaN
            first_output = (segment_start - track_start) // o * n
            yield resample(heard, audio.sample_rate, sample_rate)[first_output : first_output + segment_out]
        else:
            yield np.full(segment_out, np.nan, np.float32)
        segment_start += segment_in
        next_start = max(0, segment_start - context)
        track, track_start = track[next_start - track_start :], next_start


def read_last_samples(
    path: str | os.PathLike,
    num_samples: int,
    sample_rate: int,
    progress: Callable[[AudioReader], Iterable[np.ndarray]] = iter,
) -> tuple[np.ndarray, str]:
    """The last `num_samples` of a file at `sample_rate` Hz, float32 [num_samples or all there are], mono.

    Returns them with what is not whole in the file ("" if nothing). They equal the end of the whole track's resample.
    `progress` passes the audio's blocks on. Raises AudioError for a file that cannot be read.
    """
    with open_audio(path) as audio:
        o, n = _ratio(audio.sample_rate, sample_rate)
        needed = math.ceil(num_samples * o / n) + (_context_periods(o, n) + 2) * o
        blocks: deque[np.ndarray] = deque()
        have = dropped = 0
        for block in progress(audio):
            blocks.append(block)
            have += len(block)
            while have - len(blocks[0]) >= needed:
                have -= len(blocks[0])
                dropped += len(blocks.popleft())
        tail = np.concatenate([np.zeros(0, np.float32), *blocks])[
            -dropped % o :
        ]  # on the whole track's grid of periods
        return resample(tail, audio.sample_rate, sample_rate)[-num_samples:], audio.problem


def resample(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 [samples] at `rate` Hz -> float32 [ceil(samples * sample_rate / rate)]."""
    if rate == sample_rate or len(mono) == 0:
        return mono
    return _resampler(rate, sample_rate)(torch.from_numpy(mono)).numpy()


@functools.lru_cache(maxsize=1)  # one track after the other; the largest table holds 100 MB
def _resampler(rate: int, sample_rate: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(
        rate, sample_rate, "sinc_interp_kaiser", FILTER_WIDTH, ROLLOFF, BETA, dtype=torch.float32
    )


def level_dbfs(segment: np.ndarray) -> float:
    """Root mean square of a segment [samples] about its mean in decibels below full scale; -inf for silence.

    About its mean, as a constant offset is as silent as zeros.
    """
    centred = segment - segment.mean(dtype=np.float64).astype(np.float32)
    mean_square = float(centred @ centred) / len(segment)
    return 10 * math.log10(mean_square) if mean_square > 0 else -math.inf


def to_pcm16(segment: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 in [-1, 1) -> int16, and how many samples were clipped.

    The inverse of libsndfile's reading (int16 / 32768): 16-bit input comes back unchanged.
    """
    scaled = segment * np.float32(32768)
    np.rint(scaled, out=scaled)
    if scaled.max() <= 32767 and scaled.min() >= -32768:
        return scaled.astype(np.int16), 0
    clipped = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def write_wav(path: str | os.PathLike, pcm16: np.ndarray, sample_rate: int, comment: str = "") -> None:
    """Write int16 [samples] as a mono 16-bit WAV that appears complete or not at all, `comment` in its header."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(wav_bytes(pcm16, sample_rate, comment))


def wav_bytes(pcm16: np.ndarray, sample_rate: int, comment: str = "") -> bytes:
    """int16 [samples] -> the content of a mono 16-bit WAV, `comment` in its header."""
    text = comment.encode() + b"\0" * (2 - len(comment.encode()) % 2)
    info = struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text if comment else b""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    data = pcm16.astype("<i2", copy=False).tobytes()
    body = b"WAVE" + form + info + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _ratio(rate: int, sample_rate: int) -> tuple[int, int]:
    common = math.gcd(rate, sample_rate)
    o, n = rate // common, sample_rate // common
    if o * n > MAX_FILTER_TAPS:
        raise AudioError(f"sample rate of {rate} Hz is not supported; convert it first")
    return o, n


def _context_periods(o: int, n: int) -> int:
    """Whole periods of o inputs that hold the filter's half width, and one more; 0 without resampling."""
    if o == n:
        return 0
    half_width = math.ceil(FILTER_WIDTH * o / (min(o, n) * ROLLOFF))
    return math.ceil(half_width / o) + 1
