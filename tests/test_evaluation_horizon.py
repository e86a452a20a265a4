"""The horizon: how far ahead known processes are predictable, and what must not make a difference."""

import math

import numpy as np
import pytest
import torch

from common.progress import Progress
from evaluation.horizon import Split, draw_horizon, horizon_table, lags_of, measure_curve, measure_horizon

CHANNELS, FRAMES, RATE = 4, 64, 75
QUIET = Progress(is_shown=False)


def split(rng: np.random.Generator, make, tracks: int, pairs: int = 3) -> Split:
    """Pairs of a process: `make(rng)` gives [CHANNELS, 2 FRAMES] for each."""
    items, names = [], []
    for track in range(tracks):
        for _ in range(pairs):
            both = torch.from_numpy(make(rng)).float()
            items.append((both[:, :FRAMES], both[:, FRAMES:]))
            names.append(f"track {track}")
    return Split(items, names)


def autoregressive(rho: float):
    def make(rng: np.random.Generator) -> np.ndarray:
        x = rng.normal(size=(CHANNELS, 2 * FRAMES))
        for t in range(1, x.shape[1]):
            x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
        return 3 + x * np.arange(1, CHANNELS + 1)[:, None]

    return make


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(CHANNELS, 2 * FRAMES))


def periodic(rng: np.random.Generator) -> np.ndarray:
    """A period of four frames, which 8 past frames cover."""
    phase = rng.uniform(0, 2 * np.pi, (CHANNELS, 1))
    return np.sin(np.pi / 2 * np.arange(2 * FRAMES) + phase)


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.98])
def test_an_autoregressive_process_is_predictable_by_its_own_formula(rng, rho):
    """h frames ahead, ρ^2h of the variance is predictable."""
    curve = measure_curve(split(rng, autoregressive(rho), 40), split(rng, autoregressive(rho), 30), QUIET)
    for lag, skill, low, high in zip(lags_of(FRAMES), *curve, strict=True):
        room = 0.03 + (high - low) / 2  # a 95% interval sometimes misses
        assert low - room < rho ** (2 * lag) < high + room, (rho, lag, skill)


def test_white_noise_is_unpredictable_and_a_period_fully_predictable(rng):
    curve = measure_curve(split(rng, noise, 40), split(rng, noise, 30), QUIET)
    assert np.abs(curve.value).max() < 0.02 and (curve.low < 0.01).all()
    assert measure_curve(split(rng, periodic, 20), split(rng, periodic, 10), QUIET).value.min() > 0.999


def test_a_pattern_only_in_the_validation_split_does_not_raise_the_skill(rng):
    """Each validation track repeats a pattern of its own, and no training track does.

    With one pattern for all tracks, chance alone gave up to 0.05 in 60 seeds, and here 0.014.
    """
    patterns = iter(rng.normal(size=(20, CHANNELS, 8)).repeat(3, axis=0))
    planted = split(rng, lambda _: np.tile(next(patterns), 2 * FRAMES // 8), 20)
    assert measure_curve(split(rng, noise, 40), planted, QUIET).value.max() < 0.02


def test_neither_the_order_of_pairs_nor_the_number_of_threads_matters(rng):
    train, val = split(rng, autoregressive(0.9), 10), split(rng, autoregressive(0.9), 8)
    expected = measure_curve(train, val, QUIET)
    shuffled = [
        Split([s.pairs[i] for i in order], [s.tracks[i] for i in order])
        for s in (train, val)
        for order in [rng.permutation(len(s.tracks))]
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        np.testing.assert_allclose(measure_curve(*shuffled, QUIET), expected, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("embedding", "log_mel", "says"),
    [
        (noise, noise, "neither this embedding nor the log-mel spectrogram of the music is predictable"),
        (noise, periodic, "the music is predictable, but this embedding of it is not"),
        (periodic, periodic, "both this embedding and the log-mel spectrogram of the music are predictable"),
        (periodic, noise, "this embedding is predictable, but the log-mel spectrogram of the music is not"),
    ],
)
def test_the_sentence_follows_from_the_numbers(rng, tmp_path, embedding, log_mel, says):
    splits = [(split(rng, make, 20), split(rng, make, 12)) for make in (embedding, log_mel)]
    horizon = measure_horizon(*splits, RATE, QUIET)
    says = says.replace("predictable", "predictable half a second ahead", 1)
    how_far = "not predictable even one frame ahead, and" if embedding is noise else "predictable up to "
    assert horizon["sentence"].startswith(f"With a linear map, {says}. The embedding is {how_far}")
    assert horizon["seconds"][0] == 1 / RATE and horizon["seconds"][-1] == FRAMES / RATE
    assert set(horizon["embedding"]) == set(horizon["log_mel"]) == {"skill", "low", "high"}
    assert len(horizon_table(horizon).splitlines()) == 1 + len(horizon["seconds"])
    draw_horizon(tmp_path / "horizon.png", horizon)
    assert (tmp_path / "horizon.png").stat().st_size > 5000


def test_a_dataset_that_is_too_small_says_so(rng):
    few = (split(rng, noise, 1), split(rng, noise, 3))
    horizon = measure_horizon(few, few, RATE, QUIET)
    assert horizon == {
        "seconds": [],
        "sentence": "The horizon was not measured: it needs at least two training tracks.",
    }
    short = Split([(torch.zeros(4, 8), torch.zeros(4, 8))] * 4, list("abcd"))
    assert "segments of at least 16 frames" in measure_horizon((short, short), (short, short), RATE, QUIET)["sentence"]
