"""Why the model fails or how it works: where its skill lies, and what it uses of its input.

Used by results.py.
"""

from __future__ import annotations

from evaluation.horizon import USEFUL_REACH_S, reach_s
from evaluation.measures import BANDS, TINY, TrackErrors
from evaluation.verdict import BASELINES, COMPARED, LINEAR_NAME, MIN_LEAD, Evidence, Interval

ABLATION_LABELS = {"input_shuffled": "shuffled in time", "input_swapped": "another track's"}
DRAWN_BASELINES = ("channel_regression", "loop")
MIN_SHARE = 0.05  # the sentences leave out bands with a smaller share of the error


def diagnose(errors: TrackErrors) -> dict[str, object]:
    """The `diagnosis` of results.json. The sentences follow from its numbers."""
    model, share = errors.skill("model", "bands"), errors.share("bands")
    baselines = {name: errors.skill(name, "bands").value for name in DRAWN_BASELINES}
    bands = [
        {
            "label": label,
            "share": share[k],
            "skill": model.value[k],
            "skill_interval": (model.low[k], model.high[k]),
            "baselines": {name: skills[k] for name, skills in baselines.items()},
        }
        for k, label in enumerate(BANDS)
    ]
    inputs = []
    for name, label in ABLATION_LABELS.items():
        if name in errors.sums:
            cost = errors.lead("model", name)
            ablation = {"label": label, "skill": errors.skill(name).value}
            inputs.append(ablation | {"cost": cost.value, "cost_interval": (cost.low, cost.high)})
    skill, average = errors.skill("model").value, bands[0]
    of_average = 0.0 if average["share"] == 0 else average["skill"] * average["share"]
    diagnosis = {"bands": bands, "inputs": inputs, "skill": skill}
    diagnosis |= {"skill_of_average": of_average, "skill_of_changes": skill - of_average}
    return diagnosis | {"sentences": [where_it_lies(diagnosis), what_it_uses(diagnosis)]}


def where_it_lies(diagnosis: dict) -> str:
    """In which modulation bands the skill lies, and what the model misses."""
    changing = [band for band in diagnosis["bands"][1:] if band["share"] > MIN_SHARE]
    if not changing:
        return "The clips do not change over time. There is only their average to predict."
    best = max(changing, key=lambda band: band["skill"])
    missed = {band["label"]: band["share"] * (1 - band["skill"]) for band in changing}
    worst = max(changing, key=lambda band: missed[band["label"]])
    left = 1 - diagnosis["skill"]
    text = (
        f"Of the model's skill of {diagnosis['skill']:+.2f}, {diagnosis['skill_of_average']:+.2f} comes from each "
        f"clip's average and {diagnosis['skill_of_changes']:+.2f} from the changes around it."
    )
    if best["skill_interval"][0] > MIN_LEAD:
        text += f" It predicts changes at {best['label']} best (skill {best['skill']:+.2f})."
    if left > 0.01:
        share = missed[worst["label"]] / left
        text += f" {share:.0%} of what it misses is changes at {worst['label']} (skill {worst['skill']:+.2f})."
    return text


def what_it_uses(diagnosis: dict) -> str:
    """What the changed inputs show."""
    costs = {entry["label"]: Interval(entry["cost"], *entry["cost_interval"]) for entry in diagnosis["inputs"]}
    shuffled, swapped = (costs.get(label) for label in ABLATION_LABELS.values())
    if swapped is None:
        conclusion = "there is no other track to test with"
    elif swapped.low <= MIN_LEAD:
        conclusion = "there is no evidence that it uses its input"
    elif shuffled.low <= MIN_LEAD:
        conclusion = "there is evidence only that it uses the overall sound of its input, not the order"
    else:
        conclusion = "it uses the order of its input"
    other = "" if swapped is None else f" With another track's input, it changes by {-swapped}."
    return f"If its input is shuffled in time, its skill changes by {-shuffled}.{other} So {conclusion}."


def limit(
    evidence: Evidence,
    diagnosis: dict,
    by_tracks: TrackErrors,
    train_skill: float | None,
    still_improved: bool,
    horizon: dict,
) -> str:
    """One line on what limits the model: up to two of overfitting, stopping too early and a better baseline.

    If none of them applies, it is over- or underconfidence, or else what the model misses most.

    train_skill: pooled, on the training pairs in the evaluated epoch. still_improved: that epoch is the last and the
    best. horizon: as in results.json. If the embeddings are not predictable, a model without skill needs no other
    reason.
    """
    if not evidence.beats("training_mean") and horizon["seconds"]:
        reach = reach_s(horizon["seconds"], horizon["embedding"])
        if reach < USEFUL_REACH_S:
            return f"What limits it: the embedding itself. {horizon['sentence']}"
    best = min(COMPARED, key=lambda name: evidence.leads[name].value)
    reasons = []
    slope, val_skill = by_tracks.slope("model"), by_tracks.pooled_skill("model")
    if train_skill is not None and train_skill - val_skill > 0.15:
        skills = f"skill {train_skill:+.2f} against {val_skill:+.2f}, pooled"
        reasons.append(f"it fits its training pairs better than new ones ({skills}), so more music may help")
    if still_improved:
        reasons.append("its best epoch is the last one, so it was still improving when training ended")
    if evidence.leads[best].high < -MIN_LEAD:
        name = BASELINES.get(best, LINEAR_NAME)
        reasons.append(f"there is more to find: {name} reaches {evidence.skills[best]:+.2f}")
    if not reasons and slope is not None and slope < 0.8:
        reasons.append(f"it is overconfident (calibration slope {slope:.2f}): predictions vary too much")
    if not reasons and slope is not None and slope > 1.25:
        reasons.append(f"it is underconfident (calibration slope {slope:.2f}): predictions vary too little")
    if not reasons:
        missed = {band["label"]: band["share"] * (1 - band["skill"]) for band in diagnosis["bands"] if band["share"]}
        label = max(missed, key=missed.get)
        what = "each clip's average" if label == BANDS[0] else f"changes at {label}"
        has_skill = evidence.skill.low > MIN_LEAD
        why = "it averages what it cannot know, as MSE demands" if has_skill else "it has learned almost nothing"
        share = missed[label] / max(sum(missed.values()), TINY)
        reasons.append(f"{why}; the largest part of what it misses ({share:.0%}) is {what}")
    return f"What limits it: {'; '.join(reasons[:2])}."
