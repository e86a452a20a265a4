"""Why it fails, or how it works: where the skill lies, and what of its input the model uses."""

from __future__ import annotations

from evaluation.horizon import SHORT_S, reach_s
from evaluation.measures import BANDS, TrackErrors
from evaluation.verdict import BASELINES, COMPARED, LEAST_LEAD, LINEAR_NAME, Evidence, Interval

ABLATION_LABELS = {
    "input_rolled": "a frame late",
    "input_rolled_back": "late, prediction moved back",
    "input_shuffled": "shuffled in time",
    "input_swapped": "another track's",
}
DRAWN_BASELINES = ("channel_regression", "loop")
SPEAKING_SHARE = 0.05  # a band with less of the error is not worth a sentence


def diagnose(errors: TrackErrors) -> dict[str, object]:
    """The `diagnosis` of results.json; the sentences follow from its numbers alone."""
    found: dict[str, object] = {}
    for part, labels in (("bands", BANDS), ("onset", ("first 0.1 s",))):
        model, share = errors.skill("model", part), errors.share(part)
        found[part] = [
            {
                "label": label,
                "share": share[k],
                "skill": model.value[k],
                "skill_interval": (model.low[k], model.high[k]),
                "baselines": {baseline: errors.skill(baseline, part).value[k] for baseline in DRAWN_BASELINES},
            }
            for k, label in enumerate(labels)
        ]
    own = errors.skill("model")
    average = found["bands"][0]
    found["skill"] = own.value
    found["skill_of_average"] = 0.0 if average["share"] == 0 else average["skill"] * average["share"]
    found["skill_of_course"] = own.value - found["skill_of_average"]
    found["inputs"] = [
        {
            "label": label,
            "skill": errors.skill(name).value,
            "cost": (cost := errors.lead("model", name)).value,
            "cost_interval": (cost.low, cost.high),
        }
        for name, label in ABLATION_LABELS.items()
        if name in errors.sums
    ]
    found["sentences"] = [where_it_lies(found), what_it_uses(found)]
    return found


def where_it_lies(diagnosis: dict) -> str:
    """In which part of the music the skill is, and in which what is missed."""
    course = [band for band in diagnosis["bands"][1:] if band["share"] > SPEAKING_SHARE]
    if not course:
        return "The clips do not move: all there is to predict is their average."
    best = max(course, key=lambda band: band["skill"])
    missed = {band["label"]: band["share"] * (1 - band["skill"]) for band in course}
    worst = max(course, key=lambda band: missed[band["label"]])
    left = 1 - diagnosis["skill"]
    text = (
        f"Of its skill of {diagnosis['skill']:+.2f}, {diagnosis['skill_of_average']:+.2f} is each clip's average and "
        f"{diagnosis['skill_of_course']:+.2f} its course around that"
    )
    if best["skill_interval"][0] > LEAST_LEAD:
        text += f"; it knows change at {best['label']} best (skill {best['skill']:+.2f})"
    if left > 0.01:
        share = missed[worst["label"]] / left
        text += f"; of what it misses, {share:.0%} is change at {worst['label']} (skill {worst['skill']:+.2f})"
    return text + "."


def what_it_uses(diagnosis: dict) -> str:
    """What the tampered inputs show."""
    costs = {entry["label"]: Interval(entry["cost"], *entry["cost_interval"]) for entry in diagnosis["inputs"]}
    rolled, back, shuffled, swapped = (costs.get(label) for label in ABLATION_LABELS.values())
    if swapped is None:
        conclusion = "there is no other track to try"
    elif not swapped.low > LEAST_LEAD:
        conclusion = "it is not shown to use its input"
    elif not shuffled.low > LEAST_LEAD:
        conclusion = "it is not shown to use the order of its input, only what it sounds like"
    elif not rolled.low > LEAST_LEAD or rolled.value < shuffled.value / 4:
        conclusion = "it recognises its input, to the frame or not"
    elif back.value < rolled.value / 2:
        conclusion = "its prediction moves in time with its input, frame by frame"
    else:
        conclusion = "it depends on absolute frame positions"
    text = (
        f"It loses {rolled} of skill if its input is a frame late ({back.value:+.2f} with the prediction moved back), "
        f"{shuffled} if it is shuffled in time"
    )
    other = "" if swapped is None else f", {swapped} if it is another track's"
    return f"{text}{other}: {conclusion}."


def limit(
    evidence: Evidence,
    diagnosis: dict,
    by_tracks: TrackErrors,
    train_skill: float | None,
    still_improved: bool,
    horizon: dict,
) -> str:
    """One line on what limits the model, the first two of these that apply.

    train_skill: pooled, on the training pairs in the evaluated epoch. still_improved: that epoch is the last and the
    best. horizon: as in results.json; a model that found nothing in embeddings that are not predictable needs no other
    reason.
    """
    if not evidence.beats("training_mean") and horizon["seconds"]:
        reach = reach_s(horizon["seconds"], horizon["embedding"])
        if reach < SHORT_S:
            return f"What limits it: the embedding itself. {horizon['sentence']}"
    best = min(COMPARED, key=lambda name: evidence.leads[name].value)
    found = []
    slope, new = by_tracks.slope("model"), by_tracks.pooled_skill("model")
    if train_skill is not None and train_skill - new > 0.15:
        found.append(
            f"it fits its training pairs better than new ones (skill {train_skill:+.2f} against {new:+.2f}, pooled): "
            "more music"
        )
    if still_improved:
        found.append("its best epoch is the last one: training ended while it still improved")
    if evidence.leads[best].high < -LEAST_LEAD:
        name = BASELINES.get(best, LINEAR_NAME)
        found.append(f"there is more to find: {name} reaches {evidence.skills[best]:+.2f}")
    if not found and slope is not None and slope < 0.8:
        found.append(f"it is overconfident (calibration slope {slope:.2f}): predictions vary too much")
    if not found and slope is not None and slope > 1.25:
        found.append(f"it is underconfident (calibration slope {slope:.2f}): predictions vary too little")
    if not found:
        left = {band["label"]: band["share"] * (1 - band["skill"]) for band in diagnosis["bands"] if band["share"]}
        label = max(left, key=left.get)
        what = "each clip's average" if label == BANDS[0] else f"change at {label}"
        why = (
            "what it cannot know it averages, as MSE demands"
            if evidence.skill.low > LEAST_LEAD
            else "it has learned almost nothing"
        )
        found.append(f"{why}; the largest part of what it misses ({left[label] / sum(left.values()):.0%}) is {what}")
    return f"What limits it: {'; '.join(found[:2])}."
