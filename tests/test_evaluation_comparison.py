"""The comparison: what an oracle and a constant must score, in embeddings and sound, and which pairs are chosen."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import oracle

from common.errors import UserError
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from evaluation.baselines import fit
from evaluation.comparison import (
    CONTINUATIONS,
    Comparison,
    Model,
    other_tracks,
    spread_over_tracks,
)
from evaluation.diagnosis import diagnose
from evaluation.measures import TrackErrors, one_thread
from evaluation.results import gather_evidence, seconds, table_rows, to_json_types
from evaluation.verdict import verdict

TRACKS = ["a", "a", "b", "b", "c", "c"]
SOUND_COLUMNS = ("log_mel_distance", "chroma_cosine")


def silent(done, total, what):
    pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, codec):
    folder = write_dataset(tmp_path_factory.mktemp("dataset"), [(track, "val") for track in "abc"], pairs=2)
    dataset = WavPairsDataset(folder / "val", codec)
    with one_thread():
        prepare_cache([dataset])
        yield dataset


def comparison_of(dataset, predict, tracks=TRACKS):
    every = torch.cat([torch.stack(dataset[i]) for i in range(len(dataset))])
    mean = every.mean(dim=(0, 2))[:, None] + 0.1  # as if the training split were slightly different
    fitted = fit(dataset, TRACKS, mean, every.std(dim=(0, 2))[:, None], silent)
    return Comparison(Model(predict, lambda x: mean + 0.3 * (x - mean)), dataset, tracks, fitted, seed=1)


def results_of(comparison, sound_pairs=range(0, 6, 2)):
    errors, sound = comparison.measure(list(sound_pairs), silent)
    by_tracks = TrackErrors(errors, comparison.tracks)
    elements = 128 * comparison.dataset.num_frames
    rows = table_rows(errors, by_tracks, sound, comparison.tracks, elements)
    return rows, seconds(errors, by_tracks, comparison.dataset.num_frames, 128, 75), by_tracks, sound


def oracle_of(dataset):
    return oracle(SimpleNamespace(items=[dataset[i] for i in range(len(dataset))]))


@pytest.fixture(scope="module")
def oracles(dataset):
    return results_of(comparison_of(dataset, oracle_of(dataset)))


def test_an_oracle_is_perfect_and_sounds_like_the_ceiling(oracles):
    rows, per_second, by_tracks, _ = oracles
    assert rows["model"]["mse"] == 0
    assert rows["model"]["skill"] == rows["model"]["track_skill"] == 1
    assert rows["model"]["deviation_ratio"] == 1
    assert rows["model"]["calibration_slope"] == pytest.approx(1)
    assert (per_second["model"]["skill"] == 1).all()
    for name, ceiling in (("model", "ceiling"), ("model_quantized", "ceiling_quantized")):
        for column in SOUND_COLUMNS:
            assert rows[name][column] == pytest.approx(rows[ceiling][column], rel=1e-6)
            assert math.isfinite(rows[name][column])
    assert rows["ceiling_quantized"]["mse"] == rows["model_quantized"]["mse"] > 0
    assert gather_evidence(by_tracks, 0).tracks == 3


def test_the_training_mean_has_skill_exactly_0(oracles):
    rows, per_second, _, _ = oracles
    assert rows["training_mean"]["skill"] == rows["training_mean"]["track_skill"] == 0
    assert (per_second["training_mean"]["skill"] == 0).all()
    assert rows["training_mean"]["deviation_ratio"] < 1e-6
    assert rows["training_mean"]["calibration_slope"] is None
    assert "log_mel_distance" not in rows["input_mean"]


def test_a_single_track_has_no_other(dataset):
    rows, _, by_tracks, _ = results_of(comparison_of(dataset, lambda x: x, ["a"] * 6), [4])
    assert rows["other_track"] == {"label": CONTINUATIONS["other_track"], "note": "needs a second validation track"}
    assert rows["model"]["mse"] == rows["repeat_input"]["mse"]
    assert rows["model"]["log_mel_distance"] == pytest.approx(rows["repeat_input"]["log_mel_distance"], rel=1e-6)
    evidence = gather_evidence(by_tracks, 0)
    assert evidence.input_cost is None
    assert not any("nan" in verdict(evidence)[part] for part in ("sentence", "transformer"))
    assert "no other track" in diagnose(by_tracks)["sentences"][1]
    assert to_json_types(rows)["model"]["skill_interval"] == [None, None]


def test_a_broken_model_is_named(dataset):
    with pytest.raises(UserError, match="prediction for pair_0000 is not finite"):
        comparison_of(dataset, lambda x: x * math.nan).measure([], silent)


# ------------------------------------------------------------------ choices

track_lists = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40)


@given(track_lists, st.integers(0, 100))
@settings(deadline=None)
def test_other_tracks_differ_and_are_used_evenly(tracks, seed):
    other = other_tracks(tracks, seed)
    if len(set(tracks)) == 1:
        assert other is None
        return
    assert all(tracks[i] != tracks[j] for i, j in enumerate(other))
    if max(Counter(tracks).values()) <= len(tracks) / 2:
        assert sorted(other) == list(range(len(tracks)))
    assert other == other_tracks(tracks, seed)


def test_other_tracks_are_not_aligned_bar_by_bar():
    tracks = [track for track in "abcdefghijkl" for _ in range(6)]
    other = other_tracks(tracks, seed=0)
    in_step = [sum(other[i] % 6 == i % 6 for i in range(k, k + 6)) for k in range(0, len(tracks), 6)]
    assert max(in_step) < 6 and sum(in_step) < 24, in_step  # 12 are expected, with a deviation of 3


@given(track_lists, st.integers(0, 50), st.integers(0, 100), st.booleans())
@settings(deadline=None)
def test_choices_are_spread(tracks, limit, seed, in_runs):
    chosen = spread_over_tracks(tracks, limit, seed, in_runs)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(tracks))
    taken, there = Counter(tracks[i] for i in chosen), Counter(tracks)
    for track in there:  # a track gives less than another only if it has no more
        assert taken[track] == there[track] or all(taken[track] + 1 >= taken[o] for o in there)
