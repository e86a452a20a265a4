"""The verdict: an outcome chosen by a fixed rule, and a sentence with the numbers behind it.

Used by results.py. The report shows RULE; `decide` is the same rule as code.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from dataset.selection import TRACKS_FOR_A_VERDICT

# A lead below a hundredth of the training mean's error is ignored, however certain it is. The training mean differs
# from the validation tracks' own mean by about that much.
MIN_LEAD = 0.01

# What the model must beat besides the training mean, with the names used in the sentence.
BASELINES = {
    "repeat_input": "repeating the input",
    "input_mean": "holding the input's average",
    "channel_regression": "regression by channel",
    "ridge": "ridge regression",
    "last_moment": "holding the last moment",
    "loop": "looping the input at its own period",
    "position_mean": "the training mean by position",
}
# It uses continuous embeddings and MSE too, so losing to it counts against the transformer and not against the concept.
LINEAR, LINEAR_NAME = "clip_ridge", "a linear map of the whole clip"
COMPARED = (*BASELINES, LINEAR)
COPIES = ("repeat_input", "input_mean", "channel_regression", "last_moment")

OPENINGS = {
    "works": "Works",
    "better_than_average": "Better than the average, but no more",
    "copies": "No better than a copy",
    "not_distinguishable": "Not distinguishable from predicting the average",
    "worse": "Worse than predicting the average",
    "undecided": "Undecided",
}

RULE = (
    "A track's skill is 1 − its error ÷ its error under the training mean, and skill is the mean over tracks. (A "
    "track whose error under the training mean is less than a tenth of the median track's counts for less, so that no "
    "quiet track decides.) The lead over a baseline is the model's skill minus the baseline's. A lead counts if its "
    "whole 95% interval is above 0.01 and the model's error over all pairs together is also lower. So neither a few "
    "quiet tracks nor a few loud ones can decide it. "
    "Works: the model leads the training mean and every baseline (repeating the input, its average, regression by "
    "channel, its last moment, ridge, the loop, the training mean by position), and it uses its input: another track's "
    "input costs it skill, with the whole interval above 0.01. "
    "No better than a copy: it leads the training mean and uses its input, but it does not lead every baseline that "
    "only repeats, averages, rescales or holds the input. "
    "Better than the average, but no more: it leads the training mean. "
    "Worse: the whole interval of its skill is below −0.01. "
    "Otherwise it is not distinguishable. "
    f"Undecided: there are fewer than {TRACKS_FOR_A_VERDICT} validation tracks, or one of them was used for training. "
    "The verdict is about the concept: continuous embeddings, pairs and MSE. Whether a transformer is needed is a "
    "separate question, answered by a linear map of the whole clip that is fitted to the same pairs. The rule assumes "
    "that tracks are independent. Ten tracks cannot reveal a problem that affects one track in twenty."
)


class Interval(NamedTuple):
    """A number and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> Interval:
        return Interval(-self.value, -self.high, -self.low)

    def __str__(self) -> str:
        if math.isnan(self.low):  # there is only one track
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True)
class Evidence:
    """What the rule depends on. Skills and leads are means over `tracks` tracks."""

    tracks: int
    shared_tracks: int  # also used for training
    skill: Interval
    leads: dict[str, Interval]  # over each of COMPARED
    lower_error: dict[str, bool]  # than each of COMPARED and "training_mean", over all pairs together
    skills: dict[str, float]  # of each of COMPARED
    input_cost: Interval | None  # the skill lost with another track's input, if there is another track

    def beats(self, baseline: str) -> bool:
        """Whether the lead counts."""
        lead = self.skill if baseline == "training_mean" else self.leads[baseline]
        return lead.low > MIN_LEAD and self.lower_error[baseline]

    @property
    def uses_input(self) -> bool:
        return self.input_cost is not None and self.input_cost.low > MIN_LEAD

    def closest(self, baselines: Collection[str]) -> str:
        """The baseline that the model leads by least, among those that it does not beat, or among all."""
        unbeaten = [name for name in baselines if not self.beats(name)]
        return min(unbeaten or baselines, key=lambda name: self.leads[name].value)


def decide(evidence: Evidence) -> str:
    """The outcome by RULE, one of OPENINGS."""
    if evidence.tracks < TRACKS_FOR_A_VERDICT or evidence.shared_tracks:
        return "undecided"
    if evidence.beats("training_mean"):
        if evidence.uses_input and all(map(evidence.beats, BASELINES)):
            return "works"
        if evidence.uses_input and not all(map(evidence.beats, COPIES)):
            return "copies"
        return "better_than_average"
    return "worse" if evidence.skill.high < -MIN_LEAD else "not_distinguishable"


def verdict(evidence: Evidence) -> dict[str, str | bool]:
    """The `verdict` of results.json, without its limit."""
    outcome = decide(evidence)
    return {
        "outcome": outcome,
        "uses_input": evidence.uses_input,
        "sentence": f"{OPENINGS[outcome]}: {_reasons(evidence, outcome)}.",
        "transformer": _needs_a_transformer(evidence, outcome),
        "rule": RULE,
    }


def _reasons(evidence: Evidence, outcome: str) -> str:
    """The numbers behind an outcome, in words."""
    baseline = evidence.closest(COPIES if outcome == "copies" else BASELINES)
    tracks = f"{evidence.tracks} track{'s' if evidence.tracks != 1 else ''}"
    value, low, high = evidence.skill
    if outcome == "undecided":
        why = f"{tracks} for validation, but {TRACKS_FOR_A_VERDICT} are needed"
        if evidence.shared_tracks:
            why = f"validation tracks that were also used for training: {evidence.shared_tracks} of {evidence.tracks}"
        other = f"that of {BASELINES[baseline]} is {evidence.skills[baseline]:+.2f}"
        return f"{why}. The model's skill is {value:+.2f}; {other}"
    skill = f"the model's skill is {value:+.2f} (95% interval {low:+.2f} to {high:+.2f}, {tracks})"
    scale = "Always predicting the average has skill 0; the truth has skill 1"
    uses = "It uses its input" if evidence.uses_input else "There is no evidence that it uses its input"
    cost = "there is no other track to test with"
    if evidence.input_cost is not None:
        cost = f"with another track's input, its skill changes by {-evidence.input_cost}"
    return f"{skill}. {scale}. {_lead_over(baseline, evidence)}. {uses}: {cost}"


def _lead_over(baseline: str, evidence: Evidence) -> str:
    """How the model compares with the closest baseline."""
    name, lead, skill = BASELINES[baseline], evidence.leads[baseline], evidence.skills[baseline]
    if evidence.skill.low > MIN_LEAD and not evidence.lower_error["training_mean"]:
        return "But its error over all pairs together is above the training mean's"
    if all(map(evidence.beats, BASELINES)):
        return f"It leads every baseline, and the closest, {name}, by {lead}"
    if lead.high < -MIN_LEAD:
        return f"It is behind {name}, which has {skill:+.2f} (lead {lead})"
    if lead.low > MIN_LEAD:
        return f"It is ahead of {name} on the average track (lead {lead}), but not in the error over all pairs together"
    if lead.low > 0:
        return f"It is ahead of {name} by too little to count (lead {lead})"
    return f"It is not ahead of {name}, which has {skill:+.2f} (lead {lead})"


def _needs_a_transformer(evidence: Evidence, outcome: str) -> str:
    """A sentence on the linear map that was fitted to the same pairs."""
    lead, skill = evidence.leads[LINEAR], evidence.skills[LINEAR]
    word = "Unclear"
    if outcome != "undecided" and lead.high < -MIN_LEAD:
        word = "No"
    elif outcome != "undecided" and evidence.beats(LINEAR) and evidence.beats("training_mean"):
        word = "Yes"
    reaches = f"{LINEAR_NAME}, fitted to the same pairs, reaches {skill:+.2f}"
    return f"Is a transformer needed? {word}: {reaches} (the model's lead is {lead})."
