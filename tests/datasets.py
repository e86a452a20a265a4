"""Shared by the tests of dataset creation: the command, and the content of a dataset."""

from __future__ import annotations

from pathlib import Path

from conftest import write_track

from dataset.pairs import Metadata, read_metadata

SCRIPT = "create_dataset_pairs_wav.py"


def flags(music: Path, out: Path, *args: object) -> tuple[object, ...]:
    return ("--input_dir", music, "--output_dir", out, "--segment_duration", 1, "--num_workers", 1, *args)


def write_tracks(folder: Path, numbers: range, seconds: float = 4.2) -> None:
    """Tracks of noise, each with its number as its name and seed."""
    for number in numbers:
        write_track(folder / f"{number}.wav", seconds, seed=number)


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
