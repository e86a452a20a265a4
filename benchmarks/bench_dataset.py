"""Dataset creation against ffmpeg on the same files, two workers against one, a long file's memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.measure import Row

ROOT = Path(__file__).parent.parent


def make_files(folder: Path, minutes: int, count: int) -> dict[str, list[Path]]:
    """`count` files of `minutes` minutes in each format, 44.1 kHz stereo; pink-ish noise, no two alike."""
    files: dict[str, list[Path]] = {}
    for extension in ("wav", "flac", "mp3"):
        for number in range(count):
            path = folder / extension / f"{number}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(number)
            minute = np.cumsum(rng.standard_normal((44100 * 60, 2)), axis=0)
            minute = (0.3 * (minute - np.roll(minute, 50, axis=0)) / 20).clip(-1, 1).astype(np.float32)
            with soundfile.SoundFile(path, "w", 44100, 2) as out:
                for _ in range(minutes):
                    out.write(minute * rng.uniform(0.5, 1))
            files.setdefault(extension, []).append(path)
    return files


def create(source: Path, output: Path, workers: int) -> tuple[float, int]:
    """(seconds, peak memory in bytes of the largest process) of the real script."""
    command = [sys.executable, "create_dataset_pairs_wav.py", "--input_dir", source, "--output_dir", output]
    command += ["--num_workers", workers, "--max_pairs", 100000, "--val_pairs", 1000]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kilobytes = int(result.stdout)
    return time.perf_counter() - started, kilobytes * (1 if sys.platform == "darwin" else 1024)


def ffmpeg(files: list[Path], output: Path) -> float:
    """Seconds of ffmpeg for the same conversion and cutting, one file after the other."""
    output.mkdir(parents=True)
    started = time.perf_counter()
    for path in files:
        command = ["ffmpeg", "-loglevel", "error", "-threads", "1", "-i", path, "-ac", "1", "-ar", "24000"]
        command += ["-f", "segment", "-segment_time", "16", output / f"{path.stem}_%05d.wav"]
        subprocess.run(list(map(str, command)), check=True)
    return time.perf_counter() - started


def run(work_dir: Path, minutes: int = 20, count: int = 4) -> list[Row]:
    rows = []
    files = make_files(work_dir / "sources", minutes, count)
    empty = work_dir / "start"
    empty.mkdir()
    soundfile.write(empty / "a.wav", np.random.default_rng(0).standard_normal(24000 * 33) * 0.1, 24000)
    start, _ = create(empty, work_dir / "start_out", 1)  # python and torch, which a real folder pays once
    for extension, paths in files.items():
        one, _ = create(paths[0].parent, work_dir / f"{extension}_1", 1)
        theirs = ffmpeg(paths, work_dir / f"{extension}_ffmpeg")
        hours = minutes * count / 60
        note = f"{hours * 3600 / (one - start):.0f} x real time, {start:.1f} s of start-up taken off"
        rows.append(Row(f"dataset creation, {extension}, one process", "ffmpeg", theirs / (one - start), 1.0, note))
    two, _ = create(files["mp3"][0].parent, work_dir / "mp3_2", 2)
    one, _ = create(files["mp3"][0].parent, work_dir / "mp3_1b", 1)
    rows.append(Row("dataset creation, 2 workers", "1 worker", (one - start) / (two - start), 1.8))
    rows.append(memory(work_dir))
    return rows


def memory(work_dir: Path) -> Row:
    """The peak memory for a file of 3 hours against one of 10 minutes."""
    peaks = []
    for minutes in (10, 180):
        folder = work_dir / f"{minutes}_minutes"
        make_files(folder, minutes, 1)
        peaks.append(create(folder / "flac", folder / "out", 1)[1] / 1e6)
        for path in folder.rglob("*.wav"):
            path.unlink()
    note = f"{peaks[0]:.0f} MB and {peaks[1]:.0f} MB; goal: within 50 MB, under 600 MB"
    return Row("memory, 10-minute file", "3-hour file", peaks[0] / peaks[1], (peaks[1] - 50) / peaks[1], note)
