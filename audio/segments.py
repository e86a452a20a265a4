"""Any audio file in, exact 24 kHz mono segments out. Used by the dataset and by the continuation.

Nothing to run. Files are read as a stream, so a three-hour mix needs no more memory than a song.
"""

from __future__ import annotations

import functools
import io
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.transforms

from audio.reading import AudioError, AudioFile, SilentDamageError, open_whole
from common.errors import printable
from common.files import atomic_write

# What libsndfile reads, and the music formats it does not: those deserve a line that says so.
# Anything else in a folder (covers, playlists, notes) is no music and is passed over.
AUDIO_EXTENSIONS = frozenset(
    """.wav .wave .w64 .rf64 .flac .mp3 .mp2 .ogg .oga .opus .aif .aiff .aifc .caf .au .snd
    .bwf .mp1 .voc .8svx .iff
    .m4a .m4b .mp4 .aac .wma .ape .wv .mpc .alac .ac3 .dsf""".split()  # noqa: SIM905
)

# Kaiser-windowed sinc, the "kaiser_best" setting that torchaudio's documentation takes from resampy.
FILTER_WIDTH, ROLLOFF, BETA = 64, 0.9475937167399596, 14.769656459379492
# torchaudio's filter table holds (rate / gcd) x (24000 / gcd) taps: 16.5 million for 44,056 Hz, but
# a thousand million for 44,101 Hz, which is no rate of any real recording.
MAX_FILTER_TAPS = 25_000_000
READ_VALUES = 1 << 20  # samples x channels read at once: 4 MB, whatever the header says


def find_audio_files(folder: Path, leave_out: Path | None = None) -> list[str]:
    """Paths of the audio files below `folder`, relative to it and sorted, links to folders followed.

    Hidden files are left out (macOS keeps `._NAME` beside NAME), and so is the folder `leave_out`; a folder is
    entered once, so a loop of links ends. A folder that cannot be read stands in the list itself: opening it
    will say why.
    """
    found, entered = [], set()
    if leave_out is not None and leave_out.exists():
        entered.add((leave_out.stat().st_dev, leave_out.stat().st_ino))

    def keep(error: OSError) -> None:
        found.append(os.path.relpath(error.filename, folder))

    for parent, folders, names in os.walk(folder, onerror=keep, followlinks=True):
        here = os.stat(parent)
        if (here.st_dev, here.st_ino) in entered:
            folders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS:
                found.append(os.path.relpath(os.path.join(parent, name), folder))
    return sorted(found, key=os.fsencode)


def open_audio(path: str | os.PathLike, sample_rate: int) -> AudioFile:
    """Open an audio file that can be brought to `sample_rate` Hz; AudioError says why not."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError("a folder" if os.access(path, os.R_OK | os.X_OK) else "a folder that may not be read")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            raise AudioError("not a regular file")
        if os.path.getsize(path) == 0:
            raise AudioError("empty file")
        audio = open_whole(path)
    except OSError as error:
        raise AudioError(error.strerror or str(error)) from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        if not os.access(path, os.R_OK):
            raise AudioError("permission denied") from error
        reason = _reason(error)
        if "not a regular file" in reason:  # what libsndfile has left when mpg123 does not know the format either
            reason = "Format not recognised"
        raise AudioError(f"not readable as audio: {reason}") from error
    o, n = _ratio(max(1, audio.samplerate), sample_rate)
    if not 1000 <= audio.samplerate <= 1_000_000 or o * n > MAX_FILTER_TAPS:
        audio.close()
        raise AudioError(f"sample rate of {audio.samplerate} Hz is not supported; convert it first")
    return audio


def stream_segments(audio: AudioFile, segment_duration: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield a track's consecutive segments: float32 [segment_duration * sample_rate], mono.

    Put end to end they equal `torchaudio.functional.resample` of the whole track to the last bit,
    in the memory of one segment. Proof: with o and n the two rates divided by their greatest common
    divisor, the resampler computes n outputs from each period of o inputs and the `half_width`
    inputs on both sides. A segment is a whole number of seconds, hence of periods; a block that
    begins a whole number of periods (at least half_width inputs) before its segment and ends as far
    behind it gives the segment's outputs from the same inputs through the same sums. (For blocks of about a
    second and less, oneDNN may pick a kernel that adds in another order: there the last bit can differ.)

    A remainder shorter than a segment is dropped. AudioError: the decoder met damage; what was
    yielded before is good, unless it is a SilentDamageError.
    """
    o, n = _ratio(audio.samplerate, sample_rate)
    context = _context_periods(o, n) * o
    segment_in, segment_out = segment_duration * audio.samplerate, segment_duration * sample_rate
    block = np.zeros(0, np.float32)
    block_start = 0  # index in the track of the block's first sample
    segment_start = 0
    while True:
        missing = segment_start + segment_in + context - (block_start + len(block))
        block = np.concatenate([block, *_read_mono(audio, missing, block_start + len(block))])
        if block_start + len(block) < segment_start + segment_in:
            return
        first_output = (segment_start - block_start) // o * n
        yield resample(block, audio.samplerate, sample_rate)[first_output : first_output + segment_out]
        segment_start += segment_in
        next_start = max(0, segment_start - context)
        block, block_start = block[next_start - block_start :], next_start


def read_last_segment(path: str | os.PathLike, segment_duration: int, sample_rate: int) -> np.ndarray:
    """The last `segment_duration` seconds of a file: float32 [segment_duration * sample_rate], mono.

    Raises AudioError for a file that cannot be read or is shorter.
    """
    wanted = segment_duration * sample_rate
    with open_audio(path, sample_rate) as audio:
        seconds = audio.good_frames / audio.samplerate
        if seconds < segment_duration:
            raise AudioError(f"{seconds:.2f} s long; a continuation needs at least {segment_duration} s")
        o, n = _ratio(audio.samplerate, sample_rate)
        needed = segment_duration * audio.samplerate + (_context_periods(o, n) + 1) * o
        start = max(0, audio.good_frames - needed) // o * o  # on the whole track's grid of periods
        try:
            audio.seek(start)
        except soundfile.SoundFileError as error:
            raise AudioError(f"damaged: {_reason(error)}") from error
        mono = np.concatenate([np.zeros(0, np.float32), *_read_mono(audio, needed + o, start)])
        if audio.problem:
            print(f"{printable(path)}: {audio.problem}; continued from there", file=sys.stderr)
    segment = resample(mono, audio.samplerate, sample_rate)[-wanted:]
    if not np.isfinite(segment).all():
        raise AudioError(f"its last {segment_duration} s hold values that are not finite")
    return segment


def resample(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 [samples] at `rate` Hz -> float32 [ceil(samples * sample_rate / rate)]."""
    if rate == sample_rate:
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
    mean_square = float(np.var(segment, dtype=np.float64))
    return 10 * math.log10(mean_square) if mean_square > 0 else -math.inf


def to_pcm16(segment: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 in [-1, 1) -> int16, and how many samples were clipped.

    The inverse of libsndfile's reading (int16 / 32768): 16-bit input comes back unchanged.
    """
    scaled = np.rint(segment * np.float32(32768))
    clipped = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def write_wav(path: str | os.PathLike, pcm16: np.ndarray, sample_rate: int, comment: str = "") -> None:
    """Write int16 [samples] as a mono 16-bit WAV that appears complete or not at all, `comment` in its header."""
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", sample_rate, channels=1, subtype="PCM_16", format="WAV") as audio:
        if comment:
            audio.comment = comment
        audio.write(pcm16)
    with atomic_write(path) as beside:
        beside.write_bytes(content.getbuffer())


def _ratio(rate: int, sample_rate: int) -> tuple[int, int]:
    common = math.gcd(rate, sample_rate)
    return rate // common, sample_rate // common


def _context_periods(o: int, n: int) -> int:
    """Whole periods of o inputs that hold the filter's half width, and one more; 0 without resampling."""
    if o == n:
        return 0
    half_width = math.ceil(FILTER_WIDTH * o / (min(o, n) * ROLLOFF))
    return math.ceil(half_width / o) + 1


def _read_mono(audio: AudioFile, wanted: int, at: int) -> Iterator[np.ndarray]:
    """Up to `wanted` samples from the audio's frame `at` on, as float32 blocks, the mean of all channels."""
    end = min(at + wanted, audio.good_frames)
    while at < end:
        try:
            block = audio.read(min(end - at, max(1, READ_VALUES // audio.channels)), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioError(f"damaged: {_reason(error)}") from error
        if len(block) == 0:
            seconds, promised = at / audio.samplerate, audio.good_frames / audio.samplerate
            raise SilentDamageError(f"damaged: only {seconds:.2f} s of {promised:.2f} s can be decoded")
        # Channel by channel: each sample's sum has one order, whatever the block's length.
        mono = block[:, 0].copy()
        for channel in range(1, audio.channels):
            mono += block[:, channel]
        mono /= audio.channels
        at += len(block)
        yield mono


def _reason(error: Exception) -> str:
    # soundfile's message repeats the path; libsndfile's own words follow the last colon.
    return (getattr(error, "error_string", None) or str(error)).strip().rstrip(".")
