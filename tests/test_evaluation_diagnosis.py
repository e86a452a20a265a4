"""The diagnosis: what a model uses, and what limits it, follow from the planted cause."""

import numpy as np
import pytest
import torch
from planted import Jukebox, World, channel_regression, copies, examine, independent, loops, oracle, statistics

from evaluation.diagnosis import diagnose, limit
from evaluation.results import training_signs
from training.experiment import MSE

NO_HORIZON = {"seconds": [], "sentence": ""}


def test_the_sentences_follow_the_planted_cause(rng):
    train, val = copies(rng), copies(rng)
    found = diagnose(examine(channel_regression(train), train, val)[2])
    assert "it uses the order of its input" in found["sentences"][1]
    found = diagnose(examine(lambda x: 0.8 * x.mean(dim=2, keepdim=True).expand_as(x), train, val)[2])
    assert found["skill_of_changes"] == pytest.approx(0, abs=0.005)
    assert found["skill_of_average"] > 0.01
    assert found["inputs"][0]["cost"] == pytest.approx(0, abs=1e-6)  # shuffled in time: the same average
    assert "the overall sound of its input" in found["sentences"][1]
    found = diagnose(examine(lambda x: torch.zeros_like(x), train, val)[2])
    assert "no evidence that it uses its input" in found["sentences"][1]


def test_the_training_skill_is_that_of_the_evaluated_epoch_under_mse():
    epochs = [{"epoch": k, "train_mse": 1 - k / 10, "val_mse": 2 - k / 10} for k in (1, 2, 3)]
    checkpoint = {"epoch": 3, "train_baseline": 2.0, "loss": MSE}
    assert training_signs(checkpoint, epochs) == (pytest.approx(0.65), True)
    assert training_signs(checkpoint | {"epoch": 2}, epochs) == (pytest.approx(0.6), False)
    assert training_signs(checkpoint | {"loss": "F.l1_loss(predictions, targets)"}, epochs) == (None, True)
    assert training_signs(checkpoint | {"epoch": 9}, epochs) == (None, False)


@pytest.mark.slow
def test_the_limit_names_the_first_cause_that_applies(rng):
    train, val = loops(rng), loops(rng)
    found, _, by_tracks = examine(channel_regression(train), train, val)
    measured = found, diagnose(by_tracks), by_tracks
    assert "looping the input at its own period reaches +0.8" in limit(*measured, None, False, NO_HORIZON)
    assert "its best epoch is the last one" in limit(*measured, 0.0, True, NO_HORIZON)
    assert "fits its training pairs better than new ones (skill +0.90" in limit(*measured, 0.9, True, NO_HORIZON)

    def limit_of(predict, train: World, val: World) -> str:
        found, _, by_tracks = examine(predict, train, val)
        return limit(found, diagnose(by_tracks), by_tracks, None, False, NO_HORIZON)

    jukebox, chain = Jukebox(rng), Jukebox(rng, coin=False)
    assert "averages what it cannot know, as MSE demands" in limit_of(jukebox.best, jukebox.draw(20), jukebox.draw(12))
    # The model finds half of what can be found, and a linear map finds all of it.
    behind = limit_of(lambda x: 0.3 * chain.best(x), chain.draw(20), chain.draw(12))
    assert "there is more to find: a linear map of the whole clip reaches +" in behind
    pairs = independent(rng), independent(rng)
    for strength, word in ((2, "overconfident"), (0.5, "underconfident")):
        answers = oracle(pairs[1])
        assert word in limit_of(lambda x: strength * answers(x), *pairs)  # noqa: B023
    mean = statistics(pairs[0])[0]
    assert "it has learned almost nothing" in limit_of(lambda x: mean.expand_as(x), *pairs)


def test_an_unpredictable_embedding_explains_a_model_that_learned_nothing(rng):
    train, val = independent(rng), independent(rng)
    curve = {"skill": np.array([0.4, 0.2, 0.0]), "low": np.array([0.3, 0.1, -0.1])}
    horizon = {"seconds": [0.1, 0.2, 0.4], "embedding": curve, "sentence": "With a linear map, nothing."}
    mean = statistics(train)[0]
    found, _, by_tracks = examine(lambda x: mean.expand_as(x), train, val)
    measured = found, diagnose(by_tracks), by_tracks, 0.9, True
    assert limit(*measured, horizon) == "What limits it: the embedding itself. With a linear map, nothing."
    assert "more music" in limit(*measured, horizon | {"seconds": [1, 2, 4]}), "predictable for 2 s"
