"""Training: the numbers it logs, any number of processes, stopping, and going on exactly where it was."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line_error, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.cache import read_metrics
from dataset_wav_pairs import WavPairsDataset
from model_simple_transformer import load_simple_transformer
from train_simple_worker import train_worker
from training.checkpoint import TrainConfig, epoch_chunks

SCRIPT = "train_simple_ddp.py"
QUICK = ("--encodec_weights", "untrained", "--device", "cpu", "--num_layers", 1, "--lr", 1e-3)


def train(dataset: Path, folder: Path, *args: object, **kwargs):
    return run_script(SCRIPT, "--dataset_dir", dataset, "--checkpoint_dir", folder, *QUICK, *args, **kwargs)


def metrics(folder: Path) -> list[dict]:
    """The epochs' lines of metrics.jsonl, but for how fast they were."""
    lines, wrong = read_metrics(folder / "metrics.jsonl", 0)
    assert wrong == []
    return [{k: v for k, v in line.items() if k != "pairs_per_second"} for line in lines[1:]]


def baselines(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["baselines"]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same_state(a: object, b: object) -> bool:
    """Equal to the last bit, times aside."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a if k not in {"seconds", "config"})
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b or (a != a and b != b)


def embeddings(dataset: Path, split: str, codec) -> tuple[torch.Tensor, torch.Tensor]:
    items = list(WavPairsDataset(dataset / split, codec))
    return torch.stack([i for i, _ in items]), torch.stack([o for _, o in items])


# ------------------------------------------------------------------ the order of the data


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**32), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_every_pair_once_an_epoch_and_the_same_steps_everywhere(num_pairs, batch_size, world_size, seed, epoch):
    ranks = [epoch_chunks(num_pairs, batch_size, r, world_size, seed, epoch) for r in range(world_size)]
    seen = []
    for step, sizes in enumerate(ranks[0][1]):
        assert sum(sizes) == batch_size * world_size or step == len(ranks[0][1]) - 1
        assert max(sizes) - min(sizes) <= 1
        for rank, (chunks, same_sizes) in enumerate(ranks):
            assert same_sizes[step] == sizes and len(chunks) == len(sizes_of := ranks[0][1]), sizes_of
            assert len(chunks[step]) == max(1, sizes[rank]), "no process may be without a batch"
            seen += chunks[step][: sizes[rank]]
    assert sorted(seen) == list(range(num_pairs))


def test_every_epoch_has_an_order_of_its_own():
    orders = {tuple(epoch_chunks(50, 50, 0, 1, seed, epoch)[0][0]) for seed in (1, 2) for epoch in (1, 2, 3)}
    assert len(orders) == 6


# ------------------------------------------------------------------ what it logs


@pytest.fixture(scope="module")
def trained(small_dataset, tmp_path_factory):
    """Runs of 3 epochs with 1, 2 and 3 processes and the same global batch of 6, without dropout."""
    folders = {}
    for processes in (1, 2, 3):
        folders[processes] = tmp_path_factory.mktemp("run") / str(processes)
        args = ("--batch_size", 6 // processes, "--num_processes", processes, "--epochs", 3, "--dropout", 0)
        result = train(small_dataset, folders[processes], *args)
        (folders[processes] / "log").write_text(result.stdout)
    return folders


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_logged_validation_mse_is_exact(trained, small_dataset, codec, processes):
    """19 training and 3 validation pairs: uneven for 2 processes."""
    inputs, targets = embeddings(small_dataset, "val", codec)
    best = load(trained[processes] / "best_model.pt")
    model = load_simple_transformer(trained[processes] / "best_model.pt")
    expected = (model(inputs).double() - targets.double()).square().mean().item()
    logged = {line["epoch"]: line for line in metrics(trained[processes])}[best["epoch"]]
    assert logged["val_mse"] == pytest.approx(expected, rel=1e-5) and best["val_mse"] == logged["val_mse"]
    ratio = (model(inputs).std(dim=2).mean() / targets.std(dim=2).mean()).item()
    assert logged["deviation_ratio"] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_baselines_are_what_they_say(trained, small_dataset, codec, processes):
    pairs = torch.cat(embeddings(small_dataset, "train", codec)).double()
    mean = pairs.mean(dim=(0, 2))
    inputs, targets = (t.double() for t in embeddings(small_dataset, "val", codec))
    logged = baselines(trained[processes])
    assert logged["training_mean"] == pytest.approx((targets - mean.view(1, -1, 1)).square().mean().item(), rel=1e-5)
    assert logged["repeat_input"] == pytest.approx((targets - inputs).square().mean().item(), rel=1e-5)
    state = load(trained[processes] / "last.pt")["model"]
    torch.testing.assert_close(state["mean"].flatten(), mean.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state["std"].flatten(), pairs.std(dim=(0, 2), correction=0).float(), atol=0, rtol=1e-4)
    for line in metrics(trained[processes]):
        assert line["skill"] == pytest.approx(1 - line["val_mse"] / logged["training_mean"], abs=1e-9)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_follow_one(trained, processes):
    """The same global batches, the last of them uneven (19 = 3 x 6 + 1)."""
    for one, several in zip(metrics(trained[1]), metrics(trained[processes]), strict=True):
        for key in ("train_mse", "val_mse", "grad_norm"):
            assert several[key] == pytest.approx(one[key], rel=1e-3), key
    one, several = load(trained[1] / "last.pt")["model"], load(trained[processes] / "last.pt")["model"]
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, atol=3e-3, rtol=3e-2, msg=name)


def test_the_log_is_made_for_tail(trained):
    log = (trained[2] / "log").read_text()
    for part in ("commit", "torch 2", "2 x cpu", "batch_size=3", "19 train and 3 val pairs", "predict-the-training"):
        assert part in log
    lines = re.findall(r"^epoch +(\d+)/3  train ([\d.]+)  val ([\d.]+)  skill ([+-][\d.]+)  deviation .*$", log, re.M)
    assert [int(line[0]) for line in lines] == [1, 2, 3] and "\r" not in log
    for (_, train_mse, val_mse, skill), line in zip(lines, metrics(trained[2]), strict=True):
        assert float(train_mse) == pytest.approx(line["train_mse"], rel=1e-5)
        assert float(val_mse) == pytest.approx(line["val_mse"], rel=1e-5)
        assert float(skill) == pytest.approx(line["skill"], abs=1e-4)


def test_the_codec_is_none_of_the_trainings_business(trained, codec):
    checkpoint = load(trained[1] / "best_model.pt")
    assert checkpoint["codec"] == codec.fingerprint
    assert not any("encoder.model" in name for name in checkpoint["model"])


def test_defaults_are_the_documents():
    text = run_script(SCRIPT, "--help").stdout
    for flag, value in [("batch_size", 16), ("epochs", 200), ("lr", 0.0001), ("weight_decay", 0.01), ("patience", 20)]:
        assert re.search(rf"--{flag} [^(]*\(default: {value}\)", text, re.S), flag
    assert TrainConfig().max_grad_norm == 1.0 and TrainConfig().checkpoint_every == 10


def test_reproducible_from_its_seed(small_dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(small_dataset, tmp_path / name, "--epochs", 2, "--seed", seed)
    a, b, c = (load(tmp_path / name / "last.pt") for name in "abc")
    assert same_state(a, b) and not same_state(a["model"], c["model"])


def test_without_a_cache_it_trains_the_same(small_dataset, tmp_path):
    # A cache of its own: the same threads must have filled it, as their number decides the last bits.
    train(small_dataset, tmp_path / "cached", "--epochs", 2, "--cache_dir", tmp_path / "cache")
    before = set(small_dataset.rglob("*.npy"))
    train(small_dataset, tmp_path / "uncached", "--epochs", 2, "--no_cache")
    assert set(small_dataset.rglob("*.npy")) == before
    cached, uncached = (load(tmp_path / n / "last.pt") for n in ("cached", "uncached"))
    assert same_state(cached["model"], uncached["model"])


def test_compiled_it_trains_the_same_and_goes_on(small_dataset, tmp_path):
    """The way through torch.compile, by the backend that needs no C++ compiler."""
    options = {"dataset_dir": str(small_dataset), "encodec_weights": "untrained", "device": "cpu", "num_layers": 1}

    def run(name: str, epochs: int, backend: str) -> dict:
        folder = tmp_path / name
        train_worker(0, 1, TrainConfig(checkpoint_dir=str(folder), epochs=epochs, compile=backend, **options))
        return load(folder / "last.pt")["model"]

    plain, compiled = run("plain", 3, "off"), run("compiled", 3, "aot_eager")
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-5, rtol=1e-4)
    run("resumed", 1, "aot_eager")
    assert same_state(run("resumed", 3, "aot_eager"), compiled)


def test_a_missing_compiler_is_one_line(small_dataset, tmp_path):
    args = ("--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path / "run", *QUICK, "--compile", "inductor")
    env = {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    one_line_error(SCRIPT, *args, says="--compile inductor: torch cannot compile here", **env)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ when it stops


def test_early_stopping_and_scheduler_at_exactly_the_right_epoch(small_dataset, tmp_path):
    """Gradients clipped to nothing: the model stays as it is, so nothing is better than epoch 1."""
    args = ("--max_grad_norm", 1e-30, "--weight_decay", 0, "--patience", 7, "--scheduler_patience", 2, "--epochs", 50)
    result = train(small_dataset, tmp_path, *args, "--checkpoint_every", 3)
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


def test_the_untrained_model_is_the_mean_baseline(small_dataset, tmp_path):
    train(small_dataset, tmp_path, "--max_grad_norm", 1e-30, "--weight_decay", 0, "--epochs", 1)
    assert metrics(tmp_path)[0]["val_mse"] == pytest.approx(baselines(tmp_path)["training_mean"], rel=1e-6)
    assert metrics(tmp_path)[0]["deviation_ratio"] < 1e-5


def test_best_model_is_the_best(small_dataset, tmp_path):
    train(small_dataset, tmp_path, "--epochs", 12, "--lr", 0.02, "--patience", 50)
    lines = metrics(tmp_path)
    best = min(lines, key=lambda line: line["val_mse"])
    assert load(tmp_path / "best_model.pt")["epoch"] == best["epoch"]
    lowest = np.inf
    for line in lines:
        assert line["best"] == (line["val_mse"] < lowest)
        lowest = min(lowest, line["val_mse"])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_number_that_is_not_finite_stops_the_run_and_names_the_pair(small_dataset, tmp_path, codec, processes):
    shutil.copytree(small_dataset, tmp_path / "data", copy_function=shutil.copy)
    dataset = WavPairsDataset(tmp_path / "data" / "train", codec)
    args = ("--num_processes", processes, "--batch_size", 1)
    train(tmp_path / "data", tmp_path / "run", *args, "--epochs", 1)
    good = load(tmp_path / "run" / "last.pt")
    owners = [dataset.key(path) for path in dataset.paths]
    alone = next(i for i, key in enumerate(owners) if owners.count(key) == 1)
    dataset.cache.write(owners[alone], np.full((128, 75), 1e30))
    says = f"pairs {dataset.name(alone // 2)};"
    arguments = ("--dataset_dir", tmp_path / "data", "--checkpoint_dir", tmp_path / "run", *QUICK, *args)
    line = one_line_error(SCRIPT, *arguments, "--epochs", 3, says=says)
    assert "not finite" in line and same_state(load(tmp_path / "run" / "last.pt"), good)


def test_a_validation_that_is_not_finite_stops_the_run_before_it_saves(small_dataset, tmp_path):
    args = ("--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path, *QUICK, "--batch_size", 64)
    says = "validation MSE is not finite in epoch 1, pairs pair_0019, pair_0020, pair_0021;"
    one_line_error(SCRIPT, *args, "--lr", 1e37, "--epochs", 1, says=says)
    assert not (tmp_path / "best_model.pt").exists() and metrics(tmp_path) == []
    state = load(tmp_path / "last.pt")["model"]
    assert all(tensor.isfinite().all() for tensor in state.values())


# ------------------------------------------------------------------ going on


@pytest.fixture(scope="module")
def uninterrupted(small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(small_dataset, folder, "--epochs", 8, "--batch_size", 2)
    return folder


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_cut_and_resumed_it_ends_with_the_same_weights(small_dataset, tmp_path, uninterrupted, seed, how):
    """Cut at a random moment, again and again, the weights are those of the run that was not, bit for bit."""
    rng = np.random.default_rng(seed)
    command = [sys.executable, ROOT / SCRIPT, "--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path, *QUICK]
    command += ["--epochs", "8", "--batch_size", "2"]
    cut = 0
    for _ in range(5):
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        epochs_to_go = rng.integers(1, 3)
        for line in process.stdout:
            epochs_to_go -= line.startswith("epoch")
            if epochs_to_go == 0:
                time.sleep(rng.uniform(0, 0.05))
                process.send_signal(how)
                break
        rest = process.communicate()[0]
        if process.returncode == 0:
            break
        # Before and after the loop a signal ends the process in its own way.
        saved = process.returncode == 128 + how and "the same command goes on from here" in rest
        assert "Traceback" not in rest and (saved or process.returncode in (-how, 128 + how)), rest
        cut += saved
    else:
        train(small_dataset, tmp_path, "--epochs", 8, "--batch_size", 2)
    assert cut, "it was never cut in the loop"
    assert same_state(load(tmp_path / "last.pt"), load(uninterrupted / "last.pt"))
    assert same_state(load(tmp_path / "best_model.pt"), load(uninterrupted / "best_model.pt"))
    assert metrics(tmp_path) == metrics(uninterrupted)


def test_a_finished_run_says_so(small_dataset, uninterrupted):
    before = load(uninterrupted / "last.pt")
    result = train(small_dataset, uninterrupted, "--epochs", 8, "--batch_size", 2)
    assert "finished already" in result.stdout and same_state(load(uninterrupted / "last.pt"), before)


def test_fewer_epochs_than_done_are_done(small_dataset, tmp_path):
    train(small_dataset, tmp_path, "--epochs", 3)
    before = load(tmp_path / "last.pt")
    assert "finished already" in train(small_dataset, tmp_path, "--epochs", 2).stdout
    assert same_state(load(tmp_path / "last.pt"), before)


def test_no_git_is_no_hindrance(small_dataset, tmp_path):
    assert "commit unknown" in train(small_dataset, tmp_path, "--epochs", 1, PATH="/nowhere").stdout


def test_a_folder_that_cannot_be_made_is_one_line_for_several_processes(small_dataset):
    args = ("--dataset_dir", small_dataset, *QUICK, "--num_processes", 2, "--checkpoint_dir", "/proc/none")
    one_line_error(SCRIPT, *args, says="/proc/none")


def test_more_epochs_extend_a_run_exactly(small_dataset, tmp_path, uninterrupted):
    train(small_dataset, tmp_path, "--epochs", 5, "--batch_size", 2)
    train(small_dataset, tmp_path, "--epochs", 8, "--batch_size", 2)
    assert same_state(load(tmp_path / "last.pt"), load(uninterrupted / "last.pt"))


def test_another_configuration_is_refused_and_named(small_dataset, tmp_path, uninterrupted):
    args = ("--dataset_dir", small_dataset, "--checkpoint_dir", uninterrupted, *QUICK, "--epochs", 8, "--batch_size", 2)
    one_line_error(SCRIPT, *args, "--lr", 1e-2, says="lr 0.001 -> 0.01")
    one_line_error(SCRIPT, *args, "--num_processes", 2, says="world_size 1 -> 2")
    shutil.copytree(small_dataset, tmp_path / "data", copy_function=shutil.copy)
    for role in ("input", "output"):
        (tmp_path / "data" / "train" / f"pair_0000_{role}.wav").unlink()
    one_line_error(SCRIPT, *args, "--dataset_dir", tmp_path / "data", says="data ")


def test_resume_never_starts_anew(small_dataset, tmp_path):
    train(small_dataset, tmp_path, "--epochs", 2, "--checkpoint_every", 1)
    own = {tmp_path / name: name.encode() for name in ("notes.txt", "best_model.pt", "checkpoint_epoch_mine.pt")}
    for path, content in own.items():
        path.write_bytes(content)
    train(small_dataset, tmp_path, "--epochs", 1, "--checkpoint_every", 1, "--resume", "never", "--lr", 1e-2)
    assert [line["epoch"] for line in metrics(tmp_path)] == [1]
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    kept = {"best_model.pt.kept_1", "checkpoint_epoch_mine.pt.kept_1", "notes.txt"}
    assert names == {"last.pt", "best_model.pt", "checkpoint_epoch_1.pt", "metrics.jsonl"} | kept
    assert {(tmp_path / name).read_bytes() for name in kept} == set(own.values()), "the user's own files"


def test_a_damaged_checkpoint_is_refused_and_another_offered(small_dataset, tmp_path, rng):
    train(small_dataset, tmp_path, "--epochs", 2, "--checkpoint_every", 1)
    whole = (tmp_path / "last.pt").read_bytes()
    args = ("--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path, *QUICK, "--epochs", 3)
    (tmp_path / "last.pt").write_bytes(whole[: int(rng.integers(len(whole)))])
    line = one_line_error(SCRIPT, *args, says="last.pt: damaged")
    assert "checkpoint_epoch_2.pt" in line
    (tmp_path / "last.pt").unlink()
    one_line_error(SCRIPT, *args, says="last.pt: missing")
    shutil.copy(tmp_path / "checkpoint_epoch_2.pt", tmp_path / "last.pt")
    assert "resuming" in train(small_dataset, tmp_path, "--epochs", 3).stdout


def test_two_trainings_in_one_folder(small_dataset, tmp_path):
    args = ("--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path, *QUICK, "--epochs", 9999, "--patience", 9999)
    command = [sys.executable, ROOT / SCRIPT, *args]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as first:
        for line in first.stdout:
            if line.startswith("epoch"):
                break
        one_line_error(SCRIPT, *args, says=f"a training, process {first.pid}")
        first.kill()
    assert "resuming" in train(small_dataset, tmp_path, "--epochs", 2, "--patience", 9999).stdout


def test_torchrun_starts_the_same_training(small_dataset, tmp_path, trained):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / SCRIPT]
    command += ["--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path, *QUICK, "--batch_size", 3]
    command += ["--epochs", 3, "--dropout", 0]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=200)
    assert same_state(load(tmp_path / "last.pt")["model"], load(trained[2] / "last.pt")["model"])


def test_processes_fill_one_cache_together(small_dataset, tmp_path, codec):
    shutil.copytree(small_dataset, tmp_path / "data", copy_function=shutil.copy, ignore=lambda *_: [".embedding_cache"])
    train(tmp_path / "data", tmp_path / "run", "--num_processes", 3, "--epochs", 1)
    for path in (small_dataset / ".embedding_cache" / codec.fingerprint).iterdir():
        filled = np.load(tmp_path / "data" / ".embedding_cache" / codec.fingerprint / path.name)
        np.testing.assert_allclose(filled, np.load(path), atol=1e-4)
