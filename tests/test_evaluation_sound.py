"""The measures on sound, with a codec that decodes music: the demo's, on the demo's songs, which it never heard."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import main_of, run_script
from planted import oracle

from audio.frozen_encodec import FrozenEncodec, load_frozen_encodec
from dataset.pairs import read_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from evaluation.baselines import fit
from evaluation.comparison import Comparison, Model
from evaluation.measures import TrackErrors
from evaluation.results import table_rows
from generate_continuation import decode_joined

pytestmark = pytest.mark.slow
SEGMENT_S = 4


@pytest.fixture(scope="module")
def demo_codec() -> FrozenEncodec:
    return load_frozen_encodec("demo")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, demo_codec) -> WavPairsDataset:
    """Pairs of several songs; riffs of three seconds, so that no seam between segments of four is also a riff's."""
    folder = tmp_path_factory.mktemp("demo")
    make = ("--output_dir", folder / "music", "--num_tracks", 10, "--riffs", 7, "--riff_s", 3, "--seed", 1234)
    run_script("demo/make_music.py", *make)
    create = ("--input_dir", folder / "music", "--output_dir", folder / "pairs", "--segment_duration", SEGMENT_S)
    assert main_of("create_dataset_pairs_wav.py", *create, "--max_pairs", 40, "--val_pairs", 32) == 0
    dataset = WavPairsDataset(folder / "pairs" / "val", demo_codec)
    prepare_cache([dataset])
    return dataset


@pytest.fixture(scope="module")
def tracks(dataset) -> list[str]:
    rows = {row.name: row.source for row in read_metadata(dataset.pairs[0][0].parents[1] / "metadata.txt").pairs}
    return [rows[dataset.name(index)] for index in range(len(dataset))]


@pytest.fixture(scope="module")
def rows(dataset, tracks) -> dict[str, dict]:
    """The table of the evaluation for an oracle."""
    every = torch.cat([torch.stack(dataset[i]) for i in range(len(dataset))])
    mean, deviation = every.mean(dim=(0, 2))[:, None], every.std(dim=(0, 2))[:, None]
    predict = oracle(SimpleNamespace(items=[dataset[i] for i in range(len(dataset))]))
    fitted = fit(dataset, tracks, mean, deviation, lambda *_: None)
    comparison = Comparison(Model(predict, lambda x: mean + 0.3 * (x - mean)), dataset, tracks, fitted, seed=1)
    errors, sound = comparison.measure(list(range(len(dataset))), lambda *_: None)
    elements = 128 * dataset.num_frames
    return table_rows(errors, TrackErrors(errors, tracks), sound, tracks, elements)


def test_the_codec_is_far_nearer_to_the_truth_than_another_track(rows):
    ceiling, quantized, other = (rows[name] for name in ("ceiling", "ceiling_quantized", "other_track"))
    assert ceiling["log_mel_distance"] <= other["log_mel_distance"] / 2
    assert ceiling["chroma_cosine"] >= 0.85
    assert ceiling["log_mel_distance"] < quantized["log_mel_distance"] < other["log_mel_distance"]
    assert ceiling["chroma_cosine"] > quantized["chroma_cosine"] > other["chroma_cosine"]


def jumps(waveform: torch.Tensor, at: int) -> tuple[float, float]:
    """How a waveform [samples] moves at a sample, as shares of the most within a second on either side.

    The step from the sample before, and the spectral flux: the sum of what the bins of a 512-point spectrum gain.
    """
    near = slice(at - 24000, at + 24000)
    steps = waveform.diff().abs()
    around = torch.cat([steps[near.start : at - 2], steps[at + 1 : near.stop]])
    spectrum = torch.stft(waveform[near], 512, 128, window=torch.hann_window(512), center=False, return_complex=True)
    flux = spectrum.abs().diff(dim=1).clamp_min(0).sum(dim=0)  # of the windows that end at 640, 768, ...
    over_it = slice((24000 - 640) // 128 + 1, 24000 // 128)
    apart = torch.cat([flux[: over_it.start], flux[over_it.stop :]])
    return float(steps[at - 1] / around.max()), float(flux[over_it].max() / apart.max())


def test_the_seam_of_an_oracles_continuation_is_not_audible(dataset, demo_codec):
    joined, apart = [], []
    for index in range(len(dataset)):
        source, target = (embedding[None] for embedding in dataset[index])
        waveform, seam = decode_joined(demo_codec, source, target)
        assert seam == SEGMENT_S * 24000
        joined.append(jumps(waveform.flatten(), seam))
        cut = torch.cat([demo_codec.decode(source), demo_codec.decode(target)], dim=2)
        apart.append(jumps(cut.flatten(), seam))
    steps, flux = np.array(joined).T
    assert steps.max() <= 1 and flux.max() <= 1
    assert max(step for step, _ in apart) > max(1, 2 * steps.max()), "decoded apart, the two would meet in a click"
