"""Keep the splits of an earlier dataset in the same folder. Used by dataset creation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError, printable
from dataset.pairs import Metadata
from dataset.selection import Track

EARLIER_SPLIT = re.compile(r"not needed for \d+ pairs; (train|val) before")


def report_changes(previous: Metadata, sources: list[str], output_dir: Path) -> None:
    """Print which audio files were added or removed. Raises UserError if the music is entirely different."""
    before = {row.source for row in previous.pairs} | {source for source, _ in previous.skipped}
    now = {printable(source) for source in sources}
    names = {Path(row.source).stem for row in previous.pairs}  # files may have been moved or re-encoded
    if 2 * len(names & {Path(source).stem for source in now}) < len(names) and not before & now:
        raise UserError(
            f"{output_dir}: contains a dataset of different music (most of its files are not in --input_dir); "
            "add --overwrite or choose another --output_dir"
        )
    for what, names in (("added", sorted(now - before)), ("removed", sorted(before - now))):
        if names:
            more = f" and {len(names) - 5} more" if names[5:] else ""
            print(f"{what} since the last run: {', '.join(names[:5])}{more}", flush=True)
    if now == before:
        print("some audio files have changed since the last run", flush=True)


@dataclass(frozen=True)
class PreviousSplits:
    """The splits ("train" or "val") of an earlier dataset's tracks, which a model may have been trained on."""

    split_of: dict[str, str] = field(default_factory=dict)  # by path without extension: an MP3 may become a FLAC
    name_of_digest: dict[str, str] = field(default_factory=dict)  # by digest of a segment: a file may be renamed

    @classmethod
    def from_metadata(cls, previous: Metadata) -> PreviousSplits:
        notes = [(source, EARLIER_SPLIT.fullmatch(reason)) for source, reason in previous.skipped]
        splits = {_name(source): note[1] for source, note in notes if note}
        rows = sorted(previous.pairs, key=lambda row: row.split, reverse=True)
        # Training comes last and wins. A track in both splits was the only one, split in time.
        splits |= {_name(row.source): row.split for row in rows}
        files = {name: _name(row.source) for row in previous.pairs for name in row.files}
        return cls(splits, {digest: files[name] for name, digest in previous.digests.items() if name in files})

    def known(self, sources: list[str], tracks: dict[str, Track]) -> dict[str, str]:
        """The earlier splits of these files, found by their audio if they have been read, else by their path."""
        splits = {source: self.split_of[_name(source)] for source in sources if _name(source) in self.split_of}
        # The earlier names of the audio in each track. A track that still contains audio it had before was not moved.
        earlier = {
            source: {self.name_of_digest.get(segment.digest) for segment in track.segments} - {None}
            for source, track in tracks.items()
        }
        unmoved = {_name(source) for source, names in earlier.items() if _name(source) in names}
        for source, names in earlier.items():
            if _name(source) not in unmoved and (moved := names - unmoved):
                splits[source] = min(self.split_of[name] for name in moved)  # "train" comes before "val"
        return splits


def _name(source: str) -> str:
    return os.path.splitext(printable(source))[0]


def not_needed(max_pairs: int, split: str) -> str:
    """Why a track beyond --max_pairs is not in the dataset, with its split in an earlier dataset if it had one."""
    return f"not needed for {max_pairs} pairs" + (f"; {split} before" if split else "")
