"""Write report.html from the content of results.json. Used by evaluate_continuation.py.

The page loads only the pictures and sounds beside it. All text from results.json is escaped.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from common.files import atomic_write
from evaluation.figures import mel_height

# key, title, which way is better, explanation
COLUMNS = (
    ("track_skill", "Skill", "↑",
     "1 − error ÷ error of the training mean, for each track, then the mean over tracks with its 95% interval. 1 is "
     "the truth, 0 is no better than the training mean. It can mislead if a few tracks differ strongly from "
     "the rest."),
    ("skill_difference", "Model's lead", "↑",
     "The model's skill minus this row's, on the same tracks, with its 95% interval. The verdict depends on it."),
    ("skill", "Skill, pooled", "↑",
     "The same over all pairs together, which is what training optimizes. Loud and long tracks count most, so very few "
     "tracks can determine it."),
    ("mse", "MSE", "↓", "Mean squared error of the embeddings, with its 95% interval. Its size depends on the codec."),
    ("deviation_ratio", "Deviation ratio", "",
     "How much the prediction varies over time, divided by how much the truth does. An average of two possible "
     "continuations is below 1, even if it is the best prediction. Random noise around the mean can also reach 1, so "
     "this number alone proves nothing."),
    ("calibration_slope", "Slope", "→ 1",
     "Σ(y − μ)(p − μ) ÷ Σ(p − μ)², where μ is the training mean. Below 1 the model is overconfident: predictions vary "
     "too much. Above 1 it is underconfident."),
    ("log_mel_distance", "Log-mel", "↓",
     "Mean difference from the true continuation's log10 mel spectrogram. 0.3 is a factor of 2 in power."),
    ("chroma_cosine", "Chroma", "↑",
     "Cosine similarity to the true continuation's power in the 12 pitch classes: are the notes the same? Unrelated "
     "music is far above 0. The row of another track shows how far."),
)  # fmt: skip
CLIPS = {
    "context": "Context: what came before",
    "truth": "Truth: what came next",
    "model": "Model: what it predicts",
    "ceiling": "Ceiling: the truth through the codec",
}
TICKS_HZ = {"8 kHz": 8000, "2 kHz": 2000, "500": 500, "100 Hz": 100}
THREE_DECIMALS = ("log_mel_distance", "chroma_cosine", "deviation_ratio", "calibration_slope")


def write_report(path: Path, results: dict) -> None:
    """Write the page about `results`, the content of results.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "minus": minus, "cell": cell}
    page = environment.get_template("report.html.j2").render(
        results,
        columns=COLUMNS,
        clips=CLIPS,
        ticks=ticks(results["dataset"]["sample_rate"]),
        footnotes=footnotes(results),
    )
    atomic_write(path, page)


def number(value: float | None, digits: int = 4) -> str:
    """A number for the page with a real minus sign, or a dash for None."""
    return "–" if value is None else minus(f"{value:.{digits}g}")


def signed(value: float | None) -> str:
    """Two decimals and a sign: +0.33."""
    return "–" if value is None else minus(f"{value:+.2f}")


def minus(text: str) -> str:
    """Real minus signs before digits."""
    return "".join("−" if c == "-" and text[i + 1 : i + 2].isdigit() else c for i, c in enumerate(text))


def cell(row: dict, key: str) -> tuple[str, str]:
    """A cell of the table: its number, and the interval below it."""
    value, interval = row.get(key), row.get(f"{key}_interval")
    if key == "track_skill":
        interval = row.get("skill_interval")
    elif key == "skill":
        interval = None  # skill_interval belongs to the mean over tracks

    def shown(x: float) -> str:
        return signed(x) if "skill" in key else minus(f"{x:.3f}") if key in THREE_DECIMALS else number(x)

    if value is None:
        return "–", ""
    if interval and None not in interval and interval[0] != interval[1]:  # equal if 0 or 1 by definition
        return shown(value), f"{shown(interval[0])} … {shown(interval[1])}"
    return shown(value), ""


def footnotes(results: dict) -> list[str]:
    """The footnotes of the table without duplicates."""
    return list(dict.fromkeys(row["note"] for row in results["rows"].values() if row.get("note")))


def ticks(sample_rate: int) -> dict[str, float]:
    """Labels of a spectrogram's axis, and their heights in percent."""
    return {label: 100 * mel_height(hz, sample_rate) for label, hz in TICKS_HZ.items() if hz < sample_rate / 2}
