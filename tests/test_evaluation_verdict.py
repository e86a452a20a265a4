"""The rule of the verdict, case by case."""

import math

import pytest

from dataset.selection import TRACKS_FOR_A_VERDICT
from evaluation.verdict import BASELINES, COMPARED, COPIES, OPENINGS, Evidence, Interval, decide, verdict

ABOVE, AROUND, BELOW = Interval(0.2, 0.1, 0.3), Interval(0.05, -0.1, 0.2), Interval(-0.2, -0.3, -0.1)


def evidence(skill=ABOVE, input_cost=ABOVE, tracks=TRACKS_FOR_A_VERDICT, shared=0, higher=(), **leads):
    return Evidence(
        tracks=tracks,
        shared_tracks=shared,
        skill=skill,
        leads=dict.fromkeys(COMPARED, ABOVE) | leads,
        lower_error={name: name not in higher for name in ("training_mean", *COMPARED)},
        skills=dict.fromkeys(COMPARED, 0.1),
        input_cost=input_cost,
    )


@pytest.mark.parametrize(
    ("found", "outcome", "says"),
    [
        (evidence(), "works", "It leads every baseline"),
        (evidence(tracks=9), "undecided", "9 tracks for validation, but 10 are needed"),
        (evidence(shared=2), "undecided", "validation tracks that were also used for training: 2 of 10."),
        (evidence(input_cost=AROUND), "better_than_average", "no evidence that it uses its input"),
        (evidence(input_cost=None), "better_than_average", "no evidence that it uses its input"),
        (evidence(loop=AROUND), "better_than_average", "not ahead of looping the input"),
        (evidence(ridge=BELOW), "better_than_average", "behind ridge regression"),
        (evidence(repeat_input=AROUND), "copies", "not ahead of repeating the input"),
        (evidence(skill=AROUND), "not_distinguishable", "Not distinguishable"),
        (evidence(skill=BELOW), "worse", "Worse than predicting the average"),
        (evidence(loop=Interval(0.009, 0.008, 0.01)), "better_than_average", "by too little to count"),
        (evidence(last_moment=AROUND), "copies", "not ahead of holding the last moment"),
        (evidence(higher=["loop"]), "better_than_average", "not in the error over all pairs together"),
        (evidence(higher=["training_mean"]), "not_distinguishable", "above the training mean's"),
        (evidence(skill=Interval(math.nan, math.nan, math.nan)), "not_distinguishable", ""),
    ],
)  # fmt: skip
def test_the_rule_case_by_case(found, outcome, says):
    given = verdict(found)
    assert given["outcome"] == outcome == decide(found)
    assert given["sentence"].startswith(OPENINGS[outcome])
    assert says in given["sentence"]
    assert given["uses_input"] == found.uses_input
    assert given["sentence"].endswith(".") and "\n" not in given["sentence"]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (evidence(clip_ridge=ABOVE), "Yes"),
        (evidence(clip_ridge=AROUND), "Unclear"),
        (evidence(clip_ridge=Interval(-0.005, -0.009, -0.001)), "Unclear"),
        (evidence(clip_ridge=BELOW), "No"),
        (evidence(clip_ridge=ABOVE, higher=["clip_ridge"]), "Unclear"),
        (evidence(clip_ridge=ABOVE, tracks=2), "Unclear"),
        (evidence(skill=BELOW, clip_ridge=ABOVE), "Unclear"),  # the model leads, but both are worse than the mean
    ],
)
def test_an_equally_good_linear_map_questions_only_the_transformer(found, word):
    assert verdict(found)["transformer"].startswith(f"Is a transformer needed? {word}: a linear map of the whole clip")
    assert decide(found) == decide(evidence(skill=found.skill, tracks=found.tracks))


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_must_be_beaten(baseline):
    assert decide(evidence(**{baseline: AROUND})) != "works"
    assert decide(evidence(higher=[baseline])) != "works"
    if baseline not in COPIES:
        assert BASELINES[baseline] in verdict(evidence(**{baseline: AROUND}))["sentence"]
