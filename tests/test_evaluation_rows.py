"""The comparison: what an oracle, a constant and a batch size must and must not change."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audio.frozen_encodec import load_frozen_encodec
from audio.segments import write_wav
from common.errors import UserError
from dataset_wav_pairs import PairEmbeddings, WavPairsDataset, prepare_cache
from evaluation import measures
from evaluation.measures import verdict
from evaluation.rows import ROWS, Evaluation, other_tracks, spread_over_tracks, summarise

RATE = 24000
SOUND_COLUMNS = ("fad", "fad_inf", "log_mel_distance", "chroma_cosine", "mse_reencoded")


def write_track(folder, first_pair, pairs, rng):
    """Consecutive seconds of one synthetic track, as pairs: each output is the next pair's input."""
    time = np.arange((pairs + 1) * RATE) / RATE
    notes = sum(np.sin(2 * np.pi * f * time) for f in rng.uniform(100, 1500, 3)) * (1 + np.sin(2 * np.pi * 3 * time))
    track = np.round(2000 * notes + 200 * rng.normal(size=len(time))).astype(np.int16)
    segments = track.reshape(pairs + 1, -1)
    for k in range(pairs):
        write_wav(folder / f"pair_{first_pair + k:04d}_input.wav", segments[k], RATE)
        write_wav(folder / f"pair_{first_pair + k:04d}_output.wav", segments[k + 1], RATE)


@pytest.fixture(scope="module", autouse=True)
def small_and_quick():
    """9 seconds have 675 frames: let FAD-infinity be computed from so few. One thread is the quickest for so little."""
    with pytest.MonkeyPatch.context() as monkeypatch, measures.one_thread():
        monkeypatch.setattr(measures, "FAD_INF_MIN_FRAMES", 200)
        yield


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("dataset") / "val", np.random.default_rng(0)
    folder.mkdir()
    for track in range(3):
        write_track(folder, 3 * track, 3, rng)
    dataset = WavPairsDataset(folder, load_frozen_encodec("untrained"))
    prepare_cache([dataset])
    return PairEmbeddings(dataset, torch.device("cpu"))


TRACKS = ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def evaluation_of(embeddings, predict, batch_size=4, tracks=TRACKS):
    every = torch.cat([torch.stack(embeddings.dataset[i]) for i in range(len(embeddings.dataset))])
    mean = every.mean(dim=(0, 2))[:, None] + 0.1  # of a training split that differs a little
    return Evaluation(predict, mean, embeddings, tracks, seed=1, batch_size=batch_size)


def rows_of(evaluation, sound_pairs=range(9)):
    dataset = evaluation.dataset
    measured, sound = evaluation.measure_embeddings(), evaluation.measure_sound(list(sound_pairs))
    return summarise(measured, sound, evaluation.tracks, dataset.num_frames, 128, 75, seed=1)


def oracle(embeddings):
    """A model that knows every answer."""
    known = {}
    for index in range(len(embeddings.dataset)):
        before, after = embeddings.dataset[index]
        known[before.numpy().tobytes()] = after
    return lambda x: known[x[0].numpy().tobytes()][None]


@pytest.fixture(scope="module")
def oracle_rows(embeddings):
    return rows_of(evaluation_of(embeddings, oracle(embeddings)))


def test_oracle_is_perfect_and_elsewhere_the_ceiling(oracle_rows):
    rows, per_second = oracle_rows
    assert rows["model"]["mse"] == 0
    assert rows["model"]["skill"] == 1
    assert rows["model"]["deviation_ratio"] == 1
    assert (per_second["model"]["skill"] == 1).all()
    for column in SOUND_COLUMNS:
        assert rows["model"][column] == pytest.approx(rows["ceiling"][column], rel=1e-6)  # float32 rounding
        assert math.isfinite(rows["model"][column])
    assert rows["ceiling"]["mse_reencoded"] > 0


def test_training_mean_has_skill_exactly_0(oracle_rows):
    rows, per_second = oracle_rows
    assert rows["training_mean"]["skill"] == 0
    assert (per_second["training_mean"]["skill"] == 0).all()
    assert rows["training_mean"]["deviation_ratio"] < 1e-6
    assert rows["input_mean"].get("fad") is None


def test_rows_differ_as_they_must(oracle_rows):
    rows, _ = oracle_rows
    assert list(rows) == list(ROWS)
    assert rows["other_track"]["fad"] == pytest.approx(rows["ceiling"]["fad"], rel=1e-9)  # the same set of sounds
    # An untrained codec's sound is noise, at about the same distance from everything: nothing to be said of that.
    assert all(rows["ceiling"]["mse"] < row["mse"] for name, row in rows.items() if name not in ("model", "ceiling"))
    assert rows["other_track"]["mse"] != rows["repeat_input"]["mse"]
    assert rows["repeat_input"]["deviation_ratio"] == pytest.approx(1, abs=0.2)
    assert rows["model_quantized"]["mse"] > 0
    assert all(row.get("mse_interval") is None for row in rows.values())  # three tracks


def test_collapsed_model_is_called_collapsed(embeddings):
    evaluation = evaluation_of(embeddings, lambda x: x.mean(dim=2, keepdim=True).expand_as(x))
    rows, _ = rows_of(evaluation, [0])
    assert rows["model"]["deviation_ratio"] < 1e-6
    assert rows["model"]["skill"] == pytest.approx(rows["input_mean"]["skill"], rel=1e-6)
    found = verdict(rows["model"]["skill"], None, rows["model"]["deviation_ratio"], 3)
    assert (found["outcome"], found["alive"]) == ("undecided", False)


def test_batch_size_changes_nothing(embeddings):
    weights = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)) / 12

    def predict(x):
        return torch.einsum("ij,bjt->bit", weights, x)

    rows = [rows_of(evaluation_of(embeddings, predict, size), [0, 1, 3, 4, 6])[0] for size in (1, 4)]
    compared = 0
    for name in ROWS:
        for column in ("mse", "skill", "deviation_ratio", *SOUND_COLUMNS):
            first, second = (r[name].get(column) for r in rows)
            if first is not None:
                assert second == pytest.approx(first, rel=1e-6, abs=1e-9), (name, column)
                compared += 1
    assert compared == 7 * 3 + 6 * 3 + 5  # the training mean, one second, has too few frames for FAD


def test_never_more_than_a_batch_of_audio(embeddings, monkeypatch):
    codec = embeddings.dataset.codec
    sizes = []
    for name in ("decode", "encode"):
        plain = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda x, plain=plain: (sizes.append(len(x)), plain(x))[1])
    evaluation = evaluation_of(embeddings, oracle(embeddings), batch_size=2)
    said = []
    evaluation.told = lambda done, total, what: said.append((done, total))
    evaluation.measure_sound(list(range(9)))
    assert max(sizes) == 2
    assert said[-1] == (12 + 18, 12 + 18)  # each of the 12 segments once, and 9 pairs' two predictions
    assert sum(sizes) == 2 * (12 + 18 + 1)  # and the training mean


def test_single_track_has_no_other(embeddings):
    rows, _ = rows_of(evaluation_of(embeddings, lambda x: x, tracks=["a"] * 9), [4, 5])
    assert rows["other_track"] == {"label": ROWS["other_track"], "note": "needs a second validation track"}
    assert rows["model"]["mse"] == rows["repeat_input"]["mse"]
    assert rows["model"]["log_mel_distance"] == pytest.approx(rows["repeat_input"]["log_mel_distance"], rel=1e-6)


def test_broken_model_is_named(embeddings):
    with pytest.raises(UserError, match="prediction for pair_0000 is not finite"):
        evaluation_of(embeddings, lambda x: x * math.nan).measure_embeddings()


# ------------------------------------------------------------------ choices

track_lists = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40)


@given(track_lists, st.integers(0, 100))
@settings(deadline=None)
def test_other_tracks_are_other_and_used_evenly(tracks, seed):
    other = other_tracks(tracks, seed)
    if len(set(tracks)) == 1:
        assert other is None
        return
    assert all(tracks[i] != tracks[j] for i, j in enumerate(other))
    if max(Counter(tracks).values()) <= len(tracks) / 2:
        assert sorted(other) == list(range(len(tracks)))
    assert other == other_tracks(tracks, seed)


@given(track_lists, st.integers(0, 50), st.integers(0, 100), st.booleans())
@settings(deadline=None)
def test_choices_are_spread(tracks, limit, seed, in_runs):
    chosen = spread_over_tracks(tracks, limit, seed, in_runs)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(tracks))
    taken, there = Counter(tracks[i] for i in chosen), Counter(tracks)
    for track in there:  # nobody has less than another has, unless it has no more to give
        assert taken[track] == there[track] or all(taken[track] + 1 >= taken[o] for o in there)


def test_runs_follow_each_other():
    chosen = spread_over_tracks(["a"] * 10 + ["b"] * 10, 8, 3, in_runs=True)
    assert [b - a for a, b in itertools.pairwise(chosen)].count(1) >= 6
