"""The intervals over tracks: how often they contain a known truth, and how often they favor a worthless model."""

import numpy as np
import pytest

from evaluation.measures import interval_of_mean, ratio_over_tracks

TRIALS = 4000


def normal(rng, tracks):
    return 0.3 * rng.normal(size=(tracks, TRIALS))


def loud_is_hard(rng, tracks):
    """Loud tracks are the hard ones: chance has up to five times the effect there."""
    loudness = rng.normal(size=(tracks, TRIALS))
    return 0.3 * rng.normal(size=(tracks, TRIALS)) * np.minimum(np.exp(0.7 * loudness), 5)


def one_in_ten_goes_wrong(rng, tracks):
    """A long tail of failures: the case that Student's t alone gets wrong."""
    return 0.3 * (1 - rng.exponential(size=(tracks, TRIALS)))


# Three standard deviations in 4000 trials: 0.7% for a rate of 2.5%, and 1.0% for a coverage of 95%.
@pytest.mark.parametrize("tracks", [10, 40])
@pytest.mark.parametrize("world", [normal, loud_is_hard])
def test_a_worthless_model_is_seldom_called_better(world, tracks):
    skills = world(np.random.default_rng(tracks), tracks)
    low, high = interval_of_mean(skills)
    assert (low > 0).mean() <= 0.03
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


def test_a_long_tail_of_failures_needs_the_skewness_correction():
    for tracks, most in ((10, 0.065), (20, 0.05), (40, 0.04)):
        skills = one_in_ten_goes_wrong(np.random.default_rng(tracks), tracks)
        low, high = interval_of_mean(skills)
        assert (low > 0).mean() <= most
        assert ((low <= 0) & (high >= 0)).mean() >= 0.93


def test_one_odd_track_does_not_hide_what_the_others_show():
    nine = np.linspace(0.37, 0.43, 9)
    for odd, is_seen in ((0.0, True), (-0.2, True), (-1.5, False)):
        low, _ = interval_of_mean(np.array([*nine, odd]))
        assert (low > 0) == is_seen, (odd, low)
    rng = np.random.default_rng(0)
    skills = np.where(rng.random((10, TRIALS)) < 0.1, 0.0, 0.4) + 0.05 * rng.normal(size=(10, TRIALS))
    assert (interval_of_mean(skills)[0] > 0.01).mean() > 0.95


@pytest.mark.parametrize("tracks", [10, 25])
def test_the_interval_of_a_ratio_holds_the_truth(tracks):
    """The MSE over tracks with unequal numbers of pairs. The pairs of a track share its error."""
    rng, trials, truth = np.random.default_rng(tracks), 4000, 2.0
    pairs = rng.integers(2, 6, (tracks, trials)).astype(float)
    found = ratio_over_tracks(pairs * (truth + rng.normal(0, 0.5, (tracks, trials))), pairs)
    assert 0.93 <= ((found.low <= truth) & (found.high >= truth)).mean() <= 0.97


def test_an_interval_is_mirrored_scaled_and_shifted_with_its_values(rng):
    values = rng.exponential(size=(11, 200))
    low, high = interval_of_mean(values)
    assert (low < values.mean(axis=0)).all() and (values.mean(axis=0) < high).all()
    mirrored = interval_of_mean(-values)
    np.testing.assert_allclose(mirrored, (-high, -low))
    np.testing.assert_allclose(interval_of_mean(2 * values + 5), (2 * low + 5, 2 * high + 5))


def test_no_interval_without_spread_or_tracks():
    assert np.isnan(interval_of_mean(np.ones((1, 3)))).all()
    np.testing.assert_array_equal(interval_of_mean(np.ones((4, 3))), np.ones((2, 3)))
    low, high = interval_of_mean(np.array([[0.0], [1.0]]))
    assert low < -5 and high > 6  # two tracks show almost nothing
    assert np.isnan(ratio_over_tracks(np.zeros((5, 2)), np.zeros((5, 2))).value).all()
