"""The benchmarks in small: gpu.sh in full on a CPU, and the rows of run_benchmarks.py."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import run_benchmarks
from benchmarks.measure import write_noise_dataset

SCRIPT = ["bash", ROOT / "benchmarks" / "gpu.sh"]
PARTS = ["run", "machine", "step", "encoding", "training", "start", "precision", "literal", "tests"]


def run_script(*args: object, **env: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable} | env
    return subprocess.run([*SCRIPT, *args], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_gpu_it_gives_one_line(tmp_path):
    done = run_script(tmp_path, CUDA_VISIBLE_DEVICES="", TEST_DEVICE="cuda")
    assert done.returncode == 1 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr.count("\n") == 1 and "torch sees no CUDA GPU here; nothing was measured" in done.stderr
    done = run_script()
    assert done.returncode == 1 and done.stderr.startswith("gpu.sh: error: name the folder")


@pytest.mark.slow
def test_every_part_measures_its_rows_and_the_table_has_them_all(tmp_path):
    """A second run appends to the first one's rows, and its table holds its own."""
    (tmp_path / "gpu.jsonl").write_text('{"part": "run", "row": "earlier"}\n{"part": "step", "row": "of earlier"}\n')
    done = run_script(tmp_path, TEST_DEVICE="cpu")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    earlier, lines = lines[:2], lines[2:]
    assert list(dict.fromkeys(line["part"] for line in lines)) == PARTS and earlier[1]["row"] not in done.stdout
    table = done.stdout.rpartition("| part | row |")[2]
    assert all(f"| {line['part']} | {line['row']} |" in table for line in lines)
    rows = {line["row"]: line for line in lines}
    assert {"bf16, flash", "bf16, cuDNN", "bf16, flash, graphed", "fp32"} < set(rows)
    assert rows["bf16, cuDNN"]["not_measured"] == "torch has no such kernel here"
    assert rows["bf16, flash"]["wall_ms"] > 0 and rows["second start, to the first step"]["seconds"] > 0
    whole = rows["2 epochs"]
    shares = ("start_up_s", "encoding_s", "training_s", "validation_s", "saving_s", "drawing_s")
    assert 0.9 * whole["total_s"] < sum(whole[share] for share in shares) <= 1.001 * whole["total_s"]
    assert "NOT COMPLETE" not in done.stdout and "not measured" not in table.rpartition("| goal |")[2]
    assert "passed" in lines[-1]["row"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_speed_is_measured_in_small(tmp_path, monkeypatch):
    for name in ("FILES", "MINUTES", "LITERAL_EPOCHS"):
        monkeypatch.setattr(run_benchmarks, name, 1)
    monkeypatch.setattr(run_benchmarks, "FORMATS", {kind: run_benchmarks.FORMATS[kind] for kind in ("wav", "mp3")})
    write_noise_dataset(tmp_path / "pairs", 20, seconds=1)
    rows = [*run_benchmarks.training_epochs(tmp_path / "pairs", tmp_path)]
    rows += [run_benchmarks.two_processes(tmp_path / "pairs", tmp_path), *run_benchmarks.measure_creation(tmp_path)]
    assert len(rows) == 6 and all(row.count("|") == 6 for row in rows)
