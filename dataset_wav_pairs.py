"""The dataset: a pair of WAVs in, a pair of EnCodec embeddings out, each segment encoded once.

    python dataset_wav_pairs.py                    # check dataset_pairs_wav/ and encode what is missing

The document encodes on the fly; so does this, and keeps what it has encoded. The codec is frozen, so
a segment's embedding never changes: it is stored in `.embedding_cache/FINGERPRINT/HASH.npy`, named by
the codec's weights and by the segment's audio. Neighbouring pairs share segments, hence files. Changed
audio has another name, and any number of processes may fill one cache. Beside it lies a note of which WAV held
what, so that a start on a known dataset reads no audio.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from tqdm import tqdm

from audio.frozen_encodec import HOP_LENGTH, FrozenEncodec, load_frozen_encodec, untrained_banner
from common.arguments import file_path
from common.devices import free_memory, pick_device
from common.errors import UserError, run_script
from common.files import check_output_folder, remove_partial_files
from dataset.cache import EmbeddingCache, KnownAudio
from dataset.pairs import find_pairs, read_header, read_pcm16

CACHE_NAME = ".embedding_cache"
CPU_ENCODE_BATCH = 8  # segments encoded together; more gains nothing on a CPU
READERS = 4  # threads that read and hash; both release Python's lock


class WavPairsDataset(Dataset):
    """Pairs of consecutive segments as embeddings.

    `dataset[i]` is `(input_embedding, output_embedding)`, float32 [128, frames] each (1200 frames
    for 16 s), on the CPU.

    split_dir: folder with pair_NNNN_input.wav and pair_NNNN_output.wav.
    cache_dir: where embeddings are kept (default: .embedding_cache beside the split's folder).
    use_cache: False encodes at every access and writes nothing.

    Every header is checked here; raises UserError that names the file if one is not mono, not at the
    codec's sample rate, of another length than the rest, or without its partner.
    """

    def __init__(
        self,
        split_dir: str | os.PathLike,
        codec: FrozenEncodec,
        cache_dir: str | os.PathLike | None = None,
        use_cache: bool = True,
    ):
        self.split_dir, self.codec = Path(split_dir), codec
        self.pairs = find_pairs(self.split_dir)
        self.cache = known = None
        folder = Path(cache_dir) if cache_dir is not None else self.split_dir.parent / CACHE_NAME
        if use_cache:
            name = hashlib.sha256(os.fsencode(self.split_dir.absolute())).hexdigest()[:8]
            known = folder / f"known_audio_{self.split_dir.name}_{name}"
        self.known = KnownAudio(known)
        self.num_samples = self._check_headers()
        if use_cache:
            self.cache = EmbeddingCache(folder / codec.fingerprint, (codec.embedding_dim, self.num_frames))
            self.cache.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.pairs[index]
        return self.embedding(first), self.embedding(second)

    @property
    def paths(self) -> Iterator[Path]:
        """All WAVs: input, output, input, output, ..."""
        return itertools.chain.from_iterable(self.pairs)

    def all_keys(self) -> Iterator[str]:
        """`key` of each of `paths`."""
        paths = self.paths
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            while some := list(itertools.islice(paths, 1024)):  # the pool would take all of them in at once
                yield from pool.map(self.key, some)

    @property
    def num_frames(self) -> int:
        """Frames of an embedding: 1200 for 16 s."""
        return -(-self.num_samples // HOP_LENGTH)

    def name(self, index: int) -> str:
        """The pair's name, as in metadata.txt: pair_0000."""
        return self.pairs.names[index]

    def embedding(self, path: Path, key: str = "") -> torch.Tensor:
        """The embedding of one WAV, float32 [128, frames]: from the cache, else encoded and kept.

        key: the WAV's `key`, if it is known.
        """
        if self.cache is not None and (found := self.cache.read(key or self.key(path))) is not None:
            return torch.from_numpy(found)
        return self.encode([path])[0].cpu()

    def encode(self, paths: list[Path]) -> torch.Tensor:
        """Encode WAVs, [len(paths), 128, frames] on the codec's device; kept if there is a cache.

        Raises UserError, naming the file, for an embedding that is not finite.
        """
        size = self.encode_batch
        return torch.cat([self._encode_together(paths[i : i + size]) for i in range(0, len(paths), size)])

    @property
    def encode_batch(self) -> int:
        """How many segments are encoded together."""
        if self.codec.device.type != "cuda":
            return CPU_ENCODE_BATCH
        # The first level holds about four copies of [B, 32, samples] in float32.
        free = torch.cuda.mem_get_info(self.codec.device)[0]
        return max(1, min(64, int(free / 2 / (4 * 32 * 4 * self.num_samples))))

    def _encode_together(self, paths: list[Path]) -> torch.Tensor:
        waveforms = torch.stack([torch.from_numpy(read_pcm16(path)) for path in paths])
        embeddings = self.codec.encode(waveforms.unsqueeze(1).to(self.codec.device).float() / 32768)
        finite = embeddings.isfinite().flatten(1).all(dim=1).tolist()
        for path, is_finite in zip(paths, finite, strict=True):
            if not is_finite:
                raise UserError(f"{path}: its embedding is not finite; remove its pair from the dataset")
        if self.cache is not None:
            for path, embedding in zip(paths, embeddings.cpu().numpy(), strict=True):
                self.cache.write(self.key(path), embedding)
        return embeddings

    def key(self, path: Path) -> str:
        """The hash of a WAV's samples, taken again whenever the file has changed."""

        def read() -> tuple[int, str]:
            samples = read_pcm16(path)
            return len(samples), hashlib.sha256(samples.tobytes()).hexdigest()[:32]

        return (self.known.look_up(path) or self.known.learn(path, read))[1]

    def _check_headers(self) -> int:
        """Check rate, channels and length of every WAV that is not known; return the samples in each."""
        expected = None
        for path in self.paths:
            known = self.known.look_up(path)
            samples = known[0] if known else read_header(path, self.codec.sample_rate)
            expected = expected or samples
            if samples != expected or samples == 0:
                raise UserError(f"{path}: {samples} samples, the others have {expected}; create the dataset again")
        return expected


class PairEmbeddings:
    """Batches of a dataset's embeddings on a device: the form in which training takes them.

    With a cache and enough memory every distinct segment is read once into one tensor
    [segments, 128, frames], on the device if it fits there; else each batch is read from the cache, or encoded
    where there is none.
    """

    def __init__(self, dataset: WavPairsDataset, device: torch.device, processes_on_node: int = 1):
        self.dataset, self.device = dataset, device
        self.table = None
        if dataset.cache is None:
            return
        rows: dict[str, int] = {}
        numbers = [rows.setdefault(key, len(rows)) for key in dataset.all_keys()]
        self.rows = torch.tensor(numbers).view(-1, 2)
        self.keys = list(rows)
        size = len(rows) * 4 * dataset.codec.embedding_dim * dataset.num_frames
        place = next((d for d in (device, torch.device("cpu")) if size < free_memory(d, processes_on_node) / 2), None)
        if place is None:
            return
        _, first = np.unique(numbers, return_index=True)
        paths = [dataset.pairs[i // 2][i % 2] for i in first]
        self.table = torch.empty(len(rows), dataset.codec.embedding_dim, dataset.num_frames, device=place)
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            for row, embedding in enumerate(pool.map(dataset.embedding, paths)):
                self.table[row] = embedding
        self.rows = self.rows.to(place)

    @property
    def place(self) -> str:
        """Where the embeddings are, for the log."""
        if self.table is not None:
            return f"in memory ({self.table.device})"
        return "read from the cache as needed" if self.dataset.cache else "encoded at every use"

    def batch(self, indices: list[int] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and outputs of the pairs `indices`, [B, 128, frames] each, on the device."""
        if self.table is not None:
            both = self.table[self.rows[indices].flatten()]
        else:
            paths = [path for index in indices for path in self.dataset.pairs[index]]
            if self.dataset.cache is None:
                both = self.dataset.encode(paths)
            else:
                keys = [self.keys[row] for row in self.rows[indices].flatten()]
                with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
                    both = torch.stack(list(pool.map(self.dataset.embedding, paths, keys)))
        if self.device.type == "cuda" and both.device.type == "cpu":
            both = both.pin_memory()  # lets the copy run beside the GPU's work
        # On Apple's GPU a copy that does not block may read memory that has been freed.
        both = both.to(self.device, non_blocking=self.device.type == "cuda").unflatten(0, (-1, 2))
        return both[:, 0], both[:, 1]

    def batches(self, chunks: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`batch` of each chunk in turn; where that means reading, the next is read while one is in use."""
        if self.table is not None:
            # All indices in one copy: on a GPU the host then waits once, not in every step.
            indices = torch.tensor(
                [index for chunk in chunks for index in chunk], dtype=torch.long, device=self.rows.device
            )
            yield from map(self.batch, indices.split([len(chunk) for chunk in chunks]))
            return
        if self.dataset.cache is None:
            yield from map(self.batch, chunks)
            return
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self.batch, chunk) for chunk in chunks[:1]]
            for following in [*chunks[1:], None]:
                ready = coming.pop().result() if coming else None
                if following is not None:
                    coming.append(pool.submit(self.batch, following))
                if ready is not None:
                    yield ready


def prepare_cache(datasets: list[WavPairsDataset], rank: int = 0, world_size: int = 1) -> str:
    """Encode what the cache lacks and return the hash of the whole data.

    The encoding is split over the processes of torch's default group (if world_size > 1), every one of which
    must call this. The returned hash covers names, audio and codec: it is the same exactly when training
    would see the same numbers in the same order.
    """
    cache = datasets[0].cache
    if cache is not None and rank == 0:
        remove_partial_files(cache.folder)
    present = cache.present() if cache is not None else set()
    identity = hashlib.sha256(datasets[0].codec.fingerprint.encode())
    missing: dict[str, tuple[int, Path]] = {}
    for number, dataset in enumerate(datasets):
        for path, key in zip(dataset.paths, dataset.all_keys(), strict=True):
            identity.update(f"\n{path.parent.name}/{path.name} {key}".encode())
            if key not in present:
                missing.setdefault(key, (number, path))
        if rank == 0:
            dataset.known.save()
    if cache is not None:
        # The first process decides what is missing, as the others may look while one already writes.
        chosen = [[wav for _, wav in sorted(missing.items())]]
        if world_size > 1:
            dist.broadcast_object_list(chosen)
        _encode_missing([(datasets[number], path) for number, path in chosen[0]], rank, world_size)
        if world_size > 1:
            dist.barrier()
    return identity.hexdigest()[:16]


def _encode_missing(missing: list[tuple[WavPairsDataset, Path]], rank: int, world_size: int) -> None:
    if not missing:
        return
    mine = missing[rank::world_size]
    dataset = missing[0][0]
    hours = len(missing) * dataset.num_samples / dataset.codec.sample_rate / 3600
    batch_size = dataset.encode_batch
    if rank == 0:
        print(
            f"encoding {hours:.2f} h of audio ({len(missing)} segments) once, kept in {dataset.cache.folder}",
            flush=True,
        )
    bar = tqdm(
        total=hours, unit="h", desc="encoding", disable=rank > 0 or not sys.stderr.isatty(),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio, {remaining} left",
    )  # fmt: skip
    started = said = time.monotonic()
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        dataset.encode([path for _, path in batch])
        done = min(1.0, (start + len(batch)) / len(mine))
        bar.update(done * hours - bar.n)
        now = time.monotonic()
        if bar.disable and rank == 0 and now - said > 30:
            said = now
            left = (now - started) * (1 / done - 1) / 60
            print(f"encoding: {done * hours:.2f} of {hours:.2f} h of audio, {left:.0f} min left", flush=True)
    bar.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_dir",
        type=file_path,
        default="dataset_pairs_wav",
        help="as made by create_dataset_pairs_wav.py (default: %(default)s)",
    )
    parser.add_argument(
        "--cache_dir", type=file_path, help=f"where embeddings are kept (default: {CACHE_NAME} in the dataset's folder)"
    )
    parser.add_argument(
        "--encodec_weights",
        type=file_path,
        default="pretrained",
        help="pretrained, untrained, or a file or folder (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: %(default)s)"
    )
    args = parser.parse_args()
    device = pick_device(args.device)
    splits = [Path(args.dataset_dir, split) for split in ("train", "val")]
    for split in splits:
        find_pairs(split)
    check_output_folder("--cache_dir", args.cache_dir, is_written=False)
    codec = load_frozen_encodec(args.encodec_weights, device)
    print(untrained_banner(codec), end="\n" if not codec.is_pretrained else "")
    datasets = [WavPairsDataset(split, codec, args.cache_dir) for split in splits]
    prepare_cache(datasets)
    for dataset in datasets:
        shape = tuple(dataset[0][0].shape)
        print(
            f"{dataset.split_dir}: {len(dataset)} pairs, every header checked, embeddings {list(shape)} "
            f"in {dataset.cache.folder}"
        )
    return 0


if __name__ == "__main__":
    run_script(main)
