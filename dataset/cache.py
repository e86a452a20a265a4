"""Files that are checked before they are believed: checkpoints, weights, the cache, metrics.jsonl.

Nothing to run. A checkpoint carries the SHA-256 of all before it at its end, which torch ignores, a cached embedding a
CRC-32, and each line of metrics.jsonl that of what it says: whatever byte is changed, missing or added is noticed. A
checksum does not say who wrote a file: nothing in one is executed, and none unpacks to more than it fills on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import pickletools
import re
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common.errors import printable
from common.files import atomic_write

SEAL_BYTES = hashlib.sha256().digest_size
# All that tensors and plain values need. torch would also take bytearray and torch.Tensor, which allocate
# whatever number they are given.
HARMLESS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch [A-Z][a-z]+\d*Storage|collections OrderedDict"
)


def seal(content: bytes) -> bytes:
    """`content` with its SHA-256 appended."""
    return content + hashlib.sha256(content).digest()


def unseal(sealed: bytes) -> bytes:
    """What was sealed; ValueError if it is not as it was written."""
    content, digest = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong")
    return content


def load_tensors(content: bytes, device: str | torch.device) -> object:
    """The tensors and plain values that torch.save put into `content`.

    Raises ValueError for what would take more memory than `content` has bytes, and torch's many kinds of errors for
    what is damaged or of another form.
    """
    if content.startswith(b"PK\3\4"):  # torch's present form; of its old one it checks every size itself
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise ValueError("it is compressed")
            if sum(e.file_size for e in entries) > len(content):
                raise ValueError("it unpacks to more than it holds")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    for operation, name, _ in pickletools.genops(archive.read(entry)):
                        if "GLOBAL" in operation.name and not HARMLESS.fullmatch(str(name)):
                            raise ValueError(f"it holds {name}, which is no tensor")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*pickle protocol.*", UserWarning)  # what is refused is told in one line
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


# ------------------------------------------------------------------ cached embeddings


class EmbeddingCache:
    """Embeddings on disk, one checked file for each distinct segment.

    A file is a plain .npy (float32, `shape`) with the CRC-32 of its key and all before it appended, which numpy
    ignores. All of its bytes but the numbers are known beforehand: a file that is not exactly so, or holds a number
    that is not finite, counts as missing.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._header = header.getvalue()

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def read(self, key: str) -> np.ndarray | None:
        """The embedding under `key`, or None if it is missing or damaged (which is said)."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        start, count = len(self._header), math.prod(self.shape)
        whole = len(content) == start + 4 * count + 4 and content.startswith(self._header)
        if whole and _crc32(key, memoryview(content)[:-4]) == content[-4:]:
            embedding = np.frombuffer(content, "<f4", count, start).reshape(self.shape)
            if np.isfinite(embedding).all():
                return embedding.copy()
        print(f"{self.path(key)}: damaged; encoding this segment again", file=sys.stderr, flush=True)
        return None

    def write(self, key: str, embedding: np.ndarray) -> None:
        body = self._header + np.ascontiguousarray(embedding, "<f4").tobytes()
        with atomic_write(self.path(key)) as beside:
            beside.write_bytes(body + _crc32(key, body))

    def present(self) -> set[str]:
        return {entry.name.removesuffix(".npy") for entry in os.scandir(self.folder) if entry.name.endswith(".npy")}


class KnownAudio:
    """Which audio a WAV held when it was last read, for as long as its inode, size and dates stay as they were.

    Spares a start on a known dataset the reading of it. As in git's index, a file that had changed less than two
    seconds before it was read is not kept: it could change again without another date.
    """

    _ENTRY = np.dtype([(name, "<i8") for name in ("inode", "size", "changed", "written", "frames")] + [("key", "S32")])

    def __init__(self, path: Path | None):
        """path: where it is kept; None keeps nothing."""
        self.path = path
        self._new: dict[tuple[int, ...], tuple[int, str]] = {}
        self._fresh: set[tuple[int, ...]] = set()
        self._kept = np.empty(0, self._ENTRY)
        if path is not None and path.exists():
            with contextlib.suppress(ValueError):  # damaged: everything is read again
                self._kept = np.frombuffer(unseal(path.read_bytes()), self._ENTRY)

    def look_up(self, wav: str | os.PathLike) -> tuple[int, str] | None:
        """(samples, hash of the samples) of a WAV, None if it is not known or has changed."""
        identity = self._identity(wav)
        if identity in self._new:
            return self._new[identity]
        row = int(self._kept["inode"].searchsorted(identity[0]))
        if row == len(self._kept) or self._kept[row].item()[:4] != identity:
            return None
        return int(self._kept[row]["frames"]), self._kept[row]["key"].decode()

    def learn(self, wav: str | os.PathLike, read: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        """The same of a WAV that is not known, by `read`."""
        identity, now = self._identity(wav), time.time_ns()
        found = read()
        self._new[identity] = found
        if max(identity[2:]) > now - 2 * 10**9:
            self._fresh.add(identity)
        return found

    def save(self) -> None:
        """Keep what was learned."""
        new = {i: found for i, found in self._new.items() if i not in self._fresh}
        if self.path is None or not new:
            return
        inodes = {identity[0] for identity in new}
        kept = [entry for entry in self._kept.tolist() if entry[0] not in inodes]
        entries = sorted(kept + [(*identity, frames, key.encode()) for identity, (frames, key) in new.items()])
        with atomic_write(self.path) as beside:
            beside.write_bytes(seal(np.array(entries, self._ENTRY).tobytes()))

    @staticmethod
    def _identity(wav: str | os.PathLike) -> tuple[int, int, int, int]:
        about = os.stat(wav)
        return about.st_ino, about.st_size, about.st_ctime_ns, about.st_mtime_ns


def _crc32(key: str, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(key.encode())).to_bytes(4, "little")


# ------------------------------------------------------------------ metrics.jsonl


def metrics_line(values: dict[str, object]) -> str:
    """A line of metrics.jsonl; ends with a newline."""
    checksum = zlib.crc32(json.dumps(values).encode())
    return json.dumps(values | {"crc32": f"{checksum:08x}"}) + "\n"


def read_metrics(path: Path, epochs: int) -> tuple[list[dict], list[str]]:
    """The sound lines of a metrics.jsonl, {"baselines": {name: value}} and one an epoch, and in words what is wrong.

    `epochs` must be there at least. A last line without its end, which a running or a killed writer leaves, is no
    damage and is dropped.
    """
    where = printable(path)
    if not path.exists():
        return [], [f"{where}: no such file"]
    lines, wrong, due = [], [], 0  # due: the epoch whose turn it is, 0 for the baselines
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
            del line["crc32"]
            if metrics_line(line).encode() != text + b"\n":
                raise ValueError
            epoch = 0
            if "baselines" not in line:
                epoch = line["epoch"]
                if not all(map(math.isfinite, (epoch, line["train_mse"], line["val_mse"]))):
                    raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            wrong.append(f"{where}: line {number} is damaged and left out")
            due += 1
            continue
        if epoch > due:
            wrong.append(f"{where}: lines are missing before line {number}")
        if epoch < due:
            wrong.append(f"{where}: line {number} is out of its order and left out")
        else:
            lines.append(line)
            due = epoch + 1
    if due <= epochs:
        wrong.append(f"{where}: lines are missing at its end, up to epoch {epochs}")
    return lines, wrong
