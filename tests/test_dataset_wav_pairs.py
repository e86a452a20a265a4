"""The dataset gives the same embeddings with and without a cache, encodes each segment once, and names bad WAVs."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch
from conftest import CODEC, main_of, noise, write_track

from common.errors import UserError
from dataset import split_index
from dataset.batches import PairBatches
from dataset.pairs import read_metadata, read_pcm16
from dataset_wav_pairs import WavPairsDataset, prepare_cache


@pytest.fixture
def copy(small_dataset, tmp_path):
    """A copy of the encoded dataset that a test may change."""
    shutil.copytree(small_dataset, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def counted(codec, monkeypatch):
    """The codec, and a list of the batch sizes that it encodes."""
    sizes = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda waveforms: sizes.append(len(waveforms)) or encode(waveforms))
    codec.sizes = sizes
    return codec


def in_one_piece(codec, *paths) -> torch.Tensor:
    """The embedding of consecutive WAVs, encoded in one piece by EnCodec's own encoder: [128, frames]."""
    waveform = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths])
    with torch.no_grad():
        return codec.model.encoder(torch.from_numpy(waveform).view(1, 1, -1))[0]


def test_a_target_is_the_second_half_of_its_pair_encoded_in_one_piece(small_dataset, codec):
    dataset = WavPairsDataset(small_dataset / "train", codec)
    assert len(dataset) == 19
    for index in (0, 7, 18):
        target = dataset[index][1]
        assert target.shape == (128, 75) and target.dtype == torch.float32
        expected = in_one_piece(codec, *dataset.paths(index))[:, 75:]
        torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-4)
        alone = in_one_piece(codec, dataset.paths(index)[1])
        start_up = (alone - expected)[:, 0].abs().mean() / expected.std()
        assert start_up > 0.05, "encoded alone, it would begin with the codec's start-up transient"


def test_an_input_is_encoded_behind_its_predecessor_in_the_track(small_dataset, codec):
    """The predecessor comes from metadata.txt. The first segment of a track has none."""
    dataset = WavPairsDataset(small_dataset / "train", codec)
    rows = {row.name: row for row in read_metadata(small_dataset / "metadata.txt").pairs}
    at = {(rows[name].source, rows[name].start_s): i for i, name in enumerate(dataset.names)}
    followed = 0
    for (source, start_s), index in at.items():
        before = at.get((source, start_s - 1))
        paths = [dataset.paths(index)[0]] if before is None else [dataset.paths(before)[0], dataset.paths(index)[0]]
        torch.testing.assert_close(dataset[index][0], in_one_piece(codec, *paths)[:, -75:], atol=1e-4, rtol=1e-4)
        followed += before is not None
        assert before is None or dataset.keys[index][0] == dataset.keys[before][1], "a shared segment has one key"
    assert 5 < followed < 19


@pytest.mark.slow
def test_16_seconds_are_1200_frames_and_one_second_of_context_is_enough(tmp_path, codec):
    for role in ("input", "output"):
        write_track(tmp_path / "train" / f"pair_0000_{role}.wav", 16, seed=len(role))
    dataset = WavPairsDataset(tmp_path / "train", codec)
    first, second = dataset[0]
    assert first.shape == second.shape == (128, 1200)
    expected = in_one_piece(codec, *dataset.paths(0))[:, 1200:]
    torch.testing.assert_close(second, expected, atol=1e-4 * expected.std(), rtol=0)


def test_batches_are_equal_from_memory_disk_or_codec(small_dataset, codec, monkeypatch):
    dataset = WavPairsDataset(small_dataset / "train", codec)
    in_memory = PairBatches(dataset, torch.device("cpu"))
    monkeypatch.setattr("dataset.batches.free_memory", lambda *_: 1000)
    from_disk, ahead = (PairBatches(dataset, torch.device("cpu")) for _ in range(2))
    ahead.reads_ahead = True  # as on a GPU
    encoded = PairBatches(WavPairsDataset(small_dataset / "train", codec, use_cache=False), torch.device("cpu"))
    assert in_memory.table is not None and from_disk.table is None
    state, indices = torch.random.get_rng_state(), [3, 1, 18, 0, 5, 5, 7]
    ways = [list(way(indices, 3)) for way in (in_memory, from_disk, ahead, encoded)]
    assert torch.equal(torch.random.get_rng_state(), state), "dropout would depend on where embeddings come from"
    for way in ways:
        assert [len(inputs) for inputs, _ in way] == [3, 3, 1]
        inputs, targets = (torch.cat(side) for side in zip(*way, strict=True))
        for position, index in enumerate(indices):
            assert torch.equal(inputs[position], dataset[index][0])
            assert torch.equal(targets[position], dataset[index][1])


def read_a_damaged_entry(copy, codec, monkeypatch, capfd) -> None:
    """If the embeddings do not fit into memory, threads read them. One of the threads encodes the damaged one again."""
    dataset = WavPairsDataset(copy / "train", codec)
    keys = [key for pair in dataset.keys for key in pair]
    output = next(i for i in range(1, len(keys), 2) if keys.count(keys[i]) == 1)  # which is read once
    whole, path = dataset.embeddings([output])[0], dataset.cache.path(keys[output])
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4  # one bit
    path.write_bytes(damaged)
    monkeypatch.setattr("dataset.batches.free_memory", lambda *_: 0)
    batches = PairBatches(dataset, codec.device)
    batches.reads_ahead = True  # the default on a GPU
    targets = torch.cat([targets for _, targets in batches(range(19), 4)]).cpu()
    assert capfd.readouterr().err == f"{path}: damaged; encoding this segment again\n"
    torch.testing.assert_close(targets[output // 2], whole, atol=1e-4, rtol=0)
    assert len(targets) == 19 and dataset.cache.read(keys[output]) is not None


def test_a_damaged_cache_entry_met_in_training_is_encoded_again(copy, codec, monkeypatch, capfd):
    read_a_damaged_entry(copy, codec, monkeypatch, capfd)


def test_each_distinct_segment_is_encoded_once_even_if_interrupted_or_moved(copy, counted):
    shutil.rmtree(copy / ".embedding_cache")
    datasets = [WavPairsDataset(copy / split, counted) for split in ("train", "val")]
    prepare_cache(datasets)
    distinct = {key for dataset in datasets for pair in dataset.keys for key in pair}
    assert sum(counted.sizes) == len(distinct) < 2 * (len(datasets[0]) + len(datasets[1]))
    cache = copy / ".embedding_cache" / counted.fingerprint
    for path in sorted(cache.iterdir())[:5]:  # as if the fill had been interrupted
        path.unlink()
    shutil.move(copy, copy.parent / "moved")
    prepare_cache([WavPairsDataset(copy.parent / "moved" / split, counted) for split in ("train", "val")])
    assert sum(counted.sizes) == len(distinct) + 5


def test_a_changed_wav_and_its_successor_are_encoded_again(copy, counted):
    before = WavPairsDataset(copy / "train", counted)[0]
    path = copy / "train" / "pair_0000_input.wav"
    soundfile.write(path, noise(np.random.default_rng(99), 24000), 24000)
    after = WavPairsDataset(copy / "train", counted)[0]
    assert not torch.equal(after[0], before[0]) and not torch.equal(after[1][:, 0], before[1][:, 0])
    assert sum(counted.sizes) == 2
    identity = prepare_cache([WavPairsDataset(copy / "train", counted)])
    shutil.copy(copy / "train" / "pair_0001_input.wav", path)
    assert prepare_cache([WavPairsDataset(copy / "train", counted)]) != identity


def test_a_wav_replaced_by_an_older_one_is_noticed(small_dataset, copy, codec):
    """`cp -p` and `rsync -a` keep the old date."""
    assert main_of("dataset_wav_pairs.py", "--dataset_dir", copy, *CODEC) == 0
    before = WavPairsDataset(copy / "train", codec).keys
    old, other = small_dataset / "train/pair_0003_input.wav", copy / "train/pair_0009_input.wav"
    os.utime(shutil.copy(old, copy.parent / "older.wav"), (1e9, 1e9))
    subprocess.run(["cp", "-p", copy.parent / "older.wav", other], check=True)
    dataset = WavPairsDataset(copy / "train", codec)
    assert other.stat().st_mtime == 1e9 and dataset.keys[9][0] != before[9][0]
    np.testing.assert_array_equal(dataset.segments.read(18), read_pcm16(old))
    assert main_of("dataset_wav_pairs.py", "--dataset_dir", copy, *CODEC) == 0
    assert WavPairsDataset(copy / "train", codec).keys == dataset.keys, "metadata.txt must not be trusted again"


def test_wavs_that_metadata_knows_are_not_read_again(copy, codec, monkeypatch):
    """metadata.txt lists their digests. Only a WAV that is newer or has another size is read."""
    read, wavs = split_index.read_pcm16, []
    monkeypatch.setattr(split_index, "read_pcm16", lambda path: wavs.append(path.name) or read(path))

    def start() -> list[str]:
        wavs.clear()
        prepare_cache([WavPairsDataset(copy / split, codec) for split in ("train", "val")])
        return sorted(set(wavs))

    assert len(start()) == len(start()) == 44, "a copy may contain other audio"
    assert main_of("dataset_wav_pairs.py", "--dataset_dir", copy, *CODEC) == 0
    assert start() == []
    newer = (copy / "metadata.txt").stat().st_mtime_ns + 1
    os.utime(copy / "train" / "pair_0005_output.wav", ns=(newer, newer))
    assert start() == ["pair_0005_output.wav"]
    rows = [row for row in (copy / "metadata.txt").read_text().split("\n") if not row.startswith("val/pair_0020_input")]
    (copy / "metadata.txt").write_text("\n".join(rows))
    assert start() == ["pair_0020_input.wav"], "a row that is missing"
    (copy / "metadata.txt").unlink()
    assert len(start()) == 44, "pairs from elsewhere need no metadata.txt"


def test_a_bad_wav_is_named(copy, codec):
    path = copy / "val/pair_0020_output.wav"

    def expect(says: str) -> None:
        with pytest.raises(UserError, match=rf"pair_0020_output\.wav: .*{says}"):
            WavPairsDataset(copy / "val", codec)

    path.unlink()
    expect("missing")
    path.write_text("hello")
    expect("not a readable WAV")
    for rate, shape, subtype, says in (
        (22050, 24000, "PCM_16", "22050 Hz"),
        (24000, (24000, 2), "PCM_16", "2 channels"),
        (24000, 21600, "PCM_16", "21600 samples"),
        (24000, 24000, "FLOAT", "FLOAT, must be 16-bit PCM"),  # it could hold NaN
    ):
        soundfile.write(path, np.zeros(shape), rate, subtype=subtype)
        expect(says)


def test_an_embedding_that_is_not_finite_names_its_file(copy, codec, monkeypatch):
    shutil.rmtree(copy / ".embedding_cache")
    monkeypatch.setattr(
        codec, "encode", lambda waveforms: torch.full((len(waveforms), 128, waveforms.shape[2] // 320), torch.nan)
    )
    with pytest.raises(UserError, match=r"pair_\d+_\w+\.wav: its embedding is not finite"):
        prepare_cache([WavPairsDataset(copy / "val", codec)])
    assert WavPairsDataset(copy / "val", codec).cache.keys() == set()
