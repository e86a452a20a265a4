"""The page of evaluate_continuation.py: report.html, from results.json alone.

    python evaluation_report.py results_simple          # write the page again from results_simple/results.json

One file beside its pictures and sounds: its style is in it, nothing comes from a network, and every text in
results.json is escaped before it is used.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from urllib.parse import quote

from common.arguments import file_path
from common.errors import UserError, run_script
from common.files import atomic_write
from evaluation.figures import mel_height
from evaluation.page_style import SCRIPT, STYLE

COLUMNS = [
    ("mse", "MSE", "↓", "Mean squared error of the embeddings, with its 95% interval: what the model was trained on."),
    ("skill", "Skill", "↑", "1 − MSE ÷ MSE of the training mean: 1 is the truth, 0 no better than always predicting "
     "the average, below 0 worse. With its 95% interval."),
    ("deviation_ratio", "Deviation ratio", "→ 1", "How much the prediction varies over time ÷ how much the truth does: "
     "1 alive, 0 collapsed to a constant."),
    ("mse_reencoded", "MSE, re-encoded", "↓", "The MSE again, after the prediction was decoded to sound and encoded "
     "once more: what is left of it when it is heard."),
    ("fad", "FAD", "↓", "Fréchet audio distance to the true continuations on EnCodec embeddings (24 kHz mono, every "
     "frame a sample): do all predictions together sound like music of this kind?"),
    ("fad_inf", "FAD∞ (R²)", "↓", "FAD extrapolated to infinitely many frames, and how straight the extrapolation's "
     "line is (1 is perfect)."),
    ("log_mel_distance", "Log-mel", "↓", "Mean difference of log10 mel spectrograms to the true continuation: 0.3 is a "
     "factor of 2 in power."),
    ("chroma_cosine", "Chroma", "↑", "Cosine of the 12 pitch classes to the true continuation's: the same notes? "
     "Unrelated music is far above 0; the row of another track shows where."),
]  # fmt: skip
CLIPS = {
    "context": "Context: what came before",
    "truth": "Truth: what came next",
    "model": "Model: what it predicts",
    "ceiling": "Ceiling: the truth through the codec",
}
TICKS_HZ = {"8 kHz": 8000, "2 kHz": 2000, "500": 500, "100 Hz": 100}


def number(value: float | None, digits: int = 4) -> str:
    """A number for the page, with a real minus sign; a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}".replace("-", "−")


def percent(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")


def escaped(value: object) -> object:
    """`value` with every text in it, at any depth, made safe for HTML."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value


def write_report(path: Path, results: dict) -> None:
    """Write the page about `results`, the content of results.json."""
    results = escaped(results)  # before anything else is done with them
    checkpoint, dataset, verdict = results["checkpoint"], results["dataset"], results["verdict"]
    warning = ""
    if not checkpoint["codec_is_pretrained"]:
        warning = (
            '<p class="warning" role="note"><strong>Untrained codec: the sound means nothing.</strong> The codec has '
            "EnCodec's architecture with random weights: whatever it decodes is noise. MSE and skill are real numbers, "
            "but about random features of the music, not about EnCodec's.</p>"
        )
    facts = (
        f"{checkpoint['path']}, epoch {checkpoint['epoch']} · {dataset['pairs']} validation pairs of "
        f"{dataset['tracks']} track{'s' if dataset['tracks'] != 1 else ''} in {dataset['path']} · "
        f"codec {checkpoint['codec']}"
    )
    tone = verdict["outcome"] if verdict["alive"] else "worse"
    body = f"""
<header>
<h1>Does the concept work?</h1>
<p class="facts">{facts}</p>
</header>
{warning}
<main>
<section id="verdict" aria-label="Verdict">
<p class="verdict {tone}">{minus(verdict["sentence"])}</p>
{_list(findings(results))}
{_list(results["notes"], "notes")}
<p class="small">The rule: {verdict["rule"]}</p>
</section>
<nav aria-label="On this page"><a href="#table">Table</a><a href="#seconds">Second by second</a>
<a href="#training">Training</a><a href="#tracks">Tracks</a><a href="#examples">Listen</a></nav>
{_table(results)}
<div class="charts">
{_chart("seconds", "Where in the continuation", "per_second", SECONDS_ALT, SECONDS_ABOUT)}
{_training(results)}
</div>
{_tracks(results)}
{_examples(results)}
</main>
<footer><p class="small">Bootstrap and choices with seed {results["settings"]["seed"]}; the results do not depend on the
batch size but for the rounding of floating-point numbers. Every number is in
<a href="results.json">results.json</a>.</p></footer>
"""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Does the concept work? {checkpoint['path']}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>{body}<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    with atomic_write(path) as beside:
        beside.write_text(page, encoding="utf-8")


SECONDS_ALT = (
    "Two line charts over the seconds of the continuation: MSE of the model and of the baselines, and the model's "
    "skill with its interval"
)
CURVES_ALT = "Line chart: training and validation MSE by epoch, with the baselines as horizontal lines"


SECONDS_ABOUT = (
    "Does it know the first second better than the last? Skill 0 is the training mean (dashed), 1 the truth; the band "
    "is the 95% interval over tracks."
)
CURVES_ABOUT = (
    "The training's own log. Validation below the dashed line is better than predicting the average; training that "
    "falls while validation rises is learning by heart."
)


def minus(text: str) -> str:
    """Real minus signs before digits."""
    return "".join("−" if c == "-" and text[i + 1 : i + 2].isdigit() else c for i, c in enumerate(text))


def findings(results: dict) -> list[str]:
    """What else the numbers say, beside the verdict."""
    rows, model = results["rows"], results["rows"]["model"]
    found = []
    for name, words in (
        ("repeat_input", "repeating the input"),
        ("input_mean", "holding the input's own average (which knows the track, and nothing of its course)"),
    ):
        gain = 1 - model["mse"] / max(rows[name]["mse"], 1e-300)
        found.append(f"Against {words} the model's error is {abs(gain):.1%} {'lower' if gain >= 0 else 'higher'}.")
    skills = results["per_second"]["model"]["skill"]
    found.append(f"Skill is {percent(skills[0])} in the first second and {percent(skills[-1])} in the last.")
    if model["fad"] is not None:
        others = {"the codec's ceiling": rows["ceiling"]["fad"], "the training mean held": rows["training_mean"]["fad"]}
        known = " and ".join(f"{name} at {number(fad)}" for name, fad in others.items() if fad is not None)
        found.append(f"As sound, all predictions together are at FAD {number(model['fad'])}, with {known}.")
    return found


def _list(items: list[str], name: str = "findings") -> str:
    return f'<ul class="{name}">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>" if items else ""


def _cell(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    interval, r2 = row.get(f"{key}_interval"), row.get(f"{key}_r2")
    if interval and interval[0] == interval[1]:  # a row that is 0 or 1 by definition
        interval = None
    if key in ("skill", "deviation_ratio", "log_mel_distance", "chroma_cosine"):
        main = f"{value:.3f}".replace("-", "−")
        shown = [f"{end:.3f}".replace("-", "−") for end in interval] if interval else []
    else:
        main = number(value)
        shown = [number(end) for end in interval] if interval else []
    extra = f"{shown[0]} … {shown[1]}" if interval else f"R² {r2:.2f}".replace("-", "−") if r2 is not None else ""
    return main + (f'<span class="interval">{extra}</span>' if extra else "")


def _table(results: dict) -> str:
    heads = "".join(
        f'<th scope="col">{title} <span class="arrow">{arrow}</span></th>' for _, title, arrow, _ in COLUMNS
    )
    lines, row_notes = [], []
    for name, row in results["rows"].items():
        mark = ""
        if note := row.get("note"):
            row_notes += [note] if note not in row_notes else []
            mark = f"<sup>{row_notes.index(note) + 1}</sup>"
        cells = "".join(f"<td>{_cell(row, key)}</td>" for key, *_ in COLUMNS)
        kind = ' class="own"' if name.startswith("model") else ""
        lines.append(f'<tr{kind}><th scope="row">{row["label"]}{mark}</th>{cells}</tr>')
    dataset = results["dataset"]
    footnotes = "".join(f"<li>{note}</li>" for note in row_notes)
    explained = "".join(f"<dt>{title}</dt><dd>{text}</dd>" for _, title, _, text in COLUMNS)
    return f"""<section id="table"><h2>Against what it must beat</h2>
<div class="scroll" role="region" aria-label="Table of measures, scrolls sideways" tabindex="0"><table>
<thead><tr><th scope="col">Continuation</th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>
{f'<ol class="small">{footnotes}</ol>' if footnotes else ""}
<details><summary>What the columns mean, and what they are measured on</summary><dl>{explained}</dl>
<p>The first three columns: all {dataset["pairs"]} pairs, before any decoding. The others: {dataset["sound_pairs"]}
of them, spread over the tracks, because a trip through decoder and encoder takes far longer than all the rest and
the figures settle with far fewer. There every continuation is decoded on its own ({number(dataset["segment_s"])} s,
without its context) and compared with the dataset's WAV; for the re-encoded MSE and FAD it is encoded again, and
FAD's reference is the unquantised embeddings of the true continuations' WAVs. The training mean is one constant
clip, decoded once. Another track's continuations are the true ones dealt out anew, so as a set they are the
ceiling's: the same FAD unless one track has more than half of the pairs. Intervals: bootstrap over tracks, none
below 5 tracks.</p></details>
</section>"""


def _picture(name: str, alt: str) -> str:
    return (
        f'<picture><source srcset="{name}_dark.png" media="(prefers-color-scheme: dark)">'
        f'<img src="{name}_light.png" alt="{alt}"></picture>'
    )


def _chart(anchor: str, title: str, name: str, alt: str, about: str) -> str:
    caption = f'<p class="small">{about}</p>'
    return f'<section id="{anchor}"><h2>{title}</h2>{caption}{_picture(name, alt)}</section>'


def _training(results: dict) -> str:
    if not results["training"]["epochs"]:
        return '<section id="training"><h2>The training</h2><p>There is no metrics.jsonl to draw it from.</p></section>'
    return _chart("training", "The training", "curves", CURVES_ALT, CURVES_ABOUT)


def _tracks(results: dict) -> str:
    lines = "".join(
        f'<tr><th scope="row"><bdi>{track["source"]}</bdi></th><td>{track["pairs"]}</td>'
        f"<td>{number(track['mse'])}</td><td>{percent(track['skill'])}</td></tr>"
        for track in sorted(results["tracks"], key=lambda track: track["skill"], reverse=True)
    )
    return f"""<section id="tracks"><h2>Track by track</h2><details><summary>{len(results["tracks"])} validation
track{"s" if len(results["tracks"]) != 1 else ""}, the best predicted first</summary>
<div class="scroll" role="region" aria-label="Table of tracks" tabindex="0"><table><thead><tr><th scope="col">Track</th>
<th scope="col">Pairs</th><th scope="col">MSE</th><th scope="col">Skill</th></tr></thead>
<tbody>{lines}</tbody></table></div></details></section>"""


def _clip(files: dict, title: str, about: str, sample_rate: int, seam: float | None = None) -> str:
    """A spectrogram with its axes, and its player. seam: share of the width at which the continuation begins."""
    ticks = "".join(
        f'<span style="bottom:{100 * mel_height(hz, sample_rate):.1f}%">{label}</span>'
        for label, hz in TICKS_HZ.items()
        if hz < sample_rate / 2
    )
    seconds = files["seconds"]
    times = "".join(f"<span>{number(seconds * k / 4)}{' s' if k == 4 else ''}</span>" for k in range(5))
    line = f'<i class="seam" style="left:{100 * seam:.2f}%"></i>' if seam is not None else ""
    return f"""<figure><figcaption>{title}</figcaption>
<div class="spectrogram"><div class="hertz" aria-hidden="true">{ticks}</div>
<div class="image"><img src="{quote(files["png"])}" alt="Mel spectrogram, {about}">{line}</div>
<div class="times" aria-hidden="true">{times}</div></div>
<audio controls preload="metadata" src="{quote(files["wav"])}" aria-label="{about}"></audio></figure>"""


def _examples(results: dict) -> str:
    rate, parts = results["dataset"]["sample_rate"], []
    for count, example in enumerate(results["examples"], 1):
        source, start = example["source"], example["start_s"]
        clips = "".join(
            _clip(example["files"][name], title, f"{name} of example {count}", rate) for name, title in CLIPS.items()
        )
        seam = example["files"]["context"]["seconds"] / example["files"]["joined"]["seconds"]
        joined = _clip(
            example["files"]["joined"],
            "Joined: context and the model's continuation, decoded in one piece; the line is where it begins",
            f"context and continuation of example {count}", rate, seam,
        )  # fmt: skip
        parts.append(
            f'<article><h3><span class="count">{count}</span> <bdi>{source}</bdi></h3><p class="facts">from '
            f"{start // 60}:{start % 60:02d} · {example['pair']} · skill {percent(example['skill'])}</p>"
            f'<div class="clips">{clips}</div><div class="joined">{joined}</div></article>'
        )
    if not parts:
        return ""
    return f"""<section id="examples"><h2>Look and listen</h2><p class="small">Chosen with the seed, spread over the
tracks. Mel spectrograms, 70 dB from the brightest point of context and truth down to black.</p>
{"".join(parts)}</section>"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results_dir", type=file_path, help="folder with results.json")
    folder = Path(parser.parse_args().results_dir)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        write_report(folder / "report.html", results)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{folder / 'results.json'}: damaged; run evaluate_continuation.py again") from error
    return 0


if __name__ == "__main__":
    run_script(main)
