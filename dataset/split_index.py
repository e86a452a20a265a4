"""Find which audio each WAV of a split contains and what precedes it, from metadata.txt if possible.

Used by dataset_wav_pairs.py.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.threads import read_ahead
from dataset.pairs import METADATA_NAME, Metadata, check_wav, digest_of, read_metadata, read_pcm16

WAV_HEADER_BYTES = 44
WAVS_AT_A_TIME = 16  # checked by a thread in one go: handing over a single WAV takes longer than checking it


class SplitSegments:
    """The WAVs of a split, numbered input, output, input, output, ... in the order of its pairs `names`.

    Attributes: `num_samples` in each WAV; `digests` of the audio (`digest_of`), [2 * pairs] bytes; `predecessors`, the
    number of the WAV that ends where each one begins in its track, [2 * pairs] int64, or -1 if the split has none;
    `tracks`, the sources of the pairs that metadata.txt lists.

    Raises UserError if a WAV is not mono 16-bit PCM at `sample_rate` or differs in length from the rest.
    """

    def __init__(self, split_dir: Path, names: list[str], sample_rate: int):
        self.split_dir, self.names = split_dir, names
        path = split_dir.parent / METADATA_NAME
        metadata = read_metadata(path) if path.exists() else Metadata({}, [], [], {})
        written_ns = path.stat().st_mtime_ns if path.exists() else 0
        seconds = int(metadata.settings.get("segment_duration", 0))
        self.num_samples = seconds * sample_rate or check_wav(self.path(0), sample_rate)
        self.tracks = {row.source for row in metadata.pairs if row.split == split_dir.name}
        self.changed_ns = 0  # when any of the WAVs last changed
        self.is_as_listed = True  # whether all WAVs have the digests in metadata.txt
        self.digests = self._digests(metadata, written_ns, sample_rate)
        self.predecessors = self._predecessors(metadata, split_dir.name, self.num_samples // sample_rate)

    def path(self, wav: int) -> Path:
        return self.split_dir / self._file_name(wav)

    def _file_name(self, wav: int) -> str:
        return f"{self.names[wav // 2]}_{'output' if wav % 2 else 'input'}.wav"

    def read(self, wav: int) -> np.ndarray:
        """Read a WAV: int16 [num_samples]."""
        samples = read_pcm16(self.path(wav))
        if len(samples) != self.num_samples:
            raise UserError(
                f"{self.path(wav)}: {len(samples)} samples, but the others have {self.num_samples}; "
                "create the dataset again"
            )
        return samples

    def _digests(self, metadata: Metadata, written_ns: int, sample_rate: int) -> np.ndarray:
        """The digest of each WAV. Reads only WAVs that are newer than metadata.txt or differ in size.

        `cp -p` and `rsync -a` restore an older modification time, but nothing can set the inode's change time. So every
        start reads a copied dataset in full until `confirm_metadata` has compared it. Threads do the checks, because a
        network file system takes a millisecond for each file.
        """
        size = WAV_HEADER_BYTES + 2 * self.num_samples
        dataset, split = os.path.split(os.path.abspath(self.split_dir))

        def examine(wav: int) -> tuple[str, int, bool]:
            """Its digest, its last change, and whether metadata.txt lists this digest."""
            name = f"{split}/{self._file_name(wav)}"
            known, about = metadata.digests.get(name), os.stat(f"{dataset}/{name}")
            changed_ns = max(about.st_mtime_ns, about.st_ctime_ns)
            if known and about.st_size == size and changed_ns <= written_ns:
                return known, changed_ns, True
            check_wav(self.path(wav), sample_rate)
            digest = digest_of(self.read(wav))
            return digest, changed_ns, digest == known

        wavs = range(2 * len(self.names))
        digests = np.zeros(len(wavs), "S32")
        chunks = [wavs[start : start + WAVS_AT_A_TIME] for start in wavs[::WAVS_AT_A_TIME]]
        examined = read_ahead(lambda chunk: [examine(wav) for wav in chunk], chunks)
        for chunk, results in zip(chunks, examined, strict=True):
            for wav, (digest, changed_ns, is_as_listed) in zip(chunk, results, strict=True):
                digests[wav] = digest
                self.changed_ns = max(self.changed_ns, changed_ns)
                self.is_as_listed &= is_as_listed
        return digests

    def _predecessors(self, metadata: Metadata, split: str, seconds: int) -> np.ndarray:
        """The predecessor of an output is its pair's input. That of an input is the track's previous segment."""
        number = {name: pair for pair, name in enumerate(self.names)}
        rows = [(row, number[row.name]) for row in metadata.pairs if row.split == split and row.name in number]
        at = {}  # (source, second) -> the WAV that begins there
        for row, pair in rows:
            at[row.source, row.start_s + seconds] = 2 * pair + 1
        for row, pair in rows:
            at[row.source, row.start_s] = 2 * pair
        predecessors = np.full(2 * len(self.names), -1)
        predecessors[1::2] = np.arange(0, 2 * len(self.names), 2)
        for row, pair in rows:
            predecessors[2 * pair] = at.get((row.source, row.start_s - seconds), -1)
        return predecessors


def confirm_metadata(splits: list[SplitSegments], path: Path) -> None:
    """Make the metadata.txt at `path` newer than all WAVs of its splits, if they contain the audio it lists."""
    if path.exists() and all(split.is_as_listed for split in splits):
        newest_ns = max([path.stat().st_mtime_ns, *(split.changed_ns for split in splits)])
        with contextlib.suppress(OSError):  # read-only
            os.utime(path, ns=(newest_ns, newest_ns))
