"""The pairs of a dataset on disk: their WAV files, and the metadata.txt that lists them.

metadata.txt can be read by people and programs. It has `key: value` lines, then one tab-separated row for each skipped
file, each pair, and each WAV with the digest of its samples.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from common.errors import UserError
from common.files import atomic_write

METADATA_NAME = "metadata.txt"
TITLE = "Jingle_D: pairs of consecutive segments, mono 16-bit WAV"
PAIR_HEADER = "pair\tsplit\tsource\tstart_s"
SKIPPED_HEADER = "skipped\treason"
DIGEST_HEADER = "segment\tdigest"


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair: its name (pair_0000), split (train or val), source track, and start in the track (seconds)."""

    name: str
    split: str
    source: str
    start_s: int

    @property
    def files(self) -> tuple[str, str]:
        """The pair's two files, relative to the dataset's folder."""
        return f"{self.split}/{self.name}_input.wav", f"{self.split}/{self.name}_output.wav"


@dataclass(frozen=True)
class Metadata:
    settings: dict[str, str]  # settings and totals, as written
    skipped: list[tuple[str, str]]  # source, reason
    pairs: list[PairRow]
    digests: dict[str, str]  # "train/pair_0000_input.wav" -> `digest_of` its samples


def digest_of(pcm16: np.ndarray) -> str:
    """A segment's identity: the first 32 hex digits of the SHA-256 of its int16 samples."""
    return hashlib.sha256(pcm16.astype("<i2").tobytes()).hexdigest()[:32]


def write_metadata(
    path: Path,
    settings: dict[str, str],
    totals: dict[str, str],
    skipped: list[tuple[str, str]],
    pairs: list[PairRow],
    digests: dict[str, str] | None = None,
) -> None:
    """Write metadata.txt. Names must not contain tabs or newlines (see `printable`).

    Write it after the WAVs: a WAV that is newer than metadata.txt counts as changed.
    """
    lines = [TITLE, ""]
    lines += [f"{key}: {value}" for key, value in (settings | totals).items()]
    lines += ["", SKIPPED_HEADER] + [f"{source}\t{reason}" for source, reason in skipped]
    lines += ["", PAIR_HEADER] + [f"{row.name}\t{row.split}\t{row.source}\t{row.start_s}" for row in pairs]
    lines += ["", DIGEST_HEADER] + [f"{name}\t{digest}" for name, digest in (digests or {}).items()]
    atomic_write(path, "\n".join(lines) + "\n", sync=True)


def check_is_ours(path: Path) -> None:
    """Raise UserError if the file at `path` is not a metadata.txt of this project, which must not be touched."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        is_ours = file.read(len(TITLE)) == TITLE.encode()
    if not is_ours:
        raise UserError(f"{path}: was not written by this project; choose another folder or delete the file")


def read_metadata(path: Path) -> Metadata:
    """Read metadata.txt. Raises UserError if it is missing, damaged or from an earlier version."""
    check_is_ours(path)
    try:
        _, settings, *tables = path.read_text(encoding="utf-8").rstrip("\n").split("\n\n")
        headers = [table.split("\n", 1)[0] for table in tables]
        if headers != [SKIPPED_HEADER, PAIR_HEADER, DIGEST_HEADER]:
            raise UserError(f"{path}: from an earlier version; create the dataset again with --overwrite")
        skipped, pairs, digests = map(_rows, tables)
        return Metadata(
            dict(line.split(": ", 1) for line in settings.split("\n")),
            [(source, reason) for source, reason in skipped],
            [_pair_row(row) for row in pairs],
            dict(digests),
        )
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; create the dataset first (create_dataset_pairs_wav.py)") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged; create the dataset again with --overwrite") from error


def _rows(table: str) -> list[list[str]]:
    header, *rows = table.split("\n")
    return [row.split("\t", header.count("\t")) for row in rows]


def _pair_row(row: list[str]) -> PairRow:
    name, split, source, start = row
    if not re.fullmatch(r"pair_[0-9]{4,9}", name) or split not in ("train", "val") or not start.isdecimal():
        raise ValueError(name)  # names become paths, and must stay in the dataset's folder
    return PairRow(name, sys.intern(split), sys.intern(source), int(start))


# ------------------------------------------------------------------ the files of a split


def find_pairs(split_dir: Path) -> list[str]:
    """The names of the pairs in a split (pair_0000), sorted.

    Raises UserError if the folder is missing or empty, or if half of a pair is missing.
    """
    if not split_dir.is_dir():
        raise UserError(f"{split_dir}: no such folder; create the dataset first (create_dataset_pairs_wav.py)")
    names: dict[str, set[str]] = {"input": set(), "output": set()}
    for entry in os.scandir(split_dir):
        name, _, role = entry.name.removesuffix(".wav").rpartition("_")
        if entry.name.endswith(".wav") and name.startswith("pair_") and role in names:
            names[role].add(name)
    if halves := names["input"] ^ names["output"]:
        name = min(halves)
        other = "output" if name in names["input"] else "input"
        raise UserError(
            f"{split_dir / name}_{other}.wav: missing, but the other half of its pair exists; create the dataset again"
        )
    if not names["input"]:
        raise UserError(
            f"{split_dir}: contains no pairs; create the dataset first (create_dataset_pairs_wav.py), "
            "with more music if this is val/"
        )
    return sorted(names["input"])


def check_wav(path: Path, sample_rate: int) -> int:
    """The number of samples in a WAV. Raises UserError if it is not mono at `sample_rate`."""
    try:
        info = soundfile.info(os.fsencode(path))
    except soundfile.SoundFileError as error:
        raise UserError(f"{path}: not a readable WAV; create the dataset again") from error
    if (info.samplerate, info.channels) != (sample_rate, 1):
        raise UserError(
            f"{path}: {info.samplerate} Hz with {info.channels} channels, must be {sample_rate} Hz mono; "
            "create the dataset again"
        )
    return info.frames


def read_pcm16(path: Path) -> np.ndarray:
    """Read a 16-bit WAV: int16 [samples].

    Raises UserError for other WAVs: converted to 16 bits, NaN in a float WAV would become a number.
    """
    try:
        with soundfile.SoundFile(os.fsencode(path)) as wav:
            if wav.subtype != "PCM_16":
                raise UserError(f"{path}: {wav.subtype}, must be 16-bit PCM; create the dataset again")
            return wav.read(dtype="int16")
    except soundfile.SoundFileError as error:
        raise UserError(f"{path}: unreadable; create the dataset again") from error
