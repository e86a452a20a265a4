"""A training that is killed, interrupted, extended or changed resumes, to the same bits where nothing changed."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, main_of, write_track
from training_runs import SCRIPT, command, difference, load, metrics

import train_simple_worker
import training.run

SIX = ("--epochs", 6, "--batch_size", 4)


@pytest.fixture(scope="module")
def uninterrupted(small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main_of(*command(small_dataset, folder, *SIX)) == 0
    return folder


def check_same_outcome(folder, other) -> None:
    for name in ("last.pt", "best_model.pt"):
        found = difference(load(folder / name), load(other / name), name)
        assert not found, found
    assert metrics(folder) == metrics(other)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_more_epochs_extend_a_run_exactly(small_dataset, tmp_path, run, uninterrupted):
    run(*command(small_dataset, tmp_path, "--epochs", 4, "--batch_size", 4))
    assert "after epoch 4" in run(*command(small_dataset, tmp_path, *SIX)).stdout
    check_same_outcome(tmp_path, uninterrupted)


@pytest.mark.parametrize("at", ["train_epoch", "validate", "append_metrics", "save_checkpoint"])
def test_a_run_interrupted_anywhere_in_an_epoch_gives_the_same_result(
    small_dataset, tmp_path, run, uninterrupted, at, monkeypatch, rng
):
    """Ctrl-C hits each part of a random epoch. One line names the epoch from which the same command resumes."""
    module = train_simple_worker if at in ("train_epoch", "validate") else training.run
    real, calls = getattr(module, at), []
    after = int(rng.integers(5, 7))  # four calls of validate measure baselines

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == after:
            if at != "train_epoch" and rng.random() < 0.5:
                real(*args, **kwargs)
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, at, stopped)
    result = run(*command(small_dataset, tmp_path, *SIX), status=130)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("***")]
    assert line.startswith("train_simple_ddp.py: interrupted; the same command resumes after epoch ")
    monkeypatch.setattr(module, at, real)
    run(*command(small_dataset, tmp_path, *SIX))
    check_same_outcome(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "training"])
def test_ctrl_c_ends_several_processes_in_one_line(small_dataset, tmp_path, run, moment, rng):
    """The run began with one process, and the log names the change."""
    run(*command(small_dataset, tmp_path, "--epochs", 1))
    args = ("--epochs", 9999, "--patience", 9999, "--num_processes", 2)
    words = [sys.executable, ROOT / SCRIPT, *command(small_dataset, tmp_path, *args)[1:]]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    if moment == "start":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + 60
        while time.monotonic() < end and len(children.read_text().split()) < 2:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
    else:
        log = list(itertools.takewhile(lambda line: not line.startswith("epoch   3"), process.stdout))
        assert any("num_processes 1 → 2" in line for line in log), log
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    _, said = process.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("***")]
    assert process.returncode == 130 and len(lines) == 1, said
    assert lines[0].startswith("train_simple_ddp.py: interrupted"), said
    assert moment == "start" or "resumes after epoch" in lines[0]
    end = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:  # Python's own helper processes end a little later
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_run_interrupted_in_its_first_epoch_starts_again(small_dataset, tmp_path, run, uninterrupted, monkeypatch):
    """Nothing of it is kept, such as statistics of data that may have changed since."""
    with monkeypatch.context() as patch:
        patch.setattr(train_simple_worker, "train_epoch", interrupted)
        said = run(*command(small_dataset, tmp_path, *SIX, "--resume", "never"), status=130).stderr
    assert "interrupted; leave out --resume never to resume after epoch 0" in said
    saved = load(tmp_path / "last.pt")
    saved["model"]["mean"] += 1
    torch.save(saved, tmp_path / "last.pt")
    assert "resuming" not in run(*command(small_dataset, tmp_path, *SIX)).stdout
    check_same_outcome(tmp_path, uninterrupted)


def test_a_finished_run_says_so(small_dataset, tmp_path, run, uninterrupted):
    """Even if metrics.jsonl ends in half a line, as after a power failure."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 7, "train_')
    before = load(uninterrupted / "last.pt")
    for args in (SIX, ("--epochs", 2, "--batch_size", 4)):
        assert "already finished: all epochs done" in run(*command(small_dataset, tmp_path / "run", *args)).stdout
        assert not difference(load(tmp_path / "run" / "last.pt"), before)
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


# ------------------------------------------------------------------ resume and change


def test_changed_settings_apply_from_there_on_and_are_logged(small_dataset, tmp_path, run):
    """A new --lr replaces the current learning rate. Without it, the rate stays as the scheduler lowered it."""
    plateau = ("--max_grad_norm", 1e-30, "--weight_decay", 0, "--scheduler_patience", 0, "--batch_size", 2)
    run(*command(small_dataset, tmp_path, *plateau, "--epochs", 3))
    lowered = load(tmp_path / "last.pt")["optimizer"]["param_groups"][0]["lr"]
    assert lowered < 1e-3
    log = run(*command(small_dataset, tmp_path, *plateau, "--epochs", 4, "--weight_decay", 0.02, "--seed", 7)).stdout
    assert "changed    weight_decay 0.0 → 0.02, seed 42 → 7" in log
    assert metrics(tmp_path)[3]["lr"] == lowered
    assert metrics(tmp_path)[3]["changed"] == {"weight_decay": [0.0, 0.02], "seed": [42, 7]}
    args = (*plateau, "--epochs", 6, "--weight_decay", 0.02, "--seed", 7, "--lr", 5e-2)
    assert "changed    lr 0.001 → 0.05" in run(*command(small_dataset, tmp_path, *args)).stdout
    assert metrics(tmp_path)[4]["lr"] == 0.05 and "changed" not in metrics(tmp_path)[5]
    group = load(tmp_path / "last.pt")["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == 0.02


def test_an_early_stopped_run_continues_with_more_patience_or_more_epochs(small_dataset, tmp_path, run):
    args = ("--max_grad_norm", 1e-30, "--weight_decay", 0)
    first = run(*command(small_dataset, tmp_path, *args, "--patience", 2, "--epochs", 9)).stdout
    assert "finished: no better validation MSE for 2 epochs" in first and len(metrics(tmp_path)) == 3
    log = run(*command(small_dataset, tmp_path, *args, "--patience", 4, "--epochs", 9)).stdout
    assert "changed    patience 2 → 4" in log and len(metrics(tmp_path)) == 5
    run(*command(small_dataset, tmp_path, *args, "--patience", 4, "--epochs", 12))
    assert len(metrics(tmp_path)) == 9, "four more from where it stopped"


def test_a_grown_dataset_resumes_with_its_statistics_and_a_new_best(
    small_dataset, small_music, tmp_path, run, monkeypatch
):
    """Even if it is interrupted before the first epoch on the new data ends."""
    shutil.copytree(small_music, tmp_path / "music")
    write_track(tmp_path / "music" / "new.wav", 5.3, seed=77)
    create = ("--input_dir", tmp_path / "music", "--output_dir", tmp_path / "grown", "--segment_duration", 1)
    run("create_dataset_pairs_wav.py", *create, "--max_pairs", 26, "--val_pairs", 3, "--num_workers", 1)
    shutil.copytree(small_dataset / ".embedding_cache", tmp_path / "grown" / ".embedding_cache")
    run(*command(small_dataset, tmp_path / "run", "--epochs", 3))
    before = load(tmp_path / "run" / "last.pt")
    with monkeypatch.context() as patch:
        patch.setattr(train_simple_worker, "train_epoch", interrupted)
        run(*command(tmp_path / "grown", tmp_path / "run", "--epochs", 5), status=130)
    log = run(*command(tmp_path / "grown", tmp_path / "run", "--epochs", 5)).stdout
    after = load(tmp_path / "run" / "last.pt")
    assert f"changed    pairs 22 → {after['data']['pairs']}" in log and after["data"]["pairs"] > 22
    for name in ("mean", "std", "gain"):
        assert not difference(before["model"][name], after["model"][name])
    assert metrics(tmp_path / "run")[3]["changed"] == {"pairs": [22, after["data"]["pairs"]]}
    assert after["epoch"] == 5 and after["best_epoch"] >= 3
    assert load(tmp_path / "run" / "best_model.pt")["epoch"] == after["best_epoch"]


def test_another_model_is_refused(small_dataset, tmp_path, uninterrupted, fails):
    same = command(small_dataset, uninterrupted, *SIX)
    fails(
        *same,
        "--num_layers",
        2,
        says="contains a different model (num_layers 1, not 2); choose another --checkpoint_dir",
    )
    fails(*same, "--num_heads", 4, says="contains a different model (num_heads 8, not 4)")


def test_init_from_starts_a_new_run_with_old_weights(small_dataset, tmp_path, run, fails, uninterrupted):
    best = uninterrupted / "best_model.pt"
    args = ("--init_from", best, "--max_grad_norm", 1e-30, "--weight_decay", 0)
    log = run(*command(small_dataset, tmp_path / "warm", *args, "--epochs", 1)).stdout
    assert f"weights    from {best}, epoch {load(best)['epoch']}" in log
    assert metrics(tmp_path / "warm")[0]["val_mse"] == pytest.approx(load(best)["val_mse"], rel=1e-6)
    log = run(*command(small_dataset, tmp_path / "warm", *args, "--epochs", 2)).stdout
    assert "ignored, because this run already has weights" in log and len(metrics(tmp_path / "warm")) == 2
    says = "contains a different model (num_layers 1, not 2); use another checkpoint with --init_from"
    fails(*command(small_dataset, tmp_path / "other", *args, "--num_layers", 2), says=says)
    fails(*command(small_dataset, tmp_path / "none", "--init_from", tmp_path / "no.pt"), says="no.pt: no such")
    own = ("--resume", "never", "--init_from", tmp_path / "warm" / "best_model.pt")  # which the new run would remove
    fails(*command(small_dataset, tmp_path / "warm", *own), says="choose another --checkpoint_dir than its own")
    assert (tmp_path / "warm" / "best_model.pt").exists()


def test_resume_never_starts_a_new_run(small_dataset, tmp_path, run):
    run(*command(small_dataset, tmp_path, "--epochs", 2, "--checkpoint_every", 1))
    (tmp_path / "notes.txt").write_text("mine")
    run(*command(small_dataset, tmp_path, "--epochs", 1, "--checkpoint_every", 1, "--resume", "never", "--lr", 1e-2))
    assert [line["epoch"] for line in metrics(tmp_path)] == [1]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pt", "best_model.pt", "checkpoint_epoch_1.pt", "metrics.jsonl", "curves.png", "notes.txt",
                     ".lock"}  # fmt: skip


def test_a_damaged_last_pt_is_refused_and_its_replacement_resumes(small_dataset, tmp_path, run, fails, rng):
    run(*command(small_dataset, tmp_path, "--epochs", 2, "--checkpoint_every", 1))
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: int(rng.integers(len(whole)))])
    line = fails(*command(small_dataset, tmp_path, "--epochs", 3), says="last.pt: damaged")
    assert "checkpoint_epoch_2.pt over it" in line
    shutil.copy(tmp_path / "checkpoint_epoch_2.pt", tmp_path / "last.pt")
    assert "resuming" in run(*command(small_dataset, tmp_path, "--epochs", 3)).stdout
