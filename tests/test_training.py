"""Training: the numbers it logs, on any number of processes, and when it stops."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line_error
from training_runs import baselines, command, difference, load, metrics

from dataset_wav_pairs import WavPairsDataset
from model_simple_transformer import SimpleTransformer
from training.checkpoint import load_checkpoint

# Runs with a global batch of 6, without dropout, on 1 process and on 3 that torchrun starts.
PROCESSES = [1, pytest.param(3, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def runs(small_dataset, tmp_path_factory):
    folders = {}

    def folder_of(processes: int) -> Path:
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp("run") / str(processes)
            args = ("--batch_size", 6 // processes, "--epochs", 3, "--dropout", 0)
            script, *words = command(small_dataset, folders[processes], *args)
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            words = [sys.executable, *(torchrun if processes > 1 else ()), ROOT / script, *words]
            done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            (folders[processes] / "log").write_text(done.stdout)
        return folders[processes]

    return folder_of


def embeddings(dataset: Path, split: str, codec) -> tuple[torch.Tensor, torch.Tensor]:
    items = list(WavPairsDataset(dataset / split, codec))
    return torch.stack([i for i, _ in items]), torch.stack([o for _, o in items])


# ------------------------------------------------------------------ what it logs


@pytest.mark.parametrize("processes", PROCESSES)
def test_the_logged_validation_mse_is_exact(runs, small_dataset, codec, processes):
    """Exact even though 19 training and 3 validation pairs do not divide evenly."""
    folder = runs(processes)
    inputs, targets = embeddings(small_dataset, "val", codec)
    best = load_checkpoint(folder / "best_model.pt")
    predicted = SimpleTransformer.from_checkpoint(best)(inputs)
    logged = {line["epoch"]: line for line in metrics(folder)}[best["epoch"]]
    expected = (predicted.double() - targets.double()).square().mean().item()
    assert logged["val_mse"] == pytest.approx(expected, rel=1e-5) and best["val_mse"] == logged["val_mse"]
    ratio = (predicted.std(dim=2).mean() / targets.std(dim=2).mean()).item()
    assert logged["deviation_ratio"] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("processes", PROCESSES)
def test_baselines_and_statistics_are_exact(runs, small_dataset, codec, processes):
    """Also, the untrained model's MSE equals the baseline `channel_regression`."""
    folder = runs(processes)
    x, y = (t.double() for t in embeddings(small_dataset, "train", codec))
    both = torch.cat([x, y])
    mean, std = both.mean(dim=(0, 2)), both.std(dim=(0, 2), correction=0)
    zx, zy = ((t - mean[:, None]) / std[:, None] for t in (x, y))
    gain = (zx * zy).sum(dim=(0, 2)) / zx.square().sum(dim=(0, 2))
    state = load(folder / "last.pt")["model"]
    for name, expected in (("mean", mean), ("std", std), ("gain", gain)):
        torch.testing.assert_close(state[name].flatten(), expected.float(), atol=1e-5, rtol=1e-4)

    inputs, targets = (t.double() for t in embeddings(small_dataset, "val", codec))
    mean, gain = mean[:, None], gain[:, None]
    logged = baselines(folder)
    for name, prediction in (
        ("training_mean", mean),
        ("repeat_input", inputs),
        ("channel_regression", mean + gain * (inputs - mean)),
    ):
        assert logged[name] == pytest.approx((targets - prediction).square().mean().item(), rel=1e-5), name
    for line in metrics(folder):
        assert line["skill"] == pytest.approx(1 - line["val_mse"] / logged["training_mean"], abs=1e-9)


@pytest.mark.slow
def test_several_processes_learn_the_same_as_one(runs):
    """All global batches but the last are equal. 19 = 3 x 6 + 1, so the last repeats pairs to give each process one."""
    for one, several in zip(metrics(runs(1)), metrics(runs(3)), strict=True):
        assert several["val_mse"] == pytest.approx(one["val_mse"], rel=0.01)
        assert several["train_mse"] == pytest.approx(one["train_mse"], rel=0.05)  # it counts the repeated pairs twice


def test_the_log_has_a_line_for_each_epoch(runs):
    log = (runs(1) / "log").read_text()
    for part in (
        "commit",
        "torch 2",
        "1 x cpu",
        "batch_size=6",
        "19 train and 3 val pairs",
        "too few for a verdict",
        "training mean",
    ):
        assert part in log
    lines = re.findall(r"^epoch +(\d+)/3  train ([\d.]+)  val ([\d.]+)  skill ([+-][\d.]+)  deviation .*$", log, re.M)
    assert [int(line[0]) for line in lines] == [1, 2, 3] and "\r" not in log
    for (_, train_mse, val_mse, skill), line in zip(lines, metrics(runs(1)), strict=True):
        assert float(train_mse) == pytest.approx(line["train_mse"], rel=1e-5)
        assert float(val_mse) == pytest.approx(line["val_mse"], rel=1e-5)
        assert float(skill) == pytest.approx(line["skill"], abs=1e-4)


def test_the_codec_is_not_in_the_checkpoint(trained, codec):
    checkpoint = load(trained / "best_model.pt")
    assert checkpoint["codec"] == codec.fingerprint
    assert not any("encoder.model" in name for name in checkpoint["model"])


def test_training_is_reproducible_from_its_seed(small_dataset, tmp_path, run):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*command(small_dataset, tmp_path / name, "--epochs", 2, "--seed", seed))
    a, b, c = (load(tmp_path / name / "last.pt")["model"] for name in "abc")
    assert not difference(a, b) and difference(a, c)


@pytest.mark.slow
def test_no_cache_encodes_at_every_use_and_stores_nothing(small_dataset, tmp_path, run):
    places = ("--no_cache", "--cache_dir", tmp_path / "cache")
    assert "encoded at every use" in run(*command(small_dataset, tmp_path / "run", "--epochs", 1, *places)).stdout
    assert not list(tmp_path.rglob("*.npy"))


# ------------------------------------------------------------------ when it stops


def test_early_stopping_and_scheduler_act_at_the_right_epoch(small_dataset, tmp_path, run):
    """Gradients are clipped to almost zero, so the model never changes and epoch 1 stays the best."""
    args = ("--max_grad_norm", 1e-30, "--weight_decay", 0, "--patience", 7, "--scheduler_patience", 2, "--epochs", 50)
    result = run(*command(small_dataset, tmp_path, *args, "--checkpoint_every", 3))
    lines = metrics(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 9)), "7 epochs after the best, which was the first"
    assert [line["best"] for line in lines] == [True] + [False] * 7
    # ReduceLROnPlateau(patience=2) acts after the third epoch without progress: 2-4, 5-7.
    assert [line["lr"] for line in lines] == [1e-3] * 4 + [5e-4] * 3 + [2.5e-4]
    assert "no better validation MSE for 7 epochs" in result.stdout
    assert load(tmp_path / "best_model.pt")["epoch"] == 1
    assert {p.name for p in tmp_path.glob("*.pt")} == {
        "best_model.pt", "last.pt", "checkpoint_epoch_3.pt", "checkpoint_epoch_6.pt"
    }  # fmt: skip


def test_best_model_is_the_best(small_dataset, tmp_path, run):
    run(*command(small_dataset, tmp_path, "--epochs", 8, "--lr", 0.02))
    lines = metrics(tmp_path)
    best = min(lines, key=lambda line: line["val_mse"])
    assert load(tmp_path / "best_model.pt")["epoch"] == best["epoch"]
    lowest = np.inf
    for line in lines:
        assert line["best"] == (line["val_mse"] < lowest)
        lowest = min(lowest, line["val_mse"])


def spoil_a_pair(split_dir: Path, codec) -> str:
    """Overwrite a pair's cached target with numbers whose square is infinite. Returns the pair's name."""
    dataset = WavPairsDataset(split_dir, codec)
    keys = [key for pair in dataset.keys for key in pair]
    alone = next(i for i, key in enumerate(keys) if keys.count(key) == 1)
    dataset.cache.write(keys[alone], np.full((128, 75), 1e30))
    return dataset.names[alone // 2]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pair(
    small_dataset, tmp_path, codec, run, fails, processes
):
    shutil.copytree(small_dataset, tmp_path / "data")
    train = command(tmp_path / "data", tmp_path / "run", "--batch_size", 1)
    run(*train, "--epochs", 1)
    good = load(tmp_path / "run" / "last.pt")
    pair = spoil_a_pair(tmp_path / "data" / "train", codec)
    stop = fails if processes == 1 else one_line_error
    assert "not finite" in stop(*train, "--num_processes", processes, "--epochs", 3, says=f"pairs {pair};")
    assert not difference(load(tmp_path / "run" / "last.pt"), good)


def test_a_validation_that_is_not_finite_stops_the_run_before_it_saves(small_dataset, tmp_path, fails):
    args = ("--batch_size", 64, "--lr", 1e37, "--epochs", 1)
    says = "validation MSE is not finite after epoch 0, pairs pair_0019, pair_0020, pair_0021;"
    fails(*command(small_dataset, tmp_path, *args), says=says)
    assert not (tmp_path / "best_model.pt").exists() and metrics(tmp_path) == []
    assert all(tensor.isfinite().all() for tensor in load(tmp_path / "last.pt")["model"].values())
