"""evaluate_continuation.py from end to end: its files, its errors, and the page in a real browser."""

import html
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import CODEC, ROOT, main_of
from datasets import write_dataset

from evaluation.verdict import OPENINGS
from training.checkpoint import save_checkpoint

RATE = 24000
HOSTILE = "<img src=x onerror=alert(1)>.wav"
VAL_TRACKS = [HOSTILE, '"><script>alert(2)</script>.flac', "a&amp;b.ogg", "{{ 7 * 7 }}.mp3"]
VAL_TRACKS += [f"{letter}.wav" for letter in "defghi"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A dataset and the checkpoints of two epochs on it, in one folder."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_dataset(folder / "ds", [("t1.wav", "train"), ("t2.wav", "train")] + [(name, "val") for name in VAL_TRACKS])
    paths = ("--dataset_dir", folder / "ds", "--checkpoint_dir", folder / "ck", "--num_layers", 1)
    assert main_of("train_simple_ddp.py", *paths, "--epochs", 2, "--batch_size", 4, *CODEC) == 0
    return folder


def evaluate(folder: Path, *args: object) -> tuple[object, ...]:
    """The command of an evaluation in `folder`. `args` can override its flags."""
    inputs = ("--checkpoint", folder / "ck/best_model.pt", "--dataset_dir", folder / "ds")
    return "evaluate_continuation.py", *inputs, "--output_dir", folder / "out", "--device", "cpu", *args


@pytest.fixture(scope="module")
def results(place) -> dict:
    """The results.json of a run. metrics.jsonl ends in half a line, as during training."""
    with open(place / "ck/metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_m')
    (place / "out").mkdir()
    (place / "out/example_99_model.wav").touch()
    (place / "out/mine.txt").touch()
    assert main_of(*evaluate(place, "--num_examples", 1, "--max_sound_pairs", 2)) == 0
    return json.loads((place / "out/results.json").read_text())


def test_numbers_are_those_of_the_training(place, results):
    checkpoint = torch.load(place / "ck/best_model.pt", weights_only=True)
    rows = results["rows"]
    assert rows["model"]["mse"] == pytest.approx(checkpoint["val_mse"], rel=1e-5)
    for name in ("training_mean", "repeat_input", "channel_regression"):
        assert rows[name]["mse"] == pytest.approx(checkpoint["baselines"][name], rel=1e-4), name
    lines = (place / "ck/metrics.jsonl").read_text().splitlines()
    best = json.loads(lines[checkpoint["epoch"]])  # the first line has the baselines
    assert rows["model"]["deviation_ratio"] == pytest.approx(best["deviation_ratio"], rel=1e-3)
    assert rows["model"]["skill"] == pytest.approx(best["skill"], abs=1e-5)


def test_results_are_complete_and_explained(place, results):
    expected = {"pairs": 10, "tracks": 10, "shared_tracks": 0, "segment_s": 1.0, "sample_rate": RATE}
    assert expected.items() <= results["dataset"].items()
    assert [track["source"] for track in results["tracks"]] == VAL_TRACKS
    low, high = results["rows"]["model"]["skill_interval"]
    assert low <= results["rows"]["model"]["track_skill"] <= high
    assert results["rows"]["model"]["log_mel_distance"] > 0 and len(results["per_second"]["model"]["mse"]) == 1
    assert results["verdict"]["outcome"] in set(OPENINGS) - {"undecided"} and results["notes"] == []
    present = {path.name for path in (place / "out").iterdir()}  # example_99 of an earlier run is removed
    assert set(results["files"]) | {"results.json", "report.html", "mine.txt", ".lock"} == present
    explained = (ROOT / "docs/results.md").read_text()
    for name in [*results, *results["rows"]["loop"], *results["diagnosis"], *results["verdict"], *results["dataset"]]:
        assert f"`{name}`" in explained, name


def test_notes_say_what_is_wrong_with_the_split(place, run, tmp_path):
    """A track is in both splits under two names, and this is not the training's validation split."""
    write_dataset(tmp_path / "ds", [("one.wav", "train"), ("renamed.wav", "val")])
    for role in ("input", "output"):
        shutil.copy(tmp_path / f"ds/train/pair_0000_{role}.wav", tmp_path / f"ds/val/pair_0001_{role}.wav")
    shutil.copy(place / "ck/best_model.pt", tmp_path / "moved.pt")
    paths = ("--dataset_dir", tmp_path / "ds", "--output_dir", tmp_path / "out", "--checkpoint", tmp_path / "moved.pt")
    printed = run(*evaluate(place, *paths, "--num_examples", 0)).stdout.splitlines()
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["verdict"]["outcome"] == "undecided"
    assert all(found["verdict"][part] in printed for part in ("sentence", "transformer", "limit"))
    assert "validation tracks that were also used for training: 1 of 1." in found["verdict"]["sentence"]
    notes = " ".join(found["notes"])
    assert "Validation tracks that are also in the training split: 1 of 1." in notes
    assert "1 of 1 true continuations are also in the training split, sample for sample" in notes
    assert "not the validation split used in training" in notes
    assert "There is no metrics.jsonl" in (tmp_path / "out/report.html").read_text()


def test_the_horizon_needs_no_checkpoint(place, results, run, tmp_path):
    words = ("--horizon_only", "--checkpoint", "none.pt", "--output_dir", tmp_path / "out", *CODEC)
    printed = run(*evaluate(place, *words)).stdout
    found = json.loads((tmp_path / "out/horizon.json").read_text())
    assert found["codec"] == results["checkpoint"]["codec"] and found["horizon"] == results["horizon"]
    assert found["horizon"]["sentence"] in printed and "ahead" in printed.splitlines()[1]
    assert (tmp_path / "out/horizon.png").stat().st_size > 5000


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_results_from_elsewhere_are_not_replaced(place, tmp_path, fails, name):
    (tmp_path / name).write_text('{"mine": 1}')
    fails(*evaluate(place, "--output_dir", tmp_path), says=f"{name}: is not from this script")
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"mine": 1}']


def test_data_of_another_codec_or_length_is_refused(place, fails, tmp_path):
    checkpoint = torch.load(place / "ck/best_model.pt", weights_only=True)
    save_checkpoint([tmp_path / "codec.pt"], checkpoint | {"codec": "another"})
    save_checkpoint([tmp_path / "long.pt"], checkpoint | {"num_samples": 16 * RATE})
    fails(*evaluate(place, "--checkpoint", tmp_path / "codec.pt"), says="trained on embeddings of codec another")
    fails(*evaluate(place, "--checkpoint", tmp_path / "long.pt"), says="trained on segments of 384000 samples")
    shutil.copytree(place / "ds", tmp_path / "ds")
    for role in ("input", "output"):
        shutil.copy(tmp_path / f"ds/val/pair_0004_{role}.wav", tmp_path / f"ds/val/pair_0999_{role}.wav")
    fails(*evaluate(place, "--dataset_dir", tmp_path / "ds"), says="does not list val/pair_0999")


def test_names_are_text_not_template_nor_html(place, results):
    page = (place / "out/report.html").read_text()
    assert "{{ 7 * 7 }}.mp3" in page and "49.mp3" not in page
    assert "<img src=x" not in page and "alert(2)</script>" not in page
    assert "a&amp;amp;b.ogg" in page


# ------------------------------------------------------------------ in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
# Shows the report in a frame, because a window of Chromium is at least 500 pixels wide, and describes it as JSON.
VIEWER = """<!DOCTYPE html><meta charset="utf-8"><iframe src="report.html" width="WIDTH" height="844"></iframe><script>
addEventListener("load", async () => {
  const page = frames[0].document;
  const players = [...page.querySelectorAll("audio")];
  await Promise.all(players.map(player => player.readyState || player.error || new Promise(done => {
    player.onloadedmetadata = player.onerror = done;
  })));
  const found = {
    players: players.map(player => [player.getAttribute("src"), player.duration]),
    images: [...page.images].map(image => [image.naturalWidth, image.alt]),
    width: page.documentElement.scrollWidth,
    tracks: page.querySelector("#tracks tbody").textContent,
    scripts: page.querySelectorAll("script, [onerror]").length,
    text: page.body.innerText,
    background: frames[0].getComputedStyle(page.body).backgroundColor,
    requests: frames[0].performance.getEntriesByType("resource").map(request => request.name),
  };
  document.body.append(Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)}));
});
</script>"""


def in_a_browser(folder: Path, profile: Path, width: int, dark: bool) -> dict:
    """What Chromium shows of the report in `folder`. Its console must stay empty."""
    viewer = profile / "viewer.html"
    for path in folder.iterdir():
        (profile / path.name).symlink_to(path)
    viewer.write_text(VIEWER.replace("WIDTH", str(width)))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [
        CHROMIUM,
        *FLAGS,
        "--enable-logging=stderr",
        scheme,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, viewer.as_uri()], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0]))


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_the_page_in_a_browser(place, results, tmp_path, width, dark):
    found = in_a_browser(place / "out", tmp_path, width, dark)
    clips = [clip for example in results["examples"] for clip in example["files"].values()]
    assert len(clips) == 5 * len(results["examples"]) > 0
    assert dict(found["players"]) == {clip["wav"]: pytest.approx(clip["seconds"], abs=0.01) for clip in clips}
    assert len(found["images"]) == 4 + len(clips) and all(drawn > 0 and alt for drawn, alt in found["images"])
    assert found["width"] <= width, "the page scrolls sideways"
    # A track name that looks like HTML is shown as text and creates no element.
    assert all(name in found["tracks"] for name in VAL_TRACKS)
    assert found["scripts"] == 1
    assert "These results use this project's small demo codec" in found["text"]
    assert (sum(map(int, found["background"][4:-1].split(","))) < 200) == dark
    assert all(request.startswith(("file:", "data:")) for request in found["requests"])
