"""evaluate_continuation.py from end to end: its files, its errors, and the page in a real browser."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import UNTRAINED, main_of, run_script

from audio.segments import write_wav
from dataset.pairs import PairRow, write_metadata
from evaluation.report import write_report
from evaluation.verdict import OPENINGS
from training.checkpoint import save_checkpoint

RATE = 24000
HOSTILE = "<img src=x onerror=alert(1)>.wav"
VAL_TRACKS = [HOSTILE, '"><script>alert(2)</script>.flac', "a&amp;b.ogg", "{{ 7 * 7 }}.mp3"]
VAL_TRACKS += [f"{letter}.wav" for letter in "defghi"]


def write_dataset(folder, tracks):
    """One pair of 1-second segments a track; tracks: (source, split)."""
    rng, rows = np.random.default_rng(0), []
    for source, split in tracks:
        (folder / split).mkdir(parents=True, exist_ok=True)
        time = np.arange(2 * RATE) / RATE
        track = 0.2 * np.sin(2 * np.pi * rng.uniform(150, 900) * time) * (1.5 + np.sin(2 * np.pi * 4 * time))
        segments = np.round(20000 * (track + 0.01 * rng.normal(size=len(time)))).astype(np.int16).reshape(2, -1)
        rows.append(PairRow(f"pair_{len(rows):04d}", split, source, 0))
        for name, segment in zip(rows[-1].files, segments, strict=True):
            write_wav(folder / name, segment, RATE)
    write_metadata(folder / "metadata.txt", {"segment_duration": "1"}, {}, [], rows)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset and the checkpoints of two epochs on it, in one folder."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_dataset(folder / "ds", [("t1.wav", "train"), ("t2.wav", "train")] + [(name, "val") for name in VAL_TRACKS])
    paths = ("--dataset_dir", folder / "ds", "--checkpoint_dir", folder / "ck")
    assert main_of("train_simple_ddp.py", *paths, "--epochs", 2, "--batch_size", 2, *UNTRAINED) == 0
    return folder


def arguments(folder, *more):
    """Of an evaluation in `folder`; what comes later counts."""
    paths = (
        "--checkpoint",
        folder / "ck/best_model.pt",
        "--dataset_dir",
        folder / "ds",
        "--output_dir",
        folder / "out",
    )
    return ("evaluate_continuation.py", *paths, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def results(place):
    """results.json of a run; a half-written line ends metrics.jsonl, as beside a running training."""
    with open(place / "ck/metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_m')
    (place / "out").mkdir()
    (place / "out/example_99_model.wav").touch()
    (place / "out/mine.txt").touch()
    assert main_of(*arguments(place, "--num_examples", 2, "--max_sound_pairs", 4)) == 0
    return json.loads((place / "out/results.json").read_text())


def test_numbers_are_those_of_the_training(place, results):
    checkpoint = torch.load(place / "ck/best_model.pt", weights_only=True)
    rows = results["rows"]
    assert rows["model"]["mse"] == pytest.approx(checkpoint["val_mse"], rel=1e-5)
    for name in ("training_mean", "repeat_input", "channel_regression"):
        assert rows[name]["mse"] == pytest.approx(checkpoint["baselines"][name], rel=1e-4), name
    logged = results["training"]["epochs"]
    assert [line["epoch"] for line in logged] == [1, 2]
    lines = [json.loads(line) for line in (place / "ck/metrics.jsonl").read_text().splitlines()[1:3]]
    best = next(line for line in lines if line["epoch"] == checkpoint["epoch"])
    assert rows["model"]["deviation_ratio"] == pytest.approx(best["deviation_ratio"], rel=1e-3)
    assert rows["model"]["skill"] == pytest.approx(best["skill"], abs=1e-5)


def test_results_are_complete(place, results):
    assert results["dataset"] | {"path": ""} == {
        "path": "", "pairs": 10, "tracks": 10, "shared_tracks": 0, "segment_s": 1.0, "sample_rate": RATE,
        "sound_pairs": 4, "sound_s": 1.0,
    }  # fmt: skip
    assert [track["source"] for track in results["tracks"]] == VAL_TRACKS
    low, high = results["rows"]["model"]["skill_interval"]
    assert low <= results["rows"]["model"]["track_skill"] <= high
    low, high = results["rows"]["loop"]["skill_difference_interval"]
    assert low <= results["rows"]["loop"]["skill_difference"] <= high
    assert len(results["per_second"]["model"]["mse"]) == 1
    assert results["rows"]["model"]["log_mel_distance"] > 0
    assert results["verdict"]["outcome"] in set(OPENINGS) - {"undecided"}
    assert len(results["diagnosis"]["sentences"]) == 2
    assert results["notes"] == []
    present = {path.name for path in (place / "out").iterdir()}  # the stale ones are gone
    assert (
        set(results["files"]) | {"results.json", "report.html", "mine.txt", ".lock"} == present
    )  # stale ones are gone
    assert len({example["source"] for example in results["examples"]}) == 2
    # Every key of results.json stands on the page that explains them.
    explained = Path(__file__).parent.parent.joinpath("docs/results.md").read_text()
    for name in [*results, *results["rows"]["loop"], *results["diagnosis"], *results["verdict"], *results["dataset"]]:
        assert f"`{name}`" in explained, name


@pytest.mark.slow
def test_same_command_same_results(place, results, run):
    again = place / "again"
    printed = run(*arguments(place, "--num_examples", 0, "--max_sound_pairs", 4, "--output_dir", again)).stdout
    other = json.loads((again / "results.json").read_text())
    assert other["rows"] == results["rows"]
    assert other["verdict"] == results["verdict"]
    assert other["diagnosis"] == results["diagnosis"]
    assert other["examples"] == []
    said = [results["verdict"][part] for part in ("sentence", "transformer", "limit")]
    assert [line for line in printed.splitlines() if line in said] == said
    assert results["verdict"]["limit"].startswith("What limits it: ")


def test_notes_say_what_is_wrong_with_the_split(place, run, tmp_path):
    """A track in both splits under two names, and not the validation split of the training."""
    write_dataset(tmp_path / "ds", [("one.wav", "train"), ("renamed.wav", "val")])
    for old, new in (("train/pair_0000", "val/pair_0001"),):
        for role in ("input", "output"):
            shutil.copy(tmp_path / f"ds/{old}_{role}.wav", tmp_path / f"ds/{new}_{role}.wav")
    shutil.copy(place / "ck/best_model.pt", tmp_path / "moved.pt")
    paths = ("--dataset_dir", tmp_path / "ds", "--output_dir", tmp_path / "out", "--checkpoint", tmp_path / "moved.pt")
    run(*arguments(place, *paths, "--num_examples", 1))
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["verdict"]["outcome"] == "undecided"
    assert "1 of 1 track were in the training too" in found["verdict"]["sentence"]
    joined = " ".join(found["notes"])
    assert "1 of 1 validation tracks are in the training split too" in joined
    assert "1 of 1 true continuations are in the training split too, sample for sample" in joined
    assert "not the validation split of the training" in joined
    assert not (tmp_path / "out/curves.png").exists()
    assert "mse_interval" not in found["rows"]["other_track"]
    assert "There is no metrics.jsonl" in (tmp_path / "out/report.html").read_text()


def test_the_horizon_needs_no_checkpoint(place, results, run, tmp_path):
    words = ("--horizon_only", "--checkpoint", "none.pt", "--output_dir", tmp_path / "out", *UNTRAINED)
    printed = run(*arguments(place, *words)).stdout
    found = json.loads((tmp_path / "out/horizon.json").read_text())
    assert found["codec"] == results["checkpoint"]["codec"] and found["horizon"] == results["horizon"]
    assert found["horizon"]["sentence"] in printed and "ahead" in printed.splitlines()[1]
    assert (tmp_path / "out/horizon.png").stat().st_size > 5000
    write_dataset(tmp_path / "ds", [("a.wav", "train"), ("b.wav", "val")])
    printed = run(*arguments(place, *words, "--dataset_dir", tmp_path / "ds")).stdout
    assert printed == "The horizon was not measured: it takes two training tracks.\n"


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_results_from_elsewhere_are_not_replaced(place, tmp_path, fails, name):
    (tmp_path / name).write_text('{"mine": 1}')
    fails(*arguments(place, "--output_dir", tmp_path), says=f"{name}: is not from this script")
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"mine": 1}']


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "none.pt"], "none.pt: no such checkpoint"),
        (["--dataset_dir", "none"], "none/metadata.txt: no such file"),
        (["--encodec_weights", "none"], "no file none"),
        (["--output_dir", __file__], "is not a folder; name another"),
    ],
)
def test_wrong_use_is_named_before_any_work(place, fails, flags, message):
    fails(*arguments(place, *flags), says=message)


def test_foreign_data_is_refused(place, fails, tmp_path):
    checkpoint = torch.load(place / "ck/best_model.pt", weights_only=True)
    save_checkpoint([tmp_path / "codec.pt"], checkpoint | {"codec": "another"})
    save_checkpoint([tmp_path / "long.pt"], checkpoint | {"num_samples": 16 * RATE})
    fails(*arguments(place, "--checkpoint", tmp_path / "codec.pt"), says="trained on embeddings of codec another")
    fails(*arguments(place, "--checkpoint", tmp_path / "long.pt"), says="trained on segments of 384000 samples")
    shutil.copytree(place / "ds", tmp_path / "ds")
    for role in ("input", "output"):
        shutil.copy(tmp_path / f"ds/val/pair_0004_{role}.wav", tmp_path / f"ds/val/pair_0999_{role}.wav")
    fails(*arguments(place, "--dataset_dir", tmp_path / "ds"), says="does not list val/pair_0999")


def test_an_error_is_one_line_and_status_1(tmp_path):
    done = run_script("evaluate_continuation.py", "--dataset_dir", tmp_path, status=1, cwd=tmp_path)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("evaluate_continuation.py: error: ")


def test_names_are_text_not_template_nor_html(place, results):
    page = (place / "out/report.html").read_text()
    assert "{{ 7 * 7 }}.mp3" in page and "49.mp3" not in page
    assert "<img src=x" not in page and "alert(2)</script>" not in page
    assert "a&amp;amp;b.ogg" in page


# ------------------------------------------------------------------ in a browser


class Browser:
    """Headless Chromium on its debugging pipe: messages are JSON, each ended by a zero byte."""

    def __init__(self, executable, profile):
        ours_in, theirs_out = os.pipe()
        theirs_in, self.out = os.pipe()

        def as_3_and_4():  # the numbers that Chromium reads from and writes to
            spare = [os.dup2(fd, number) for fd, number in ((theirs_in, 103), (theirs_out, 104))]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--mute-audio",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            [executable, f"--user-data-dir={profile}", "--disable-dev-shm-usage", "--no-first-run", *flags],
            preexec_fn=as_3_and_4, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.number, self.events, self.session = os.fdopen(ours_in, "rb"), 0, [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self):
        content = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        return json.loads(content)

    def open(self, url):
        self.send("Page.navigate", url=url)
        for _ in range(300):
            if self.value("document.readyState") == "complete" and self.value("location.href") != "about:blank":
                return
            time.sleep(0.1)
        raise AssertionError("the page does not load")

    def value(self, expression):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def shape(self, width, height, dark):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])

    def screenshot(self, path):
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(picture["data"]))

    def complaints(self):
        """Everything that went wrong on the page, and every request that left the disk."""
        self.value("1")
        found = []
        for event in self.events:
            what, content = event.get("method"), event.get("params", {})
            if what in ("Runtime.exceptionThrown", "Log.entryAdded"):
                found.append((what, content))
            if what == "Network.loadingFailed" and not content.get(
                "canceled"
            ):  # a player needs no more than it asked for
                found.append((what, content))
            if what == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
                found.append((what, content))
            if what == "Page.javascriptDialogOpening":
                found.append((what, content))
            if what == "Network.requestWillBeSent" and not content["request"]["url"].startswith(("file:", "data:")):
                found.append((what, content))
        return found

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        self.reader.close()
        os.close(self.out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


# Waits until every player has its length (or has failed), then describes it.
PLAYERS = """Promise.all([...document.querySelectorAll("audio")].map(a => new Promise(done => {
  const tell = () => done([a.getAttribute("src"), a.duration]);
  if (a.readyState > 0 || a.error) return tell();
  a.onloadedmetadata = a.onerror = tell;
  setTimeout(tell, 20000);
})))"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(place, results, browser, dark, width):
    browser.events.clear()
    browser.shape(width, 844, dark)
    browser.open((place / "out/report.html").as_uri())
    players = dict(browser.value(PLAYERS))
    assert len(players) == 5 * len(results["examples"])
    for example in results["examples"]:
        for clip in example["files"].values():
            assert players[clip["wav"]] == pytest.approx(clip["seconds"], abs=0.01)
    images = browser.value("[...document.images].map(i => [i.currentSrc, i.naturalWidth, i.alt])")
    assert len(images) == 4 + 5 * len(results["examples"])
    assert all(drawn > 0 and alt for _, drawn, alt in images)
    assert browser.value("document.documentElement.scrollWidth") <= width  # nothing makes the page scroll sideways
    # What a stranger named a track is text: no element came of it.
    text = browser.value("document.querySelector('#tracks tbody').textContent")
    assert all(name in text for name in VAL_TRACKS)
    assert browser.value("[...document.querySelectorAll('script')].length") == 1
    assert browser.value("document.querySelectorAll('[onerror]').length") == 0
    assert "Untrained codec: the sound means nothing" in browser.value("document.body.innerText")
    # A table wider than the page says that it scrolls, until its end is reached.
    box = "document.querySelector('.sideways .scroll')"
    wide = browser.value(f"{box}.scrollWidth > {box}.clientWidth + 2")
    assert wide or width > 390
    hint = browser.value("getComputedStyle(document.querySelector('.hint')).display")
    assert (hint == "block") == (width == 390)
    fade = "getComputedStyle(document.querySelector('.sideways'), '::after').display"
    assert (browser.value(fade) != "none") == wide
    if wide:
        browser.value(f"new Promise(done => {{ {box}.scrollLeft = 9999; setTimeout(done, 300) }})")
        assert browser.value(fade) == "none"
        browser.value(f"{box}.scrollLeft = 0")
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    if where := os.environ.get("SCREENSHOTS"):
        browser.screenshot(Path(where, f"page_{width}_{'dark' if dark else 'light'}.png"))
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("outcome", OPENINGS)
def test_every_verdict_fits_a_phone(place, results, browser, outcome, tmp_path):
    for clip in (place / "out").iterdir():
        (tmp_path / clip.name).symlink_to(clip)
    (tmp_path / "report.html").unlink()
    write_report(tmp_path / "report.html", results | {"verdict": results["verdict"] | {"outcome": outcome}})
    browser.shape(390, 844, False)
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.value("document.documentElement.scrollWidth") <= 390
    style = browser.value("(s => [s.fontWeight, s.whiteSpace])(getComputedStyle(document.querySelector('.verdict')))")
    assert style == ["600", "normal"]


@pytest.mark.slow
def test_page_by_keyboard(place, results, browser):
    """Tab reaches every link, the table that scrolls, each fold and each player, and the focus can be seen."""
    browser.shape(390, 844, False)
    browser.open((place / "out/report.html").as_uri())
    seen = set()
    for _ in range(150):
        for kind in ("keyDown", "keyUp"):
            browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        seen.add(
            browser.value("(e => e.getAttribute('src') || e.getAttribute('href') || e.tagName)(document.activeElement)")
        )
        if len(seen) > 1 and browser.value("document.activeElement.tagName") not in ("AUDIO", "BODY"):
            assert browser.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    wanted = {clip["wav"] for example in results["examples"] for clip in example["files"].values()}
    assert wanted | {"#table", "#examples", "results.json", "SUMMARY", "DIV"} <= seen
