"""Synthetic datasets of any size, and how soon training on them starts. Used by gpu.py.

A dataset is a chain of distinct segments of noise. The WAVs of its pairs are hard links to them.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path

import numpy as np
import soundfile
import torch._dynamo  # noqa: F401 - torch.optim imports it on first use, which takes seconds

import train_simple_worker
from benchmarks.measure import replace_everywhere
from common.threads import read_ahead
from dataset.pairs import PairRow, digest_of, read_pcm16, write_metadata
from training.config import TrainConfig


def make_segments(folder: Path, count: int, seconds: int = 16) -> list[str]:
    """Distinct segments, `folder`/NNNN.wav; the digest of each."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(-9999, 9999, seconds * 24000 + count, dtype=np.int16)

    def make(number: int) -> str:
        samples = noise[number : number + seconds * 24000]
        soundfile.write(folder / f"{number:04d}.wav", samples, 24000)
        return digest_of(samples)

    return list(read_ahead(make, range(count)))


def make_dataset(folder: Path, segments: Path, digests: list[str], pairs: int, seconds: int = 16) -> None:
    """`pairs` pairs of consecutive segments, a tenth of them for validation."""
    rows, known = [], {}
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    for pair in range(pairs):
        split = "train" if pair < 0.9 * pairs else "val"
        for role, number in (("input", pair), ("output", pair + 1)):
            name = f"{split}/pair_{pair:06d}_{role}.wav"
            os.link(segments / f"{number % len(digests):04d}.wav", folder / name)
            known[name] = digests[number % len(digests)]
        track, place = divmod(pair, len(digests) - 1)
        rows.append(PairRow(f"pair_{pair:06d}", split, f"track_{track}_{split}", seconds * place))
    write_metadata(folder / "metadata.txt", {"segment_duration": str(seconds)}, {}, [], rows, known)


def measure_start(dataset_dir: Path, cache: Path, device: str = "cpu") -> dict[str, float]:
    """Seconds from the end of the imports to the first training step, and how many WAVs were read."""
    wavs_read = 0

    def counting_read(path: Path) -> np.ndarray:
        nonlocal wavs_read
        wavs_read += 1
        return read_pcm16(path)

    class FirstStepError(Exception):
        pass

    def stop(*_: object) -> None:
        raise FirstStepError

    replace_everywhere(read_pcm16, counting_read)
    replace_everywhere(train_simple_worker.train_epoch, stop)
    config = TrainConfig(
        str(dataset_dir), f"{dataset_dir}/checkpoints", cache_dir=str(cache), device=device,
        encodec_weights="untrained", resume="never",
    )  # fmt: skip
    started = time.perf_counter()
    with contextlib.suppress(FirstStepError), contextlib.redirect_stdout(io.StringIO()):
        train_simple_worker.train_worker(config)
    return {"seconds": time.perf_counter() - started, "wavs_read": wavs_read}
