"""Shared by the tests of dataset creation: the command, and the content of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import write_track

from audio.segments import write_wav
from dataset.pairs import Metadata, PairRow, read_metadata, write_metadata

SCRIPT = "create_dataset_pairs_wav.py"


def flags(music: Path, out: Path, *args: object) -> tuple[object, ...]:
    return ("--input_dir", music, "--output_dir", out, "--segment_duration", 1, "--num_workers", 1, *args)


def write_tracks(folder: Path, numbers: range, seconds: float = 4.2) -> None:
    """Tracks of noise, each with its number as its name and seed."""
    for number in numbers:
        write_track(folder / f"{number}.wav", seconds, seed=number)


def write_dataset(folder: Path, tracks: list[tuple[str, str]], pairs: int = 1) -> Path:
    """A dataset of consecutive one-second pairs of each track (source, split), written without any music files."""
    rng, rows, rate = np.random.default_rng(0), [], 24000
    for source, split in tracks:
        (folder / split).mkdir(parents=True, exist_ok=True)
        time = np.arange((pairs + 1) * rate) / rate
        track = 0.2 * np.sin(2 * np.pi * rng.uniform(150, 900) * time) * (1.5 + np.sin(2 * np.pi * 4 * time))
        segments = np.round(20000 * (track + 0.01 * rng.normal(size=len(time)))).astype(np.int16).reshape(-1, rate)
        for start_s in range(pairs):
            rows.append(PairRow(f"pair_{len(rows):04d}", split, source, start_s))
            for name, segment in zip(rows[-1].files, segments[start_s : start_s + 2], strict=True):
                write_wav(folder / name, segment, rate)
    write_metadata(folder / "metadata.txt", {"segment_duration": "1"}, {}, [], rows)
    return folder


def metadata_of(dataset: Path) -> Metadata:
    return read_metadata(dataset / "metadata.txt")


def sources(dataset: Path, split: str) -> list[str]:
    return [row.source for row in metadata_of(dataset).pairs if row.split == split]


def splits(dataset: Path) -> dict[str, str]:
    """The split of each track."""
    return {row.source: row.split for row in metadata_of(dataset).pairs}


def contents(dataset: Path) -> dict[str, bytes]:
    """Everything a user sees in a dataset: file names and bytes."""
    paths = [*sorted(dataset.glob("[!.]*/*")), dataset / "metadata.txt"]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in paths}
