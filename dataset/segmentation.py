"""Cut tracks into segments and stage them on disk, so that a killed run resumes.

A staged track is a folder in .staging/. Its name is a hash of the file's version and the settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from audio.reading import AudioError, open_audio
from audio.segments import MAX_SAMPLE, SAMPLE_RATE, level_dbfs, stream_segments, to_pcm16, wav_bytes
from common.errors import name_in_errors
from dataset.pairs import digest_of
from dataset.recordings import Fingerprint
from dataset.selection import Segment, Track

STAGING_NAME, PRINTS_NAME = ".staging", "prints"
STAGED_TRACK = re.compile(r"[0-9a-f]{24}(\.\d+\.part)?")
CHANGED = "changed while it was read; run this again when it is complete"
MIN_READ_S = 120  # always read at least this much of a track, to recognize the same recording in another file


@dataclass(frozen=True)
class SegmentationSettings:
    """Where tracks are read and staged, and how they are cut into segments."""

    input_dir: str
    staging: str
    segment_duration: int  # s
    min_level_db: float  # dBFS
    sample_rate: int = SAMPLE_RATE  # of the WAVs, Hz


def staged_tracks(output_dir: Path) -> list[Path]:
    """The folders of staged tracks, including partial ones of a killed run."""
    return [p for p in output_dir.glob(f"{STAGING_NAME}/*") if STAGED_TRACK.fullmatch(p.name)]


def remove_staged(output_dir: Path) -> None:
    for folder in staged_tracks(output_dir):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it stays if it contains other files
        (output_dir / STAGING_NAME).rmdir()


def probe_track(settings: SegmentationSettings, source: str) -> tuple[float, int]:
    """(seconds by its header, bytes of the file) of a track; (0, 0) if it cannot be read."""
    path = Path(settings.input_dir, source)
    try:
        with open_audio(path) as audio:
            return audio.duration_s, path.stat().st_size
    except (AudioError, OSError):
        return 0.0, 0


def stage_track(settings: SegmentationSettings, source_and_pairs: tuple[str, int]) -> Track:
    """Read a track and write the segments of its first usable pairs, up to the requested number.

    A segment is usable if it is finite and at least `min_level_db` loud. The staged folder appears complete, by one
    rename. If it exists already, it is used as it is.
    """
    source, pairs = source_and_pairs
    path, key = Path(settings.input_dir, source), _staging_key(settings, source, pairs)
    final = Path(settings.staging, key)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((final / "track.json").read_text())
        return Track(source, [Segment(**segment) for segment in record.pop("segments")], staged=str(final), **record)

    partial = Path(settings.staging, f"{key}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    segments, staged_pairs, is_whole, problem = _cut(settings, path, pairs, partial)
    if _staging_key(settings, source, pairs) != key:
        segments, staged_pairs, is_whole = [], 0, True
        problem = CHANGED
    record = {"segments": [asdict(s) for s in segments], "staged_pairs": staged_pairs, "is_whole": is_whole}
    _write(partial / "track.json", json.dumps(record | {"problem": problem}).encode())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return Track(source, segments, staged_pairs, is_whole, problem, str(final))


def lost_track(source_and_pairs: tuple[str, int], reason: str) -> Track:
    """The track of a file that crashed the processes that read it."""
    return Track(source_and_pairs[0], [], problem=reason)


def _cut(settings: SegmentationSettings, path: Path, pairs: int, folder: Path) -> tuple[list[Segment], int, bool, str]:
    """Write NNNNN.wav for the segments of the first `pairs` usable pairs, and the track's prints, into `folder`.

    Returns the segments read, the number of pairs written, whether the whole track was read, and its problem.
    """
    segments: list[Segment] = []
    fingerprint, previous, written, is_whole = Fingerprint(settings.sample_rate), None, 0, True
    seconds = 0.0
    try:
        with open_audio(path) as audio:
            for index, samples in enumerate(stream_segments(audio, settings.segment_duration, settings.sample_rate)):
                if written >= pairs and index * settings.segment_duration >= MIN_READ_S:
                    is_whole = False
                    break
                segment, pcm16 = _examine(samples, settings.min_level_db)
                segments.append(segment)
                fingerprint.add(samples if segment.digest else np.zeros_like(samples))
                if previous is not None and segment.usable and written < pairs:
                    for number, segment_pcm16 in ((index - 1, previous), (index, pcm16)):
                        wav = folder / f"{number:05d}.wav"
                        if not wav.exists():
                            _write(wav, wav_bytes(segment_pcm16, settings.sample_rate))
                    written += 1
                previous = pcm16 if segment.usable else None
            problem, seconds = audio.problem, audio.seconds
    except AudioError as error:
        return [], 0, True, str(error)
    _write(folder / PRINTS_NAME, fingerprint.prints().tobytes())
    problems = [problem] if problem else []
    if broken := sum(not segment.digest for segment in segments):
        what = f"NaN or samples beyond {MAX_SAMPLE:.0f} times full scale"
        problems.append(f"left out {broken} of {len(segments)} segments: {what}")
    if len(segments) < 2:
        problems.append(f"shorter than the {2 * settings.segment_duration} s of a pair ({seconds:.1f} s)")
    elif written == 0:
        cancel, quiet = "its channels cancel out (their mean is silence)", "no two consecutive segments are loud enough"
        problems.append(cancel if audio.channels_cancel else quiet)
    return segments, written, is_whole, "; ".join(problems)


def _write(path: Path, content: bytes) -> None:
    with name_in_errors(path):  # need not be atomic, because the folder is renamed
        path.write_bytes(content)


def _staging_key(settings: SegmentationSettings, source: str, pairs: int) -> str:
    """The name of a track's staged folder: a hash of the file's version and the settings."""
    try:
        about = Path(settings.input_dir, source).stat()
        version = (about.st_size, about.st_ctime_ns)  # ctime changes with content, name and permissions
    except OSError as error:
        version = (error.errno,)
    identity = [source, *version, pairs, settings.segment_duration, settings.min_level_db, settings.sample_rate]
    return hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _examine(samples: np.ndarray, min_level_db: float) -> tuple[Segment, np.ndarray]:
    if not np.isfinite(samples).all():
        return Segment("", False, 0), np.zeros(0, np.int16)
    pcm16, clipped = to_pcm16(samples)
    return Segment(digest_of(pcm16), level_dbfs(samples) >= min_level_db, clipped), pcm16
