"""Each track of a dataset cut and written once, by several processes, so that a run that was cut goes on.

Nothing to run. A staged track is a folder in .staging/, named by a hash of the file's version and the settings.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from audio.segments import AudioError, SilentDamageError, level_dbfs, open_audio, stream_segments, to_pcm16, write_wav
from common.errors import UserError
from common.files import atomic_write
from dataset.pairs import Segment, Track, digest_of

STAGING_NAME = ".staging"
STAGED_TRACK = re.compile(r"[0-9a-f]{24}(\.\d+\.part)?")


def staged_tracks(output_dir: Path) -> list[Path]:
    """The folders of the tracks cut so far, and what a killed run left of them."""
    return [p for p in output_dir.glob(f"{STAGING_NAME}/*") if STAGED_TRACK.fullmatch(p.name)]


def remove_staged(output_dir: Path) -> None:
    for folder in staged_tracks(output_dir):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it stays if it holds anything that is not ours
        (output_dir / STAGING_NAME).rmdir()


def staging_key(path: Path, source: str, args: argparse.Namespace) -> str:
    """What names a track's staged folder: the file as it is now, or is not, and the settings."""
    try:
        about = path.stat()
        version = (about.st_size, about.st_ctime_ns)  # of the content, the name and the permissions
    except OSError as error:
        version = (error.errno,)
    identity = [source, *version, args.segment_duration, args.sample_rate, args.min_level_db, args.max_pairs]
    return hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def stage_track(source: str, input_dir: str, staging: str, args: argparse.Namespace) -> Track:
    """Decode one track and write those of its segments that belong to a usable pair.

    A segment is usable if it is finite and at least `min_level_db` loud. The staged folder appears
    by one rename once the track is complete; found there already, it is taken as it is.
    """
    path = Path(input_dir, source)
    key = staging_key(path, source, args)
    final = Path(staging, key)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((final / "track.json").read_text())
        return Track(source, [Segment(**s) for s in record["segments"]], record["problem"], str(final))

    torch.set_num_threads(1)  # one process a core
    partial = Path(staging, f"{key}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    segments: list[Segment] = []
    problem, previous, pairs = "", None, 0
    try:
        with open_audio(path, args.sample_rate) as audio:
            for index, samples in enumerate(stream_segments(audio, args.segment_duration, args.sample_rate)):
                segment, pcm16 = _examine(samples, args.min_level_db)
                segments.append(segment)
                if previous is not None and segment.usable:
                    if not (partial / f"{index - 1:05d}.wav").exists():
                        write_wav(partial / f"{index - 1:05d}.wav", previous, args.sample_rate)
                    write_wav(partial / f"{index:05d}.wav", pcm16, args.sample_rate)
                    pairs += 1
                    if pairs >= args.max_pairs + 2:  # more than this track can be asked for (split_pairs drops 2)
                        break
                previous = pcm16 if segment.usable else None
            problem = audio.problem
        if staging_key(path, source, args) != key:
            raise SilentDamageError("changed or vanished while it was read; run again when it is complete")
    except SilentDamageError as error:
        segments, problem = [], str(error)
    except AudioError as error:
        problem = str(error)
    if len(segments) < 2 and not problem:
        problem = f"shorter than two segments ({2 * args.segment_duration} s)"
    with atomic_write(partial / "track.json") as beside:
        beside.write_text(json.dumps({"segments": [asdict(s) for s in segments], "problem": problem}))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return Track(source, segments, problem, str(final))


def _examine(samples: np.ndarray, min_level_db: float) -> tuple[Segment, np.ndarray]:
    if not np.isfinite(samples).all():
        return Segment("", False, 0), np.zeros(0, np.int16)
    pcm16, clipped = to_pcm16(samples)
    return Segment(digest_of(pcm16), level_dbfs(samples) >= min_level_db, clipped), pcm16


def stage_tracks(sources: list[str], input_dir: Path, staging: Path, args: argparse.Namespace) -> Iterator[Track]:
    """Yield the staged tracks in the order of `sources`, `num_workers` of them under way at a time."""
    workers = min(args.num_workers, len(sources))
    if workers == 1:
        yield from (stage_track(source, str(input_dir), str(staging), args) for source in sources)
        return
    # Spawned, as torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=exit_with_parent) as pool:
        try:
            queue, remaining = [], iter(sources)
            while True:
                with _interrupt_held():
                    for source in itertools.islice(remaining, 2 * workers - len(queue)):
                        queue.append(pool.submit(stage_track, source, str(input_dir), str(staging), args))
                if not queue:
                    return
                yield queue.pop(0).result()
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():  # half a track is made again
                worker.terminate()
            raise
        except (concurrent.futures.process.BrokenProcessPool, BrokenPipeError) as error:  # at work, in its start
            raise UserError("a worker was killed (out of memory?); run again with a smaller --num_workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Keep Ctrl-C waiting. A process started meanwhile never hears it: it is for the parent, which ends the others."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def exit_with_parent() -> None:
    """Send this process SIGTERM once its parent is gone: a killed run leaves no processes behind."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
