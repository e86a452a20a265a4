"""A second start on 2,000 pairs, and reading embeddings at 2,000, 20,000 and 200,000 pairs.

The datasets are synthetic: 2,001 distinct segments of noise, each with a random embedding in the cache, and pairs
that are hard links to them. Each measurement is a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 (torch.optim imports it when first used)

import dataset_wav_pairs  # noqa: E402
import train_simple_worker  # noqa: E402
from audio.frozen_encodec import load_frozen_encodec  # noqa: E402
from benchmarks.measure import Row, peak_memory  # noqa: E402
from common.threads import read_ahead  # noqa: E402
from dataset import split_index  # noqa: E402
from dataset.batches import PairBatches  # noqa: E402
from dataset.pairs import PairRow, digest_of, write_metadata  # noqa: E402
from training.config import TrainConfig  # noqa: E402

SIZES = (2_000, 20_000, 200_000)
SEGMENTS = SIZES[0] + 1
BATCHES = 100


def make_segments(folder: Path, count: int = SEGMENTS, seconds: int = 16) -> list[str]:
    """Distinct segments, `folder`/NNNN.wav; the digest of each."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(-9999, 9999, seconds * 24000 + count, dtype=np.int16)

    def make(number: int) -> str:
        samples = noise[number : number + seconds * 24000]
        soundfile.write(folder / f"{number:04d}.wav", samples, 24000)
        return digest_of(samples)

    return list(read_ahead(make, range(count)))


def make_dataset(folder: Path, wavs: Path, digests: list[str], pairs: int, seconds: int = 16) -> None:
    """`pairs` pairs, a tenth of them for validation: links to the segments, in a chain."""
    rows, known = [], {}
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    for pair in range(pairs):
        split = folder / ("train" if pair < 0.9 * pairs else "val")
        for role, number in (("input", pair), ("output", pair + 1)):
            os.link(wavs / f"{number % len(digests):04d}.wav", split / f"pair_{pair:06d}_{role}.wav")
            known[f"{split.name}/pair_{pair:06d}_{role}.wav"] = digests[number % len(digests)]
        track, place = divmod(pair, len(digests) - 1)
        rows.append(PairRow(f"pair_{pair:06d}", split.name, f"track_{track}_{split.name}", seconds * place))
    write_metadata(folder / "metadata.txt", {"segment_duration": str(seconds)}, {}, [], rows, known)


def measure_loader(dataset_dir: str, cache_dir: str) -> dict[str, float]:
    """Pairs a second read from the cache in training's order (the best of five), and this process's peak memory."""
    dataset_wav_pairs.free_memory = lambda *_: 0  # as if the embeddings did not fit into memory
    codec = load_frozen_encodec("untrained")
    dataset = dataset_wav_pairs.WavPairsDataset(Path(dataset_dir, "train"), codec, cache_dir)
    dataset_wav_pairs.prepare_cache([dataset])
    batches = PairBatches(dataset, torch.device("cpu"))
    best = 0.0
    for epoch in range(5):
        order = np.random.default_rng(epoch).permutation(len(dataset))[: 16 * (BATCHES + 10)].tolist()
        reader = batches(order, 16)
        for _ in range(10):
            next(reader)
        started = time.perf_counter()
        pairs = sum(inputs.shape[0] for inputs, _ in reader)
        best = max(best, pairs / (time.perf_counter() - started))
    return {"pairs_per_second": best, "peak_mb": peak_memory() / 1e6}


def measure_start(dataset_dir: str, cache_dir: str, device: str = "cpu") -> dict[str, float]:
    """Seconds from the end of the imports to a training's first step, and how many WAVs were read."""
    wavs_read = 0
    read = split_index.read_pcm16

    def counting(path: object) -> np.ndarray:
        nonlocal wavs_read
        wavs_read += 1
        return read(path)

    class ArrivedError(Exception):
        pass

    def arrive(*_: object) -> None:
        raise ArrivedError

    split_index.read_pcm16 = counting
    train_simple_worker.train_epoch = arrive
    config = TrainConfig(
        dataset_dir, f"{dataset_dir}/checkpoints", cache_dir=cache_dir, device=device, encodec_weights="untrained",
        resume="never",
    )  # fmt: skip
    started = time.perf_counter()
    with contextlib.suppress(ArrivedError), contextlib.redirect_stdout(io.StringIO()):
        train_simple_worker.train_worker(config)
    return {"seconds": time.perf_counter() - started, "wavs_read": wavs_read}


def in_own_process(measurement: str, *args: object) -> dict[str, float]:
    command = [sys.executable, __file__, measurement, *map(str, args)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def run(work_dir: Path) -> list[Row]:
    cache = work_dir / "cache"
    digests = make_segments(work_dir / "segments")
    datasets = {size: work_dir / f"pairs_{size}" for size in SIZES}
    for size, folder in datasets.items():
        make_dataset(folder, work_dir / "segments", digests, size)
    codec = load_frozen_encodec("untrained")
    rng = torch.Generator().manual_seed(0)
    written: set[str] = set()
    for folder in datasets.values():
        for name in ("train", "val"):
            split = dataset_wav_pairs.WavPairsDataset(folder / name, codec, cache)
            for key in {key for pair in split.keys for key in pair} - written:
                split.cache.write(key, torch.randn(codec.embedding_dim, split.num_frames, generator=rng).numpy())
                written.add(key)

    first, second = (in_own_process("measure_start", datasets[SIZES[0]], cache) for _ in range(2))
    note = (
        f"{second['seconds']:.1f} s to the first step, {second['wavs_read']} WAVs read; "
        f"{first['seconds']:.1f} s and {first['wavs_read']} the first time, though nothing was to be encoded"
    )
    rows = [Row("second start, 2,000 pairs", "3 s", 3 / second["seconds"], 1.0, note)]
    found = {}
    for size, folder in datasets.items():
        found[size] = in_own_process("measure_loader", folder, cache)
    rates = [f"{found[size]['pairs_per_second']:.0f}" for size in SIZES]
    peaks = [f"{found[size]['peak_mb']:.0f}" for size in SIZES]
    small, large = found[SIZES[0]], found[SIZES[-1]]
    sizes = "2,000, 20,000 and 200,000 pairs"
    ratio = large["pairs_per_second"] / small["pairs_per_second"]
    rows.append(Row("reading 200,000 pairs", "2,000 pairs", ratio, 0.9, f"{', '.join(rates)} pairs/s for {sizes}"))
    ratio = small["peak_mb"] / large["peak_mb"]
    rows.append(Row("memory, 2,000 pairs", "200,000 pairs", ratio, 0.9, f"{', '.join(peaks)} MB for {sizes}"))
    return rows


if __name__ == "__main__":
    print(json.dumps({"measure_start": measure_start, "measure_loader": measure_loader}[sys.argv[1]](*sys.argv[2:])))
