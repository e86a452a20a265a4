"""Embeddings on disk, one file per distinct segment. Used by dataset_wav_pairs.py.

Several processes can fill one folder at once.
"""

from __future__ import annotations

import io
import math
import os
import sys
import zlib
from pathlib import Path

import numpy as np

from common.files import atomic_write


class EmbeddingCache:
    """Embeddings of one codec by key: float32, all of one shape.

    Each file is a plain .npy followed by a CRC-32 of key and content, which NumPy ignores.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._header = header.getvalue()

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def read(self, key: str) -> np.ndarray | None:
        """The embedding for `key`, or None if it is missing or damaged. Damage is reported on stderr."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        start, count = len(self._header), math.prod(self.shape)
        if len(content) == start + 4 * count + 4 and _crc32(key, memoryview(content)[:-4]) == content[-4:]:
            return np.frombuffer(content, "<f4", count, start).reshape(self.shape).copy()
        print(f"{self.path(key)}: damaged; encoding this segment again", file=sys.stderr, flush=True)
        return None

    def write(self, key: str, embedding: np.ndarray) -> None:
        body = self._header + np.ascontiguousarray(embedding, "<f4").tobytes()
        atomic_write(self.path(key), body + _crc32(key, body))

    def keys(self) -> set[str]:
        return {entry.name.removesuffix(".npy") for entry in os.scandir(self.folder) if entry.name.endswith(".npy")}


def _crc32(key: str, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(key.encode())).to_bytes(4, "little")
