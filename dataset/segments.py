"""Which audio each WAV of a split holds and what came before it, from metadata.txt, where possible
without reading a sample."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from pathlib import Path

import numpy as np

from common.errors import UserError
from dataset.pairs import METADATA_NAME, Metadata, PairPaths, digest_of, read_header, read_metadata, read_pcm16

WAV_HEADER_BYTES = 44
READERS = 4  # threads that read and hash; both release Python's lock


class SplitSegments:
    """The WAVs of a split, numbered input, output, input, output, ... in the order of its pairs.

    Attributes: `num_samples` in each; `digests`, which name the audio (`digest_of`), [2 * pairs] bytes;
    `predecessors`, the number of the WAV that ends where each one begins in its track, [2 * pairs] int64, -1
    where the split has none; `tracks`, the sources of its pairs as far as metadata.txt knows them.

    Raises UserError that names the file if a WAV is not mono 16-bit PCM at `sample_rate`, or of another length
    than the rest.
    """

    def __init__(self, split_dir: Path, pairs: PairPaths, sample_rate: int):
        self.pairs = pairs
        path = split_dir.parent / METADATA_NAME
        metadata = read_metadata(path) if path.exists() else Metadata({}, [], [], {})
        written_ns = path.stat().st_mtime_ns if path.exists() else 0
        seconds = int(metadata.settings.get("segment_duration", 0))
        self.num_samples = seconds * sample_rate or read_header(self.path(0), sample_rate)
        self.tracks = {row.source for row in metadata.pairs if row.split == split_dir.name}
        self.changed_ns = 0  # the last change of any of the WAVs
        self.digests = self._digests(metadata, written_ns, sample_rate)
        self.predecessors = self._predecessors(metadata, split_dir.name, self.num_samples // sample_rate)

    def path(self, wav: int) -> Path:
        return self.pairs[wav // 2][wav % 2]

    def read(self, wav: int) -> np.ndarray:
        """The samples of a WAV, int16 [num_samples]."""
        samples = read_pcm16(self.path(wav))
        if len(samples) != self.num_samples:
            raise UserError(
                f"{self.path(wav)}: {len(samples)} samples, the others have {self.num_samples}; "
                "create the dataset again"
            )
        return samples

    def _digests(self, metadata: Metadata, written_ns: int, sample_rate: int) -> np.ndarray:
        """WAVs that are newer than metadata.txt, or of another size, are read; metadata.txt knows the others.

        `cp -p` and `rsync -a` set an older modification date, but nothing sets the date of the inode's last change.
        A copied dataset is therefore read at every start, until `confirm_metadata` has compared it.
        """
        size = WAV_HEADER_BYTES + 2 * self.num_samples
        digests = np.zeros(2 * len(self.pairs), "S32")
        unknown, listed = [], []
        for wav in range(len(digests)):
            path = self.path(wav)
            known = metadata.digests.get(f"{path.parent.name}/{path.name}")
            about = os.stat(path)
            changed_ns = max(about.st_mtime_ns, about.st_ctime_ns)
            self.changed_ns = max(self.changed_ns, changed_ns)
            if known and about.st_size == size and changed_ns <= written_ns:
                digests[wav] = known
            else:
                unknown.append(wav)
            listed.append(known or "")

        def examine(wav: int) -> str:
            read_header(self.path(wav), sample_rate)
            return digest_of(self.read(wav))

        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            for wav, digest in zip(unknown, pool.map(examine, unknown), strict=True):
                digests[wav] = digest
        self.is_as_listed = digests.tolist() == [digest.encode() for digest in listed]
        return digests

    def _predecessors(self, metadata: Metadata, split: str, seconds: int) -> np.ndarray:
        """An output follows its pair's input; an input what the same track has one segment earlier."""
        number = {name: pair for pair, name in enumerate(self.pairs.names)}
        rows = [(row, number[row.name]) for row in metadata.pairs if row.split == split and row.name in number]
        at = {}  # (source, second) -> the WAV that begins there
        for row, pair in rows:
            at[row.source, row.start_s + seconds] = 2 * pair + 1
        for row, pair in rows:
            at[row.source, row.start_s] = 2 * pair
        predecessors = np.full(2 * len(self.pairs), -1)
        predecessors[1::2] = np.arange(0, 2 * len(self.pairs), 2)
        for row, pair in rows:
            predecessors[2 * pair] = at.get((row.source, row.start_s - seconds), -1)
        return predecessors


def confirm_metadata(splits: list[SplitSegments], path: Path) -> None:
    """Date the metadata.txt at `path` after all WAVs of its splits if they hold the audio that it lists."""
    if path.exists() and all(split.is_as_listed for split in splits):
        newest_ns = max([path.stat().st_mtime_ns, *(split.changed_ns for split in splits)])
        with contextlib.suppress(OSError):  # read-only
            os.utime(path, ns=(newest_ns, newest_ns))
