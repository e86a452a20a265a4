"""Every script as a user meets it: --help, nothing at import, and one line for each mistake."""

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, one_line_error, run_script

SCRIPTS = [*sorted(p.name for p in ROOT.glob("*.py") if "__main__" in p.read_text()), "demo/make_music.py"]
MODULES = sorted(p.stem for p in ROOT.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_and_opens_with_commands(script, tmp_path):
    text = run_script(script, "--help", cwd=tmp_path).stdout
    source = (ROOT / script).read_text()
    for flag in re.findall(r'add(?:_argument)?\("(--\w+)"', source):
        assert flag in text
    assert f"python {script}" in (ast.get_docstring(ast.parse(source)) or ""), "the docstring shows no command"
    assert list(tmp_path.iterdir()) == [], "--help leaves something behind"


def test_importing_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(MODULES)}"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == "" and list(tmp_path.iterdir()) == []


DOCUMENTED_FLAGS = {
    "create_dataset_pairs_wav.py": (
        "input_dir output_dir segment_duration sample_rate max_pairs val_pairs min_level_db seed num_workers overwrite"
    ),
    "train_simple_ddp.py": (
        "dataset_dir checkpoint_dir batch_size epochs lr weight_decay patience scheduler_factor scheduler_patience "
        "max_grad_norm checkpoint_every num_layers num_heads dropout num_processes device precision resume no_cache "
        "cache_dir encodec_weights seed check_only"
    ),
    "generate_continuation.py": "checkpoint output_dir num_segments quantize device encodec_weights",
    "evaluate_continuation.py": "checkpoint dataset_dir output_dir num_examples device encodec_weights",
    "test_simple_setup.py": "encodec_weights device",
}


@pytest.mark.parametrize("script", DOCUMENTED_FLAGS)
def test_every_flag_is_there(script):
    text = run_script(script, "--help").stdout
    for flag in DOCUMENTED_FLAGS[script].split():
        assert f"--{flag}" in text


@pytest.mark.parametrize(
    "script, args, says",
    [
        ("create_dataset_pairs_wav.py", ["--input_dir", "none"], "--input_dir none: no such folder"),
        ("create_dataset_pairs_wav.py", ["--val_pairs", "2000"], "--val_pairs 2000: must be below --max_pairs"),
        ("dataset_wav_pairs.py", [], "dataset_pairs_wav/train: no such folder"),
        ("train_simple_ddp.py", [], "dataset_pairs_wav/train: no such folder"),
        ("generate_continuation.py", ["a.wav"], "checkpoints_simple/best_model.pt: no such checkpoint"),
        ("frozen_encodec.py", ["--encodec_weights", "file"], "file has no checksum in its name"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, script, args, says):
    (tmp_path / "file").touch()
    one_line_error(script, *args, says=says, cwd=tmp_path)


def test_a_cuda_device_that_is_not_there(tmp_path):
    one_line_error(
        "train_simple_ddp.py", "--device", "cuda", says="--device cuda", cwd=tmp_path, CUDA_VISIBLE_DEVICES=""
    )


def test_the_setup_test_says_ready_or_what_to_do(tmp_path, small_dataset):
    args = ("--encodec_weights", "untrained", "--device", "cpu", "--dataset_dir", small_dataset)
    lines = run_script("test_simple_setup.py", *args, cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 8 + ["ready:"]
    (tmp_path / "bad" / "train").mkdir(parents=True)
    args = ("--encodec_weights", tmp_path / "none.th", "--dataset_dir", tmp_path / "bad")
    lines = run_script("test_simple_setup.py", *args, status=1, cwd=tmp_path).stdout.splitlines()
    assert lines[-1].startswith("not ready: mend encodec, dataset")


@pytest.mark.parametrize("script", ["create_dataset_pairs_levante.sh", "run_train_simple.sh"])
def test_job_scripts(script):
    text = (ROOT / script).read_text()
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    log = {"create_dataset_pairs_levante.sh": "dataset_pairs", "run_train_simple.sh": "train_simple"}[script]
    assert f"--output=logs/{log}.out" in text and f"--error=logs/{log}.err" in text and "--open-mode=append" in text
    assert not re.search(r"/(home|work|Users)/|--account=", text), "someone's home or account"
    if log == "train_simple":
        assert "--gpus-per-node=4" in text and "--constraint=a100_80" in text and "--time=12:00:00" in text


def test_the_documents_files_are_there():
    for name in [
        "create_dataset_pairs_wav.py",
        "create_dataset_pairs_levante.sh",
        "dataset_wav_pairs.py",
        "model_simple_transformer.py",
        "train_simple_ddp.py",
        "train_simple_worker.py",
        "run_train_simple.sh",
        "test_simple_setup.py",
        "requirements.txt",
        "README.md",
        "logs/.gitkeep",
        "LICENSE",
    ]:
        assert (ROOT / name).is_file(), name
    for script in ROOT.glob("*.sh"):
        assert script.stat().st_mode & stat.S_IXUSR


def test_files_stay_short_enough_to_read():
    """About 350 lines: what grows past it has a seam to be found."""
    long = {str(p): n for p in ROOT.glob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long


def test_written_beside_leaves_nothing_behind(tmp_path):
    from common.files import atomic_write

    target = Path(tmp_path, "a" * 250)
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == [target.name]
    with atomic_write(target, sync=True) as beside:
        beside.write_text("new")
    assert target.read_text() == "new" and os.listdir(tmp_path) == [target.name]
    os.umask(before := os.umask(0))
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~before


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    from common.files import atomic_write, lock_folder, remove_partial_files

    code = "import os, sys; from common.errors import lock_folder, atomic_write as w\n"
    code += "with lock_folder(sys.argv[1], 'killed'), w(sys.argv[1] + '/half'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    (left,) = set(tmp_path.iterdir()) - {tmp_path / ".lock"}
    own = [tmp_path / name for name in ("mine.part", ".mine.part", "a.abcdefgh.part")]
    for path in own:
        path.write_text("mine")
    with atomic_write(tmp_path / "a") as beside:
        beside.write_text("whole")
        with lock_folder(tmp_path, "a test"):
            assert not left.exists() and beside.exists()
    remove_partial_files(tmp_path)
    assert set(tmp_path.iterdir()) == {*own, tmp_path / "a", tmp_path / ".lock"}


def test_a_file_taken_for_a_leftover_before_its_writer_could_lock_it_is_made_again(tmp_path, monkeypatch):
    import tempfile

    from common.files import atomic_write, remove_partial_files

    make, made = tempfile.mkstemp, []

    def make_and_lose(**kwargs):
        made.append(make(**kwargs))
        if len(made) < 3:
            remove_partial_files(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkstemp", make_and_lose)
    with atomic_write(tmp_path / "a") as beside:
        beside.write_text("whole")
    assert len(made) == 3 and (tmp_path / "a").read_text() == "whole" and os.listdir(tmp_path) == ["a"]
