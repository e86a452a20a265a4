"""The verdict on planted worlds: an oracle works, and no other model gets a verdict that is too good."""

import pytest
import torch
from planted import (
    CHANNELS,
    FRAMES,
    Jukebox,
    World,
    channel_regression,
    clip,
    copies,
    examine,
    independent,
    loops,
    oracle,
)

from evaluation.baselines import loop
from evaluation.diagnosis import diagnose
from evaluation.verdict import BASELINES


def outcome_of(predict, train: World, val: World, shared_tracks: int = 0) -> str:
    return examine(predict, train, val, shared_tracks)[1]["outcome"]


def noise(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape)


def loop_of(x: torch.Tensor) -> torch.Tensor:
    return loop(x[0], 75)[None]


def late(predict):
    """A model whose prediction comes one frame late."""
    return lambda x: predict(x).roll(1, dims=2)


def check_oracle(train: World, val: World) -> None:
    found, given, by_tracks = examine(oracle(val), train, val)
    assert given["outcome"] == "works", given["sentence"]
    assert found.skill.value == pytest.approx(1) and by_tracks.slope("model") == pytest.approx(1)


def test_an_oracle_works_unless_a_track_was_trained_on(rng):
    train, val = independent(rng), independent(rng)
    check_oracle(train, val)
    assert outcome_of(oracle(val), train, val, shared_tracks=1) == "undecided"


@pytest.mark.slow
@pytest.mark.parametrize("make", [copies, loops])
def test_an_oracle_works_but_no_untrained_prediction_does(make, rng):
    train, val = make(rng), make(rng)
    check_oracle(train, val)
    course = torch.stack([target for _, target in train.items]).mean(dim=0)[None]
    assert outcome_of(lambda x: torch.zeros_like(x), train, val) == "not_distinguishable"
    assert outcome_of(noise, train, val) == "worse"
    assert outcome_of(lambda x: course, train, val) in ("not_distinguishable", "worse")
    copy, hedged, looped = (outcome_of(f, train, val) for f in (lambda x: x, channel_regression(train), loop_of))
    assert copy in (("copies",) if make is copies else ("worse", "not_distinguishable"))  # a period may fit by chance
    assert hedged in (("copies",) if make is copies else ("worse", "not_distinguishable"))
    if make is loops:
        found, given, _ = examine(loop_of, train, val)
        assert given["outcome"] == "better_than_average"
        assert BASELINES["loop"] in given["sentence"] and found.uses_input
    else:
        assert looped in ("worse", "not_distinguishable", "copies")


@pytest.mark.slow
@pytest.mark.parametrize("coin", [True, False])
def test_the_best_possible_model_of_a_jukebox_works(coin, rng):
    jukebox = Jukebox(rng, coin=coin)
    train, val = jukebox.draw(20), jukebox.draw(12)
    found, given, by_tracks = examine(jukebox.best, train, val)
    assert given["outcome"] == "works", given["sentence"]
    assert found.skill.value == pytest.approx(0.5 if coin else 1, abs=0.05)
    assert by_tracks.slope("model") == pytest.approx(
        1, abs=0.1
    )  # a hedge varies half as much as the truth, but is calibrated
    course = jukebox.clips.mean(dim=0, keepdim=True)
    found, given, _ = examine(lambda x: course, train, val)
    assert given["outcome"] == "better_than_average" and not found.uses_input
    assert "no evidence that it uses its input" in given["sentence"]
    assert outcome_of(lambda x: x, train, val) == "worse"
    assert outcome_of(loop_of, train, val) in ("worse", "not_distinguishable")
    # One frame late, it is still ahead of all baselines, and the page says what is wrong.
    fast = diagnose(examine(late(jukebox.best), train, val)[2])["bands"][-1]
    assert fast["skill"] < 0


def test_silent_tracks_win_no_praise(rng):
    """Silence follows silence on 8 of 12 tracks. Every copy predicts that, so it shows no more than a copy does."""
    silence = torch.full((CHANNELS, FRAMES), -2.0)

    def make() -> World:
        pairs = [(silence, silence) if t < 8 else (clip(rng), clip(rng)) for t in range(12)]
        return World(pairs, [f"track {t}" for t in range(12)])

    train, val = make(), make()
    recognizes = lambda x: silence[None] if (x == -2).all() else torch.zeros_like(x)  # noqa: E731
    _, given, _ = examine(recognizes, train, val)
    assert given["outcome"] in ("copies", "better_than_average")
    assert any(
        BASELINES[name] in given["sentence"] for name in ("input_mean", "loop", "channel_regression", "repeat_input")
    )


def test_one_quiet_track_does_not_decide(rng):
    """A model is good, except on one track at a tenth of the level, where its error is as large as elsewhere."""
    train, loud = independent(rng), independent(rng)
    levels = [0.1 if track == "track 0" else 1 for track in loud.tracks]
    pairs = [(x, level * y) for (x, y), level in zip(loud.items, levels, strict=True)]
    quiet = World(pairs, loud.tracks)
    answers = oracle(quiet)
    found, given, _ = examine(lambda x: answers(x) + 0.2 * noise(x), train, quiet)
    assert given["outcome"] == "works", given["sentence"]
    assert found.skill.low > 0.7
