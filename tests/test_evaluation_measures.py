"""The measures behind the verdict: intervals, Fréchet distance, sound distances, the rule."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import measures
from evaluation.measures import FrameSet, bootstrap_ratio, fad_score, frechet_distance, verdict

# ------------------------------------------------------------------ intervals


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 13, 30, 199, 1000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_student_quantile_is_scipys(df, level):
    assert measures.student_t_quantile(level, df) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, df), rel=1e-7)


@pytest.mark.parametrize(("tracks", "resamples", "least"), [(5, 20_000, 0.86), (10, 4000, 0.9), (25, 2000, 0.9)])
def test_interval_covers_a_known_truth_at_its_rate(tracks, resamples, least, monkeypatch):
    """Tracks of unequal size, whose pairs share their track's error: 95% of the intervals must hold the truth."""
    monkeypatch.setattr(measures, "RESAMPLES", resamples)  # the fewer the tail needs, the quicker
    rng, trials, truth, covered = np.random.default_rng(tracks), 250, 2.0, 0
    for trial in range(trials):
        pairs = rng.integers(3, 6, tracks).astype(float)
        level = truth + rng.normal(0, 0.5, tracks)
        low, high = bootstrap_ratio(pairs * level, pairs, trial)
        covered += low <= truth <= high
    # Four standard deviations of 250 trials are 5.5%. Plain percentiles cover 84% for five tracks of equal size.
    assert least <= covered / trials <= 0.995


def test_no_interval_from_few_tracks():
    ones = np.ones((measures.MIN_TRACKS - 1, 3))
    assert bootstrap_ratio(ones, ones, 0) is None
    # The smallest number of tracks is the smallest whose rarest resample is rarer than the tail.
    assert measures.interval_tail(measures.MIN_TRACKS) > measures.MIN_TRACKS**-measures.MIN_TRACKS
    fewer = measures.MIN_TRACKS - 1
    assert measures.interval_tail(fewer) < fewer**-fewer


def test_interval_has_the_shape_of_a_row_and_follows_the_seed():
    rng = np.random.default_rng(0)
    errors, counts = rng.random((9, 16)), np.ones((9, 16))
    first, again, other = (bootstrap_ratio(errors, counts, seed) for seed in (1, 1, 2))
    assert first[0].shape == first[1].shape == (16,)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first[0] < errors.mean(axis=0)).all()
    assert (errors.mean(axis=0) < first[1]).all()


# ------------------------------------------------------------------ in encoded space


@given(frames=st.integers(1, 40), frame_rate=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_errors_per_second_add_up_to_the_mse(frames, frame_rate):
    generator = torch.Generator().manual_seed(frames * 100 + frame_rate)
    first, second = torch.randn(2, 3, 8, frames, generator=generator).unbind()
    errors = measures.squared_error_per_second(first, second, frame_rate)
    elements = measures.elements_per_second(frames, 8, frame_rate)
    assert errors.shape == (3, len(elements))
    mse = torch.nn.functional.mse_loss(first.double(), second.double())
    assert float(errors.sum() / elements.sum() / 3) == pytest.approx(float(mse), rel=1e-12)
    last = (first.double() - second.double())[:, :, (len(elements) - 1) * frame_rate :].square()
    assert float(errors[:, -1].sum() / elements[-1] / 3) == pytest.approx(float(last.mean()), rel=1e-9)


def test_deviation_is_linear_and_blind_to_the_mean():
    embeddings = torch.randn(2, 128, 50)
    once = measures.deviation(embeddings)
    torch.testing.assert_close(measures.deviation(3 * embeddings + torch.randn(2, 128, 1)), 3 * once)


# ------------------------------------------------------------------ Fréchet distance


def distance(*moments):
    return frechet_distance(*map(torch.from_numpy, moments))


def random_covariance(rng, dim, rank):
    root = rng.normal(size=(dim, rank))
    return root @ root.T / rank


def test_distance_of_known_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 128)), rng.uniform(0.1, 4, (2, 128))
    basis = np.linalg.qr(rng.normal(size=(128, 128)))[0]
    first, second = ((basis * d**2) @ basis.T for d in deviations)  # they commute: (s1 - s2)² along each axis
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert distance(means[0], first, means[1], second) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_that_of_scipys_sqrtm(seed):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, 32))
    first, second = random_covariance(rng, 32, 64), random_covariance(rng, 32, 64)
    root = scipy.linalg.sqrtm(first @ second)
    assert abs(root.imag).max() < 1e-6
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(first + second - 2 * root.real)
    assert distance(means[0], first, means[1], second) == pytest.approx(expected, rel=1e-8)
    assert distance(means[1], second, means[0], first) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rank", [1, 7, 128])
def test_distance_of_a_set_to_itself_is_zero_even_if_singular(rank):
    covariance = random_covariance(np.random.default_rng(rank), 128, rank)
    assert abs(distance(np.ones(128), covariance, np.ones(128), covariance)) < 1e-9 * np.trace(covariance)


def gaussian_frames(clips, frames, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    frame_set = FrameSet(clips, seed)
    embeddings = torch.randn(clips, 128, frames, generator=generator) + shift
    for embedding in embeddings:
        frame_set.add(embedding)
    return frame_set, embeddings


def test_moments_are_those_of_all_frames():
    frame_set, embeddings = gaussian_frames(7, 50, 0, shift=100.0)  # far from 0, where naive sums cancel
    frames = embeddings.transpose(1, 2).reshape(-1, 128).double().numpy()
    np.testing.assert_allclose(frame_set.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(frame_set.covariance, np.cov(frames, rowvar=False), rtol=1e-9, atol=1e-12)


def test_fad_of_a_set_with_itself():
    frame_set, _ = gaussian_frames(4, 600, 1)
    assert abs(fad_score(frame_set, frame_set).fad) < 1e-9


def test_extrapolation_takes_out_the_bias_of_a_finite_sample():
    """Two samples of one distribution, 2400 frames against very many: FAD is far from its true 0, FAD-infinity near."""
    reference = FrameSet(1, 0)
    reference.add(torch.zeros(128, 200))
    reference.mean, reference.count = torch.zeros(128).double(), 10_000
    reference._scatter = torch.eye(128).double() * 9999
    score = fad_score(reference, gaussian_frames(4, 600, 2)[0])
    assert score.fad > 1.5
    assert abs(score.fad_inf) < 0.15 * score.fad
    assert score.r2 > 0.98
    assert score.frames == 2400


def test_shift_of_the_mean_is_its_square():
    reference, _ = gaussian_frames(8, 1200, 3)
    score = fad_score(reference, gaussian_frames(8, 1200, 4, shift=0.5)[0])
    assert score.fad == pytest.approx(128 * 0.25, rel=0.05)


def test_too_few_frames_are_said_not_computed():
    reference, _ = gaussian_frames(4, 600, 1)
    few = fad_score(reference, gaussian_frames(2, 64, 1)[0])
    assert few.fad is None
    assert few.fad_inf is None
    assert "128 frames are too few for a covariance" in few.note
    assert fad_score(gaussian_frames(2, 64, 1)[0], reference).fad is None
    some = fad_score(reference, gaussian_frames(2, 65, 1)[0])
    assert some.fad > 0
    assert some.fad_inf is None
    assert "too few to extrapolate" in some.note


def test_sample_is_bounded_and_even(monkeypatch):
    monkeypatch.setattr(measures, "FAD_INF_MAX_FRAMES", 100)
    frame_set, _ = gaussian_frames(7, 50, 0)
    assert frame_set.sample.shape == (7 * 15, 128)
    assert frame_set.count == 350


# ------------------------------------------------------------------ sound


@pytest.fixture(scope="module")
def features():
    return measures.SoundFeatures(24000, torch.device("cpu"))


def tone(frequency, seconds=2.0):
    return torch.sin(2 * math.pi * frequency * torch.arange(int(24000 * seconds)) / 24000)[None]


def test_doubling_the_amplitude_is_a_known_log_mel_distance(features):
    noise = torch.randn(1, 48000, generator=torch.Generator().manual_seed(0))
    first, second = features.log_mel(noise)[0], features.log_mel(2 * noise)[0]
    assert first.shape == (64, 187)
    assert measures.log_mel_distance(first, second) == pytest.approx(math.log10(4), rel=1e-4)
    assert measures.log_mel_distance(first, first) == 0
    silence = features.log_mel(torch.zeros(1, 48000))
    torch.testing.assert_close(silence, torch.full_like(silence, -5.0))


@pytest.mark.parametrize(("frequency", "pitch_class"), [(440, 9), (261.63, 0), (1046.5, 0), (739.99, 6), (98, 7)])
def test_chroma_names_the_note(features, frequency, pitch_class):
    assert int(features.chroma(tone(frequency))[0].sum(dim=1).argmax()) == pitch_class


def test_chroma_cosine_is_1_an_octave_away_and_0_a_tritone_away(features):
    low, high, tritone = (features.chroma(tone(frequency))[0] for frequency in (440, 880, 622.25))
    assert measures.chroma_cosine(low, high) > 0.98
    assert measures.chroma_cosine(low, tritone) < 0.05
    assert measures.chroma_cosine(3 * low, low) == pytest.approx(1)


def test_chroma_of_silence_is_left_out(features):
    sound, silence = features.chroma(tone(440))[0], torch.zeros(12, 47)
    assert math.isnan(measures.chroma_cosine(sound, silence))
    half = torch.cat([torch.zeros(12, 20), sound[:, 20:]], dim=1)
    assert measures.chroma_cosine(sound, half) == pytest.approx(1)
    assert measures.chroma_cosine(silence, sound) == 0


# ------------------------------------------------------------------ the verdict


@pytest.mark.parametrize(
    ("skill", "interval", "outcome", "opening"),
    [
        (0.12, (0.05, 0.2), "better", "Better than predicting the average: its error is 12.0% below"),
        (0.12, (-0.05, 0.2), "not_distinguishable", "Not distinguishable"),
        (-0.3, (-0.5, -0.1), "worse", "Worse than predicting the average: its error is 30.0% above"),
        (0.5, None, "undecided", "Undecided: 2 validation tracks give no meaningful interval"),
        (0.0, (0.0, 0.0), "not_distinguishable", "Not distinguishable"),
    ],
)
def test_verdict_follows_the_rule(skill, interval, outcome, opening):
    found = verdict(skill, interval, 0.5, 2 if interval is None else 20)
    assert found["outcome"] == outcome
    assert found["sentence"].startswith(opening)
    assert "alive" in found["sentence"]


def test_collapse_is_called_collapse():
    assert verdict(0.1, (0.05, 0.2), 0.0999, 20)["alive"] is False
    assert "; collapsed: its predictions vary over time 0.05 times" in verdict(0.1, None, 0.05, 1)["sentence"]
    assert verdict(0.1, (0.05, 0.2), 0.1, 20)["alive"] is True


def test_a_better_baseline_is_named():
    assert "But a has a lower error." in verdict(0.1, (0.05, 0.2), 0.5, 20, ("a",))["sentence"]
    assert "But a and b have a lower error." in verdict(0.1, None, 0.5, 2, ("a", "b"))["sentence"]
    assert "But" not in verdict(0.1, (0.05, 0.2), 0.5, 20)["sentence"]
