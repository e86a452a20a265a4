"""The dataset: WAV pairs encoded as pairs of EnCodec embeddings, each segment once.

    python dataset_wav_pairs.py                    # check dataset_pairs_wav/ and encode what is missing

The original experiment encoded every segment in every epoch. The codec is frozen, so here each segment is encoded once,
before training. Its embedding is stored in `.embedding_cache/CODEC/KEY.npy`. The name depends on the codec's weights,
the audio, and the audio before it, so changed audio gets a new file. Pairs that share a segment share its file.

Each segment is encoded with the preceding second of its track as context. Encoded alone, it would begin with the
codec's start-up transient, and a model would learn to reproduce it in the middle of a song.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH

from audio.codec import Codec
from audio.frozen_encodec import load_frozen_encodec
from common.arguments import cache_setting, dataset_setting, device_setting, parse_settings, weights_setting
from common.devices import free_memory, pick_device
from common.errors import UserError, run_script
from common.files import check_output_folder, remove_partial_files
from common.progress import Progress
from common.threads import THREADS, read_ahead
from dataset.cache import EmbeddingCache
from dataset.pairs import METADATA_NAME, find_pairs
from dataset.split_index import SplitSegments, confirm_metadata
from training.distributed import barrier, broadcast, rank, world_size

CACHE_NAME = ".embedding_cache"
CPU_ENCODE_BATCH = 8  # segments encoded together; more is no faster on a CPU


class WavPairsDataset(Dataset):
    """Pairs of consecutive segments as embeddings.

    `dataset[i]` is `(input_embedding, output_embedding)`, float32 [C, frames] each (EnCodec: [128, 1200] for 16 s), on
    the CPU.

    split_dir: folder with pair_NNNN_input.wav and pair_NNNN_output.wav.
    cache_dir: folder for embeddings (default: .embedding_cache beside the split's folder).
    use_cache: False encodes at every access and writes nothing.

    Attributes: `names[i]` of the pairs, as in metadata.txt; `keys[i]`, equal if and only if the embeddings are.
    Raises UserError if a WAV is not mono 16-bit PCM at the codec's sample rate, differs in length from the rest, or
    is missing its partner.
    """

    def __init__(
        self,
        split_dir: str | os.PathLike,
        codec: Codec,
        cache_dir: str | os.PathLike | None = None,
        use_cache: bool = True,
    ):
        self.split_dir, self.codec = Path(split_dir), codec
        self.names = find_pairs(self.split_dir)
        self.segments = SplitSegments(self.split_dir, self.names, codec.sample_rate)
        self.num_samples = self.segments.num_samples
        self.num_frames = -(-self.num_samples // codec.hop_length)
        self.segment_keys = _segment_keys(self.segments)
        self.cache = None
        if use_cache:
            folder = Path(cache_dir) if cache_dir is not None else self.split_dir.parent / CACHE_NAME
            self.cache = EmbeddingCache(folder / codec.fingerprint, (codec.embedding_dim, self.num_frames))
            try:
                self.cache.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder}: {error.strerror}; choose another folder with --cache_dir") from error

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Read or encode several pairs together. WAV 2i is the input of pair i, and WAV 2i + 1 its output."""
        wavs = [wav for index in indices for wav in (2 * index, 2 * index + 1)]
        embeddings = self.embeddings(wavs)
        return list(zip(embeddings[::2], embeddings[1::2], strict=True))

    @functools.cached_property
    def keys(self) -> list[tuple[str, str]]:
        return [(first.decode(), second.decode()) for first, second in self.segment_keys.reshape(-1, 2)]

    def paths(self, index: int) -> tuple[Path, Path]:
        """The paths of a pair's input and output."""
        return self.segments.path(2 * index), self.segments.path(2 * index + 1)

    def embeddings(self, wavs: Sequence[int]) -> list[torch.Tensor]:
        """The embeddings [C, frames] of WAVs, given by their numbers in `segments`. Encodes those not in the cache."""
        cached: list = [None] * len(wavs)
        if self.cache is not None:
            keys = [self.segment_keys[wav].decode() for wav in wavs]
            cached = list(read_ahead(self.cache.read, keys) if len(keys) > THREADS else map(self.cache.read, keys))
        missing = [wav for wav, embedding in zip(wavs, cached, strict=True) if embedding is None]
        encoded = dict(zip(missing, self.encode(missing).cpu().numpy(), strict=True)) if missing else {}
        return [
            torch.from_numpy(encoded[wav] if embedding is None else embedding)
            for wav, embedding in zip(wavs, cached, strict=True)
        ]

    def encode(self, wavs: Sequence[int]) -> torch.Tensor:
        """Encode WAVs to [len(wavs), C, frames] on the codec's device, and cache them if there is a cache.

        Raises UserError if an embedding is not finite.
        """
        result = torch.empty(len(wavs), self.codec.embedding_dim, self.num_frames, device=self.codec.device)
        for places, embeddings in self.encode_in_batches(wavs):
            result[places] = embeddings
        return result

    def encode_in_batches(self, wavs: Sequence[int]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Like `encode`, in batches that fit into memory. Yields positions in `wavs` and embeddings [B, C, frames].

        While the codec encodes a batch, threads read the next batches and write the previous one.
        """
        # Waveforms in a batch must have the same length, and those with a predecessor are longer.
        has_context = self.segments.predecessors[np.asarray(wavs, int)] >= 0
        size = self._encode_batch()
        groups = (np.flatnonzero(has_context), np.flatnonzero(~has_context))
        batches = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
        waveforms = read_ahead(lambda places: np.stack([self._waveform(wavs[place]) for place in places]), batches)
        writes: list[concurrent.futures.Future] = []
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for places, batch in zip(batches, waveforms, strict=True):
                embeddings = self._encode_together([wavs[place] for place in places], batch)
                for write in writes:
                    write.result()
                if self.cache is not None:
                    keys = [self.segment_keys[wavs[place]].decode() for place in places]
                    writes = [*map(functools.partial(pool.submit, self.cache.write), keys, embeddings.cpu().numpy())]
                yield places, embeddings
            for write in writes:
                write.result()

    def _encode_together(self, wavs: list[int], waveforms: np.ndarray) -> torch.Tensor:
        """Encode int16 waveforms of WAVs, which may begin with their context, to [B, C, frames]."""
        context_frames = (waveforms.shape[1] - self.num_samples) // self.codec.hop_length
        waveforms = torch.from_numpy(waveforms).unsqueeze(1).to(self.codec.device).float() / 32768
        embeddings = self.codec.encode(waveforms)[:, :, context_frames:]
        finite = embeddings.isfinite().flatten(1).all(dim=1).tolist()
        for wav, is_finite in zip(wavs, finite, strict=True):
            if not is_finite:
                raise UserError(
                    f"{self.segments.path(wav)}: its embedding is not finite; remove its pair from the dataset"
                )
        return embeddings

    def _waveform(self, wav: int) -> np.ndarray:
        """A segment's int16 samples, after the end of its predecessor if there is one."""
        predecessor = self.segments.predecessors[wav]
        if predecessor < 0:
            return self.segments.read(wav)
        context_frames = min(self.codec.warmup_frames, self.num_samples // self.codec.hop_length)
        context_samples = context_frames * self.codec.hop_length
        context = self.segments.read(predecessor)[self.num_samples - context_samples :]
        return np.concatenate([context, self.segments.read(wav)])

    def _encode_batch(self) -> int:
        """How many segments are encoded together."""
        if self.codec.device.type != "cuda":
            return CPU_ENCODE_BATCH
        # The first level of the encoder needs about four copies of [B, 32, samples] in float32.
        return max(1, min(64, int(free_memory(self.codec.device) / 2 / (4 * 32 * 4 * self.num_samples))))


def _segment_keys(segments: SplitSegments) -> np.ndarray:
    """The key of each WAV's embedding: a hash of its audio and the audio before it, [2 * pairs] bytes."""
    keys = np.zeros_like(segments.digests)
    for wav, predecessor in enumerate(segments.predecessors):
        before = segments.digests[predecessor] if predecessor >= 0 else b"nothing"
        keys[wav] = hashlib.sha256(before + b" " + segments.digests[wav]).hexdigest()[:32]
    return keys


def open_splits(
    dataset_dir: str | os.PathLike, codec: Codec, cache_dir: str | os.PathLike | None = None, use_cache: bool = True
) -> tuple[WavPairsDataset, WavPairsDataset, str]:
    """The train and val splits of a dataset with every segment encoded, and the hash of their data.

    Raises UserError if they do not match, or have fewer pairs than there are processes.
    """
    train, val = (WavPairsDataset(Path(dataset_dir, split), codec, cache_dir, use_cache) for split in ("train", "val"))
    if val.num_samples != train.num_samples:
        raise UserError(f"{dataset_dir}: train/ and val/ differ in length; create the dataset again")
    if min(len(train), len(val)) < world_size():
        raise UserError(
            f"{dataset_dir}: {len(train)} train and {len(val)} val pairs are too few for {world_size()} processes; use "
            "fewer with --num_processes, or more music"
        )
    return train, val, prepare_cache([train, val])


# ------------------------------------------------------------------ encoding what is missing


def prepare_cache(datasets: list[WavPairsDataset]) -> str:
    """Encode what the cache lacks, shared among all processes, and return a hash of the data.

    The hash covers codec, names and audio. It is the same if and only if training would see the same data.
    """
    identity = hashlib.sha256(datasets[0].codec.fingerprint.encode())
    for dataset in datasets:
        identity.update("\n".join([dataset.split_dir.name, *dataset.names]).encode())
        identity.update(dataset.segment_keys.tobytes())
    if datasets[0].cache is not None:
        # Only rank 0 checks what is missing, because another rank could check while files are already being written.
        missing = broadcast(_missing_segments(datasets) if rank() == 0 else None)
        _encode_missing(datasets, missing)
        barrier()
        if datasets[0].codec.device.type == "cuda":
            torch.cuda.empty_cache()  # free the memory used for encoding, which the embeddings need
    return identity.hexdigest()[:16]


def _missing_segments(datasets: list[WavPairsDataset]) -> list[tuple[int, int]]:
    """(dataset, WAV) for each distinct segment that is not in the cache."""
    remove_partial_files(datasets[0].cache.folder)
    present = datasets[0].cache.keys()
    missing: dict[bytes, tuple[int, int]] = {}
    for number, dataset in enumerate(datasets):
        for wav, key in enumerate(dataset.segment_keys.tolist()):
            if key.decode() not in present:
                missing.setdefault(key, (number, wav))
    return list(missing.values())


def _encode_missing(datasets: list[WavPairsDataset], missing: list[tuple[int, int]]) -> None:
    if not missing:
        return
    hours = len(missing) * datasets[0].num_samples / datasets[0].codec.sample_rate / 3600
    if rank() == 0:
        where = datasets[0].cache.folder
        print(f"encoding {hours:.2f} h of audio ({len(missing)} segments) once; stored in {where}", flush=True)
    progress, mine, done = Progress(is_shown=rank() == 0), missing[rank() :: world_size()], 0
    for number, dataset in enumerate(datasets):
        for places, _ in dataset.encode_in_batches([wav for owner, wav in mine if owner == number]):
            done += len(places)
            progress(done / len(mine) * hours, hours, "h of audio encoded")
    progress.close()


@dataclass
class Settings:
    dataset_dir: str = dataset_setting()
    cache_dir: str | None = cache_setting()
    encodec_weights: str = weights_setting()
    device: str = device_setting()


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    device = pick_device(settings.device)
    splits = [Path(settings.dataset_dir, split) for split in ("train", "val")]
    for split in splits:
        find_pairs(split)
    check_output_folder("--cache_dir", settings.cache_dir, is_written=False)
    codec = load_frozen_encodec(settings.encodec_weights, device)
    if codec.banner:
        print(codec.banner)
    datasets = [WavPairsDataset(split, codec, settings.cache_dir) for split in splits]
    confirm_metadata([dataset.segments for dataset in datasets], Path(settings.dataset_dir, METADATA_NAME))
    prepare_cache(datasets)
    for dataset in datasets:
        shape = tuple(dataset[0][0].shape)
        print(f"{dataset.split_dir}: {len(dataset)} pairs, embeddings {list(shape)} in {dataset.cache.folder}")
    return 0


if __name__ == "__main__":
    run_script(main)
