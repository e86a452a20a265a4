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


FORMATS = ("wav", "flac", "mp3", "m4a", "ogg")
GOALS = {"wav": 1.2, "flac": 0.8, "mp3": 0.8, "m4a": 0.55, "ogg": 0.55}  # times as fast as ffmpeg


def make_files(folder: Path, minutes: int, count: int, formats: tuple[str, ...] = FORMATS) -> dict[str, list[Path]]:
    """`count` files of `minutes` minutes in each format, 44.1 kHz stereo; pink-ish noise, no two alike."""
    files: dict[str, list[Path]] = {}
    for extension in formats:
        for number in range(count):
            path = folder / extension / f"{number}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if extension in ("m4a", "ogg"):  # as ffmpeg writes them
                bitrate = (
                    ["-vn", "-b:a", "192k"] if extension == "m4a" else ["-vn", "-c:a", "libvorbis", "-b:a", "160k"]
                )
                command = ["ffmpeg", "-loglevel", "error", "-i", folder / "wav" / f"{number}.wav", *bitrate, path]
                subprocess.run(list(map(str, command)), check=True)
            else:
                _write_noise(path, minutes, np.random.default_rng(number))
            files.setdefault(extension, []).append(path)
    return files


def _write_noise(path: Path, minutes: int, rng: np.random.Generator) -> None:
    with soundfile.SoundFile(path, "w", 44100, 2) as out:
        for _ in range(minutes):
            minute = np.cumsum(rng.standard_normal((44100 * 60, 2)), axis=0)
            out.write((0.3 * (minute - np.roll(minute, 50, axis=0)) / 20).clip(-1, 1).astype(np.float32))


def create(source: Path, output: Path, workers: int) -> float:
    """Seconds of the real script."""
    command = [sys.executable, "create_dataset_pairs_wav.py", "--input_dir", source, "--output_dir", output]
    command += ["--num_workers", workers, "--max_pairs", 100000]
    started = time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


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
    # Python and torch, and what the first segment waits for: a real folder pays them once.
    for number in range(2):
        noise = np.random.default_rng(number).standard_normal(24000 * 33) * 0.1
        (work_dir / "start").mkdir(exist_ok=True)
        soundfile.write(work_dir / "start" / f"{number}.wav", noise, 24000)
    start = {workers: create(work_dir / "start", work_dir / f"start_{workers}", workers) for workers in (1, 2)}
    for extension, paths in files.items():
        one = create(paths[0].parent, work_dir / f"{extension}_1", 1) - start[1]
        theirs = ffmpeg(paths, work_dir / f"{extension}_ffmpeg")
        note = f"{minutes * count * 60 / one:.0f} x real time, {start[1]:.1f} s of start-up taken off"
        rows.append(Row(f"dataset creation, {extension}, one process", "ffmpeg", theirs / one, GOALS[extension], note))
    two = create(files["mp3"][0].parent, work_dir / "mp3_2", 2) - start[2]
    one = create(files["mp3"][0].parent, work_dir / "mp3_1b", 1) - start[1]
    note = f"mp3, {start[2]:.1f} s of start-up taken off"
    rows.append(Row("dataset creation, 2 workers", "1 worker", one / two, 1.8, note))
    rows.append(memory(work_dir))
    return rows


def memory(work_dir: Path) -> Row:
    """The peak memory of a worker that has done a file of 3 hours against one of 10 minutes."""
    peaks = []
    code = (
        "import sys; from benchmarks.measure import peak_memory;"
        "from dataset.segmentation import SegmentationSettings, stage_track;"
        "stage_track(SegmentationSettings(sys.argv[1], sys.argv[2], 16, -60.0), ('0.flac', 100000));"
        "print(peak_memory())"
    )
    for minutes in (10, 180):
        make_files(work_dir / f"{minutes}_minutes", minutes, 1, ("flac",))
        command = [sys.executable, "-c", code, work_dir / f"{minutes}_minutes/flac", work_dir / "staged"]
        result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(float(result.stdout) / 1e6)
    note = f"{peaks[0]:.0f} MB and {peaks[1]:.0f} MB; goal: within 50 MB, under 700 MB"
    return Row("memory, 10-minute file", "3-hour file", peaks[0] / peaks[1], (peaks[1] - 50) / peaks[1], note)
