"""The dataset: the same embeddings with and without a cache, each segment encoded once, bad WAVs named."""

import errno
import os
import shutil
import time

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, one_line_error, write_track
from torch.utils.data import DataLoader

import dataset_wav_pairs
from common.errors import UserError
from dataset_wav_pairs import EmbeddingCache, PairEmbeddings, WavPairsDataset, prepare_cache


@pytest.fixture
def copy(small_dataset, tmp_path):
    """A dataset of one's own, already encoded."""
    shutil.copytree(small_dataset, tmp_path / "copy", copy_function=shutil.copy)
    return tmp_path / "copy"


@pytest.fixture
def counted(codec, monkeypatch):
    """The codec, with a list of the batch sizes it was asked to encode."""
    sizes = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda waveforms: sizes.append(len(waveforms)) or encode(waveforms))
    codec.sizes = sizes
    return codec


def test_items_are_the_wavs_embeddings(small_dataset, codec):
    dataset = WavPairsDataset(small_dataset / "train", codec)
    assert len(dataset) == 19
    for index in (0, 7, 18):
        item = dataset[index]
        for got, role in zip(item, ("input", "output"), strict=True):
            path = small_dataset / "train" / f"pair_{index:04d}_{role}.wav"
            waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
            torch.testing.assert_close(got, codec.model.encoder(waveform.view(1, 1, -1))[0], atol=1e-5, rtol=1e-5)
            assert got.shape == (128, 75) and got.dtype == torch.float32


def test_16_seconds_are_1200_frames(tmp_path, codec):
    for role in ("input", "output"):
        write_track(tmp_path / "train" / f"pair_0000_{role}.wav", 16, seed=len(role))
    first, second = WavPairsDataset(tmp_path / "train", codec)[0]
    assert first.shape == second.shape == (128, 1200) and not torch.equal(first, second)


def test_cached_and_uncached_are_equal(small_dataset, codec):
    cached = WavPairsDataset(small_dataset / "val", codec)
    uncached = WavPairsDataset(small_dataset / "val", codec, use_cache=False)
    for index in range(len(cached)):
        assert all(torch.equal(a, b) for a, b in zip(cached[index], uncached[index], strict=True))


def test_batches_are_equal_whichever_way_they_come(small_dataset, codec, monkeypatch):
    dataset = WavPairsDataset(small_dataset / "train", codec)
    in_memory = PairEmbeddings(dataset, torch.device("cpu"))
    monkeypatch.setattr("dataset_wav_pairs._free_memory", lambda *_: 1000)
    from_disk = PairEmbeddings(dataset, torch.device("cpu"))
    encoded = PairEmbeddings(WavPairsDataset(small_dataset / "train", codec, use_cache=False), torch.device("cpu"))
    assert in_memory.table is not None and from_disk.table is None
    chunks = [[3, 1, 18], [0], [5, 5]]
    for batches in zip(*(way.batches(chunks) for way in (in_memory, from_disk, encoded)), chunks, strict=True):
        *ways, chunk = batches
        for position, index in enumerate(chunk):
            for inputs, outputs in ways:
                assert torch.equal(inputs[position], dataset[index][0])
                assert torch.equal(outputs[position], dataset[index][1])


def test_a_dataloader_takes_it(small_dataset, codec):
    inputs, outputs = next(iter(DataLoader(WavPairsDataset(small_dataset / "train", codec), batch_size=4)))
    assert inputs.shape == outputs.shape == (4, 128, 75)


def test_each_distinct_segment_is_encoded_once(copy, counted):
    shutil.rmtree(copy / ".embedding_cache")
    datasets = [WavPairsDataset(copy / split, counted) for split in ("train", "val")]
    prepare_cache(datasets)
    distinct = {(copy / s / f).read_bytes() for s in ("train", "val") for f in os.listdir(copy / s)}
    assert sum(counted.sizes) == len(distinct) < 2 * (len(datasets[0]) + len(datasets[1]))
    prepare_cache([WavPairsDataset(copy / split, counted) for split in ("train", "val")])
    assert sum(counted.sizes) == len(distinct), "something was encoded again"


def test_an_interrupted_fill_goes_on(copy, counted):
    cache = copy / ".embedding_cache" / counted.fingerprint
    for path in sorted(cache.iterdir())[:5]:
        path.unlink()
    prepare_cache([WavPairsDataset(copy / split, counted) for split in ("train", "val")])
    assert sum(counted.sizes) == 5


def test_a_touched_wav_is_encoded_again(copy, counted):
    dataset = WavPairsDataset(copy / "train", counted)
    before = dataset[0][0]
    path = copy / "train" / "pair_0000_input.wav"
    path.unlink()
    soundfile.write(path, noise(np.random.default_rng(99), 24000), 24000)
    for again in (dataset, WavPairsDataset(copy / "train", counted)):
        assert not torch.equal(again[0][0], before)
    assert sum(counted.sizes) == 1
    identity = prepare_cache([WavPairsDataset(copy / "train", counted)])
    shutil.copy(copy / "train" / "pair_0001_input.wav", path)
    assert prepare_cache([WavPairsDataset(copy / "train", counted)]) != identity


def test_only_the_audio_names_a_segment(copy, counted):
    """A new date, or another place, is no reason to encode again."""
    os.utime(copy / "train" / "pair_0000_input.wav", (1, 1))
    shutil.move(copy, copy.parent / "moved")
    prepare_cache([WavPairsDataset(copy.parent / "moved" / "train", counted)])
    assert counted.sizes == []


def test_a_known_dataset_is_not_read_again(copy, counted, monkeypatch):
    """Nor are files believed whose dates are too new to tell of another change."""
    read, wavs = dataset_wav_pairs.read_pcm16, []
    monkeypatch.setattr("dataset_wav_pairs.read_pcm16", lambda path: wavs.append(path.name) or read(path))
    clock = time.time_ns

    def start(seconds_later: float) -> set[str]:
        monkeypatch.setattr("time.time_ns", lambda: clock() + round(seconds_later * 1e9))
        wavs.clear()
        prepare_cache([WavPairsDataset(copy / "train", counted)])
        return set(wavs)

    assert len(start(-100)) == 38 == len(start(-100)), "all of these are new, or newer"
    assert len(start(10)) == 38, "and nothing was kept of them"
    assert start(10) == set()
    soundfile.write(copy / "train" / "pair_0003_output.wav", noise(np.random.default_rng(99), 24000), 24000)
    assert start(10) == {"pair_0003_output.wav"} and start(10) == set()
    (kept,) = (copy / ".embedding_cache").glob("known_audio_train_*")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert len(start(10)) == 38 and start(10) == set()
    before, path = WavPairsDataset(copy / "train", counted)[5][0], copy / "train" / "pair_0005_input.wav"
    dates = path.stat()
    with open(path, "r+b") as wav:  # the same size and, by force, the same date
        wav.seek(-2000, os.SEEK_END)
        wav.write(bytes(1000))
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert start(10) == {"pair_0005_input.wav"}
    assert not torch.equal(WavPairsDataset(copy / "train", counted)[5][0], before)


def test_damage_in_the_cache_is_noticed_and_mended(copy, counted, capsys, rng):
    dataset = WavPairsDataset(copy / "train", counted)
    expected = dataset[4][0]
    path = dataset.cache.path(dataset.key(dataset.pairs[4][0]))
    whole = path.read_bytes()
    damages = [whole[:-1], whole[:1000], b"", whole + b"x"]
    for position in [0, 50, 200, len(whole) - 1, *rng.integers(0, len(whole), 6)]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        damages.append(bytes(flipped))
    for damaged in damages:
        path.write_bytes(damaged)
        assert torch.equal(dataset[4][0], expected)
        assert path.read_bytes() == whole
        assert path.name in capsys.readouterr().err
    assert len(counted.sizes) == len(damages)


def test_a_cached_file_is_a_plain_npy(small_dataset, codec):
    path = next((small_dataset / ".embedding_cache" / codec.fingerprint).iterdir())
    array = np.load(path)
    assert array.shape == (128, 75) and array.dtype == np.float32


def test_another_codec_has_another_cache(copy, codec, monkeypatch):
    monkeypatch.setattr(codec, "fingerprint", "another")
    dataset = WavPairsDataset(copy / "train", codec)
    assert dataset.cache.present() == set() and dataset.cache.folder.name == "another"


def test_cache_dir_is_used(copy, codec, tmp_path):
    WavPairsDataset(copy / "val", codec, cache_dir=tmp_path / "elsewhere")[0]
    assert len(list((tmp_path / "elsewhere" / codec.fingerprint).glob("*.npy"))) == 2


@pytest.mark.parametrize(
    "rate, channels, seconds, says",
    [(22050, 1, 1, "22050 Hz"), (24000, 2, 1, "2 chan"), (24000, 1, 0.9, "21600 samp"), (24000, 1, 0, "0 samples")],
)
def test_a_wrong_header_is_named(copy, codec, rate, channels, seconds, says):
    (copy / "val" / "pair_0020_output.wav").unlink()
    write_track(copy / "val" / "pair_0020_output.wav", seconds, 0, rate, channels)
    with pytest.raises(UserError, match=f"pair_0020_output.wav.*{says}"):
        WavPairsDataset(copy / "val", codec)


def test_a_wav_that_could_hold_nan_is_named(copy, codec):
    """Read as 16 bits, NaN is a number like others: whoever puts a float WAV into a dataset has to hear of it."""
    path = copy / "val" / "pair_0020_output.wav"
    path.unlink()
    soundfile.write(path, np.full(24000, np.nan, np.float32), 24000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"pair_0020_output\.wav: FLOAT, must be 16-bit PCM"):
        prepare_cache([WavPairsDataset(copy / "val", codec)])
    with pytest.raises(UserError, match=r"pair_0020_output\.wav: FLOAT, must be 16-bit PCM"):
        WavPairsDataset(copy / "val", codec, use_cache=False)[1]


def test_half_a_pair_is_named(copy, codec):
    (copy / "val" / "pair_0020_output.wav").unlink()
    with pytest.raises(UserError, match=r"pair_0020_output\.wav: missing"):
        WavPairsDataset(copy / "val", codec)
    says = "pair_0020_output.wav: missing"
    one_line_error("train_simple_ddp.py", "--dataset_dir", copy, "--encodec_weights", "untrained", says=says)


def test_a_file_that_is_no_wav_is_named(copy, codec):
    (copy / "val" / "pair_0020_output.wav").write_text("hello")
    with pytest.raises(UserError, match=r"pair_0020_output\.wav: not a readable WAV"):
        WavPairsDataset(copy / "val", codec)


def test_an_embedding_that_is_not_finite_names_its_file(copy, codec, monkeypatch):
    shutil.rmtree(copy / ".embedding_cache")
    monkeypatch.setattr(codec, "encode", lambda waveforms: torch.full((len(waveforms), 128, 75), torch.nan))
    with pytest.raises(UserError, match=r"pair_\d+_\w+\.wav: its embedding is not finite"):
        prepare_cache([WavPairsDataset(copy / "val", codec)])
    assert WavPairsDataset(copy / "val", codec).cache.present() == set()


def test_the_cache_never_shows_half_a_file(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path, (128, 75))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "killed")))
    with pytest.raises(OSError, match=r"killed.*a\.npy"):
        cache.write("a", np.zeros((128, 75)))
    assert list(tmp_path.iterdir()) == []
