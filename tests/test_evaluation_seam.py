"""Targets are taken in mid-stream, so that a right continuation meets the song without a seam."""

import numpy as np
import pytest
import torch

from audio.segments import write_wav
from dataset.pairs import PairRow, write_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from generate_continuation import decode_joined

RATE, SECONDS = 24000, 2
SEAM = RATE * SECONDS


@pytest.fixture(scope="module")
def song():
    """Four seconds of a chord over noise, int16."""
    rng, time = np.random.default_rng(0), np.arange(2 * SEAM) / RATE
    chord = sum(np.sin(2 * np.pi * f * time) for f in (196, 247, 294)) * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    return np.round(3000 * chord + 500 * rng.normal(size=len(time))).astype(np.int16)


@pytest.fixture(scope="module")
def dataset(song, tmp_path_factory, codec):
    folder = tmp_path_factory.mktemp("seam")
    row = PairRow("pair_0000", "val", "song.wav", 0)
    (folder / "val").mkdir()
    for name, segment in zip(row.files, song.reshape(2, -1), strict=True):
        write_wav(folder / name, segment, RATE)
    write_metadata(folder / "metadata.txt", {"segment_duration": str(SECONDS)}, {}, [], [row])
    return WavPairsDataset(folder / "val", codec)


def encode(codec, samples: np.ndarray) -> torch.Tensor:
    """[1, 128, T] of int16 samples."""
    return codec.encode(torch.from_numpy(samples.astype(np.float32) / 32768).view(1, 1, -1))


@pytest.mark.parametrize("cached", [False, True])
def test_a_target_is_the_second_half_of_its_pair(dataset, codec, song, cached):
    if cached:
        prepare_cache([dataset])
    whole = encode(codec, song)[0]
    for embedding, half in zip(dataset[0], whole.split(75 * SECONDS, dim=1), strict=True):
        torch.testing.assert_close(embedding, half, atol=1e-4, rtol=0)


def test_an_oracles_continuation_has_no_seam(dataset, codec, song):
    source, target = dataset[0]
    joined, seam = decode_joined(codec, source[None], target[None])
    assert seam == SEAM
    whole = codec.decode(encode(codec, song)).flatten()
    near = slice(seam - 2400, seam + 2400)
    loudness = float(whole[near].square().mean().sqrt())
    apart = float((joined.flatten() - whole)[near].abs().max())
    assert apart < 0.001 * loudness  # the song itself, through the codec
    # Encoded alone, the codec's start-up would be heard there.
    alone, _ = decode_joined(codec, source[None], encode(codec, song[SEAM:]))
    assert float((alone.flatten() - whole)[near].abs().max()) > 100 * apart
    steps = joined.flatten().diff().abs()
    assert steps[seam - 1] <= steps[seam - 2400 : seam + 2400].max()
