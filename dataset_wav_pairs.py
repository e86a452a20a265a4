"""The dataset: a pair of WAVs in, a pair of EnCodec embeddings out, each segment encoded once.

    python dataset_wav_pairs.py                    # check dataset_pairs_wav/ and encode what is missing

The document encodes on the fly; so does this, and keeps what it has encoded. The codec is frozen, so
a segment's embedding never changes: it is stored in `.embedding_cache/FINGERPRINT/HASH.npy`, named by
the codec's weights and by the segment's audio. Neighbouring pairs share segments, hence files. There
is no index to go stale: changed audio has another name, and any number of processes may fill one cache.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import io
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from tqdm import tqdm

from frozen_encodec import HOP_LENGTH, FrozenEncodec, load_frozen_encodec, untrained_banner
from pipeline_common import UserError, pick_device, run_script, written_beside

CACHE_NAME = ".embedding_cache"
CPU_ENCODE_BATCH = 8  # segments encoded together; more gains nothing on a CPU
READERS = 4  # threads that read and hash; both release Python's lock


class EmbeddingCache:
    """Embeddings on disk, one checked file for each distinct segment.

    A file is a plain .npy (float32 [128, frames]) with the CRC-32 of all before it appended, which
    numpy ignores. A file that fails its check counts as missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def read(self, key: str) -> np.ndarray | None:
        """The embedding under `key`, or None if it is missing or damaged (which is said)."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        body, checksum = content[:-4], content[-4:]
        if zlib.crc32(body).to_bytes(4, "little") != checksum:
            print(f"{self.path(key)}: damaged; encoding this segment again", file=sys.stderr, flush=True)
            return None
        return np.load(io.BytesIO(body), allow_pickle=False)

    def write(self, key: str, embedding: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(embedding, dtype=np.float32))
        body = buffer.getvalue()
        with written_beside(self.path(key)) as beside:
            beside.write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))

    def present(self) -> set[str]:
        return {entry.name.removesuffix(".npy") for entry in os.scandir(self.folder) if entry.name.endswith(".npy")}


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
        self.num_samples = _check_headers(self.paths, codec.sample_rate)
        self.cache = None
        if use_cache:
            folder = Path(cache_dir) if cache_dir is not None else self.split_dir.parent / CACHE_NAME
            self.cache = EmbeddingCache(folder / codec.fingerprint)
            self.cache.folder.mkdir(parents=True, exist_ok=True)
        self._keys: dict[tuple[int, ...], str] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.pairs[index]
        return self.embedding(first), self.embedding(second)

    @property
    def paths(self) -> list[Path]:
        """All WAVs: input, output, input, output, ..."""
        return [path for pair in self.pairs for path in pair]

    @property
    def num_frames(self) -> int:
        """Frames of an embedding: 1200 for 16 s."""
        return -(-self.num_samples // HOP_LENGTH)

    def name(self, index: int) -> str:
        """The pair's name, as in metadata.txt: pair_0000."""
        return self.pairs[index][0].name.removesuffix("_input.wav")

    def embedding(self, path: Path) -> torch.Tensor:
        """The embedding of one WAV, float32 [128, frames]: from the cache, else encoded and kept."""
        if self.cache is not None and (found := self.cache.read(self.key(path))) is not None:
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
        waveforms = torch.stack([torch.from_numpy(_read_pcm16(path)) for path in paths])
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
        about = os.stat(path)
        identity = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if identity not in self._keys:
            self._keys[identity] = hashlib.sha256(_read_pcm16(path).tobytes()).hexdigest()[:32]
        return self._keys[identity]


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
        keys = [dataset.key(path) for path in dataset.paths]
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        self.rows = torch.tensor([rows[key] for key in keys]).view(-1, 2)
        size = len(rows) * 4 * dataset.codec.embedding_dim * dataset.num_frames
        place = next((d for d in (device, torch.device("cpu")) if size < _free_memory(d, processes_on_node) / 2), None)
        if place is None:
            return
        first_path = dict(zip(reversed(keys), reversed(dataset.paths), strict=True))
        self.table = torch.empty(len(rows), dataset.codec.embedding_dim, dataset.num_frames, device=place)
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            for row, embedding in enumerate(pool.map(dataset.embedding, [first_path[key] for key in rows])):
                self.table[row] = embedding
        self.rows = self.rows.to(place)

    @property
    def place(self) -> str:
        """Where the embeddings are, for the log."""
        if self.table is not None:
            return f"in memory ({self.table.device})"
        return "read from the cache as needed" if self.dataset.cache else "encoded at every use"

    def batch(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and outputs of the pairs `indices`, [B, 128, frames] each, on the device."""
        if self.table is not None:
            rows = self.rows[torch.tensor(indices, device=self.rows.device)]
            both = self.table[rows.flatten()]
        else:
            paths = [path for index in indices for path in self.dataset.pairs[index]]
            if self.dataset.cache is None:
                both = self.dataset.encode(paths)
            else:
                with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
                    both = torch.stack(list(pool.map(self.dataset.embedding, paths)))
        if self.device.type == "cuda" and both.device.type == "cpu":
            both = both.pin_memory()  # lets the copy run beside the GPU's work
        # On Apple's GPU a copy that does not block may read memory that has been freed.
        both = both.to(self.device, non_blocking=self.device.type == "cuda").unflatten(0, (-1, 2))
        return both[:, 0], both[:, 1]

    def batches(self, chunks: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`batch` of each chunk in turn; where that takes time, the next is made while one is in use."""
        if self.table is not None:
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
    wavs = [(dataset, path) for dataset in datasets for path in dataset.paths]
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        keys = list(pool.map(lambda wav: wav[0].key(wav[1]), wavs))
    if datasets[0].cache is not None:
        first = dict(zip(reversed(keys), reversed(wavs), strict=True))
        # The first process decides what is missing, as the others may look while one already writes.
        missing = [sorted(first.keys() - datasets[0].cache.present())]
        if world_size > 1:
            dist.broadcast_object_list(missing)
        _encode_missing([first[key] for key in missing[0]], rank, world_size)
        if world_size > 1:
            dist.barrier()
    identity = [(path.parent.name, path.name, key) for key, (_, path) in zip(keys, wavs, strict=True)]
    return hashlib.sha256(repr((datasets[0].codec.fingerprint, identity)).encode()).hexdigest()[:16]


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


def find_pairs(split_dir: Path) -> list[tuple[Path, Path]]:
    if not split_dir.is_dir():
        raise UserError(f"{split_dir}: no such folder; create the dataset first (create_dataset_pairs_wav.py)")
    names = {entry.name for entry in os.scandir(split_dir)}
    stems = sorted(
        {
            name.rsplit("_", 1)[0]
            for name in names
            if name.startswith("pair_") and name.endswith(("_input.wav", "_output.wav"))
        }
    )
    if not stems:
        raise UserError(
            f"{split_dir}: holds no pairs; create the dataset first (create_dataset_pairs_wav.py), "
            "with more music if this is val/"
        )
    for name in (f"{stem}_{role}.wav" for stem in stems for role in ("input", "output")):
        if name not in names:
            raise UserError(
                f"{split_dir / name}: missing, though the other half of its pair is there; create the dataset again"
            )
    return [(split_dir / f"{stem}_input.wav", split_dir / f"{stem}_output.wav") for stem in stems]


def _check_headers(paths: Iterable[Path], sample_rate: int) -> int:
    """Check rate, channels and length of every WAV; return the samples in each."""
    expected = None
    for path in paths:
        try:
            info = soundfile.info(os.fsencode(path))
        except soundfile.SoundFileError as error:
            raise UserError(f"{path}: not a readable WAV; create the dataset again") from error
        if (info.samplerate, info.channels) != (sample_rate, 1):
            raise UserError(
                f"{path}: {info.samplerate} Hz with {info.channels} channels, must be {sample_rate} Hz mono; "
                "create the dataset again"
            )
        expected = expected or info.frames
        if info.frames != expected or info.frames == 0:
            raise UserError(f"{path}: {info.frames} samples, the others have {expected}; create the dataset again")
    return expected


def _read_pcm16(path: Path) -> np.ndarray:
    """int16 [samples]. Other WAVs are refused: read as 16 bits, NaN in a float WAV would become a number."""
    try:
        with soundfile.SoundFile(os.fsencode(path)) as wav:
            if wav.subtype != "PCM_16":
                raise UserError(f"{path}: {wav.subtype}, must be 16-bit PCM; create the dataset again")
            return wav.read(dtype="int16")
    except soundfile.SoundFileError as error:
        raise UserError(f"{path}: cannot be read; create the dataset again") from error


def _free_memory(device: torch.device, processes_on_node: int) -> float:
    """Bytes that one of `processes_on_node` processes may count on."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return 0  # shares the computer's memory: keep the table on the CPU's side
    try:
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:  # macOS
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return available / processes_on_node


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_dir",
        default="dataset_pairs_wav",
        help="as made by create_dataset_pairs_wav.py (default: %(default)s)",
    )
    parser.add_argument(
        "--cache_dir", help=f"where embeddings are kept (default: {CACHE_NAME} in the dataset's folder)"
    )
    parser.add_argument(
        "--encodec_weights",
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
