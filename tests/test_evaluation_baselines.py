"""The baselines: what each must find, and that none sees the data it is measured on."""

import pytest
import torch
from planted import CHANNELS, FRAMES, Jukebox, World, clip, copies, drift, independent, statistics

from evaluation.baselines import fit, loop
from evaluation.clip_ridge import ClipRidge


def silent(done, total, what):
    pass


def mse(prediction: torch.Tensor, target: torch.Tensor) -> float:
    return float((prediction - target).square().mean())


# ------------------------------------------------------------------ the loop


@pytest.mark.parametrize("period", [40, 57, 93, 250])
def test_the_loop_continues_a_period(rng, period):
    once = torch.from_numpy(rng.normal(size=(128, period))).float()
    song = once.repeat(1, 2400 // period + 1)[:, :2400]
    noisy = song + 0.3 * torch.randn(128, 2400)
    assert mse(loop(song[:, :1200], 75), song[:, 1200:]) < 1e-6
    # The mean of all past periods has almost no noise. What remains is the noise of the new period.
    rounds = 1200 // period
    assert mse(loop(noisy[:, :1200], 75), noisy[:, 1200:]) < 0.09 * (1.1 + 2 / rounds)


def test_the_loop_falls_back_to_the_average(rng):
    noise = torch.from_numpy(rng.normal(size=(128, 1200))).float() + 5
    average = noise.mean(dim=1, keepdim=True).expand_as(noise)
    assert mse(loop(noise, 75), average) < 0.01
    constant = torch.full((128, 300), 3.0)
    torch.testing.assert_close(loop(constant, 75), constant)
    torch.testing.assert_close(loop(torch.ones(128, 2), 75), torch.ones(128, 2))  # too short for any lag


# ------------------------------------------------------------------ fitted on training pairs


def fitted(train: World):
    mean, std, _ = statistics(train)
    return fit(train, train.tracks, mean, std, silent)


def test_ridge_is_the_closed_form(rng):
    train = copies(rng, tracks=6, pairs=1)
    found = fitted(train)
    mean, std, _ = (x.double() for x in statistics(train))
    x, y = (((torch.stack(side).double() - mean) / std) for side in zip(*train.items, strict=True))
    x = torch.cat([x, x.mean(dim=2, keepdim=True).expand_as(x)], dim=1) - found.center_in
    x, y = (part.transpose(1, 2).flatten(0, 1) for part in (x, y - found.center_out))
    expected = torch.linalg.solve(x.T @ x + found.penalty * len(x) * torch.eye(2 * CHANNELS).double(), x.T @ y)
    torch.testing.assert_close(found.weights, expected)


def test_ridge_becomes_the_mean_if_outputs_are_independent(rng):
    train, val = independent(rng, tracks=10, pairs=1), independent(rng, tracks=4, pairs=1)
    found = fitted(train)
    assert found.penalty >= 1
    for source, target in val.items:
        assert mse(found.ridge(source), target) < 1.02 * mse(found.mean.float().expand_as(target), target)


def test_ridge_finds_a_shared_course_and_a_copy(rng):
    """Finds both a mean by position and a copy of the input's deviation from its own mean by position."""
    before, after = clip(rng), clip(rng)

    def make(tracks: int) -> World:
        pairs = [(before + (x := clip(rng)), after + 0.5 * x + 0.3 * clip(rng)) for _ in range(tracks)]
        return World(pairs, [f"track {k}" for k in range(tracks)])

    found = fitted(make(30))
    for source, target in make(3).items:
        assert mse(found.ridge(source), target) < 0.11  # 0.09 is noise
        assert mse(found.by_position.float(), target) > 0.3
    assert (
        fitted(independent(rng, tracks=10)).center_out.abs().max() == 0
    )  # if there is no mean by position, μ is better


def test_the_last_moment_fades_at_the_rate_of_the_data(rng):
    found = fitted(drift(rng, 30, rho=0.97))
    expected = 0.97 ** torch.arange(1, FRAMES + 1)
    assert (found.fading[:40] - expected[:40]).abs().max() < 0.12
    early = [(found.last_moment(x)[:, :10], y[:, :10]) for x, y in drift(rng, 10, rho=0.97).items]
    assert sum(mse(p, y) for p, y in early) < 0.5 * sum(mse(torch.zeros_like(y), y) for _, y in early)


def test_the_clip_ridge_is_the_primal_ridge(rng):
    """With only 3 frames of 128 channels, the primal weights fit into memory."""
    pairs = [(torch.randn(128, 3) + 2, torch.randn(128, 3)) for _ in range(150)]
    train = World(pairs, [f"track {k % 20}" for k in range(150)])
    found = ClipRidge(train, train.tracks, torch.full((128, 1), 2.0), silent)
    x, y = (torch.stack(side).flatten(1).double() for side in zip(*pairs, strict=True))
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = (x - x_mean) / 2, y - y_mean
    scale = float(x.square().sum()) / len(x)
    weights = torch.linalg.solve(x.T @ x + found.penalty * scale * torch.eye(384).double(), x.T @ y)
    queries = [torch.randn(128, 3) for _ in range(5)]
    for query, predicted in zip(queries, found.predict(queries), strict=True):
        expected = y_mean + (query.flatten().double() - x_mean) / 2 @ weights
        torch.testing.assert_close(predicted.flatten().double(), expected, atol=1e-4, rtol=1e-3)


def test_the_clip_ridge_finds_successors_that_the_frame_ridge_misses(rng):
    """If each clip has one successor, it finds nearly all of it. If outputs are independent, it finds nothing."""
    jukebox = Jukebox(rng, coin=False)
    found = fitted(jukebox.draw(20))
    sources, targets = zip(*jukebox.draw(4).items, strict=True)
    for source, target, predicted in zip(sources, targets, found.clip_ridge.predict(list(sources)), strict=True):
        assert mse(predicted, target) < 0.05 < 0.1 < mse(found.ridge(source), target)
    nothing = fitted(independent(rng, tracks=20))
    assert nothing.clip_ridge.penalty > 1
    for source, target in independent(rng, tracks=4).items:
        assert mse(nothing.clip_ridge.predict([source])[0], target) < 1.1 * float(target.var())


def test_the_clip_ridge_takes_a_sample_of_many_pairs(rng, monkeypatch):
    monkeypatch.setattr("evaluation.clip_ridge.MAX_PAIRS", 30)
    monkeypatch.setattr("evaluation.clip_ridge.BLOCK", 7)
    train = Jukebox(rng, coin=False).draw(tracks=40)
    found = fitted(train).clip_ridge
    assert len(set(found.chosen)) == 30 and len({train.tracks[i] for i in found.chosen}) >= 20
    for source, target in [train[int(found.chosen[k])] for k in (0, 13, 29)]:
        assert mse(found.predict([source] * 9)[8], target) < 0.1


@pytest.mark.parametrize("tracks", [["one"], ["one", "one", "one"], ["one", "two"]])
def test_few_tracks_are_enough_to_fit(rng, tracks):
    found = fitted(World([(clip(rng), clip(rng)) for _ in tracks], tracks))
    source = clip(rng)
    for prediction in (found.ridge(source), found.last_moment(source), found.clip_ridge.predict([source])[0]):
        assert prediction.shape == source.shape and prediction.isfinite().all()


def test_folds_are_tracks_not_pairs(rng):
    """A rule that holds within one track must not lower the penalty."""
    quirks = rng.normal(size=(6, CHANNELS, CHANNELS)) / CHANNELS**0.5

    def make_pair(track: int):
        source = clip(rng)
        return source, torch.from_numpy(quirks[track]).float() @ source

    train = World(
        [make_pair(t) for t in range(6) for _ in range(4)], [f"track {t}" for t in range(6) for _ in range(4)]
    )
    found = fitted(train)
    fresh = torch.from_numpy(rng.normal(size=(CHANNELS, CHANNELS)) / CHANNELS**0.5).float()
    source = clip(rng)
    target = fresh @ source
    assert mse(found.ridge(source), target) < 1.1 * mse(found.mean.float().expand_as(target), target)
