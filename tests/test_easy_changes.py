"""The first changes that a researcher makes, made in a copy of the repository: the loss, the code, a model setting."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CODEC, ROOT
from forks import run_in_fork

from audio.frozen_encodec import load_frozen_encodec
from dataset_wav_pairs import WavPairsDataset

pytestmark = pytest.mark.slow


class Copy:
    """A copy of the repository that can be edited and run."""

    def __init__(self, folder: Path, dataset: Path):
        self.folder, self.dataset, self.run_dir = folder, dataset, folder / "run"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        for name in files:
            if not name.startswith(("tests/", "docs/", "benchmarks/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert text.count(old) == 1, f"{name}: contains {old!r} {text.count(old)} times"
        (self.folder / name).write_text(text.replace(old, new))

    def run(self, script: str, *args: object, status: int = 0) -> str:
        ended, said = run_in_fork(self.folder / script, *args)
        assert ended == status, said
        return said

    def train(self, *args: object, status: int = 0) -> str:
        paths = ("--dataset_dir", self.dataset, "--checkpoint_dir", self.run_dir)
        return self.run("train_simple_ddp.py", *paths, *CODEC, "--num_layers", 1, *args, status=status)

    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def copy(tmp_path, small_dataset):
    return Copy(tmp_path / "copy", small_dataset)


def test_another_loss_is_used_everywhere_and_named(copy):
    copy.edit(
        "train_simple_worker.py", "return F.mse_loss(predictions, targets)", "return F.l1_loss(predictions, targets)"
    )
    assert "loss       F.l1_loss(predictions, targets): the lines below call it MSE" in copy.train("--epochs", 2)
    first, *epochs = copy.metrics()
    saved = torch.load(copy.run_dir / "best_model.pt", weights_only=True)
    mean, codec = saved["model"]["mean"], load_frozen_encodec("demo")
    for split, baseline in (("val", first["baselines"]["training_mean"]), ("train", saved["train_baseline"])):
        dataset = WavPairsDataset(copy.dataset / split, codec)
        errors = [(dataset[index][1] - mean).abs().mean() for index in range(len(dataset))]
        assert baseline == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4), split
    assert all(e["skill"] == pytest.approx(1 - e["val_mse"] / first["baselines"]["training_mean"]) for e in epochs)
    assert saved["val_mse"] == min(epoch["val_mse"] for epoch in epochs), "early stopping watches another loss"
    small = ("--num_examples", 0, "--max_sound_pairs", 1)
    paths = ("--checkpoint", copy.run_dir / "best_model.pt", "--dataset_dir", copy.dataset)
    copy.run("evaluate_continuation.py", *paths, *small)
    (note,) = json.loads((copy.folder / "results_simple/results.json").read_text())["notes"]
    assert "a different loss, F.l1_loss(predictions, targets)" in note
    copy.edit(
        "train_simple_worker.py", "return F.l1_loss(predictions, targets)", "return F.mse_loss(predictions, targets)"
    )
    assert "loss F.l1_loss(predictions, targets) → MSE" in copy.train("--epochs", 3)
    squares = [(dataset[index][1] - mean).square().mean() for index in range(len(dataset))]
    saved = torch.load(copy.run_dir / "last.pt", weights_only=True)
    assert saved["train_baseline"] == pytest.approx(float(torch.stack(squares).mean()), rel=1e-4), "not measured again"


def test_another_scheduler_does_not_resume_a_run(copy):
    copy.train("--epochs", 1)
    text = (copy.folder / "train_simple_worker.py").read_text()
    start = text.index("    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(")
    old = text[start : text.index("    return TrainState(")]
    copy.edit(
        "train_simple_worker.py", old, "    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)\n"
    )
    copy.edit("training/state.py", "self.scheduler.step(val_mse)", "self.scheduler.step()")
    assert "last.pt: saved with a different scheduler; choose another" in copy.train("--epochs", 3, status=1)
    copy.train("--epochs", 3, "--resume", "never")
    assert [line["lr"] for line in copy.metrics()[1:]] == pytest.approx([1e-4, 0.75e-4, 0.25e-4])


def test_a_new_model_setting_needs_only_a_flag_and_its_use(copy):
    copy.train("--epochs", 1)
    copy.edit(
        "training/config.py",
        "    num_processes: int | None",
        '    causal: bool = setting(False, "attend to the past only")\n    num_processes: int | None',
    )
    model = "model_simple_transformer.py"
    copy.edit(
        model,
        "        attention_dropout: float = 0.0,\n",
        "        attention_dropout: float = 0.0,\n        causal: bool = False,\n",
    )
    copy.edit(
        model,
        "            x = layer(x)\n",
        "            causal = self.config['causal']\n"
        "            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if causal else None\n"
        "            x = layer(x, src_mask=mask, is_causal=causal)\n",
    )
    # A run that was saved before the setting existed had its default.
    said = copy.train("--epochs", 2, "--causal", status=1)
    assert "last.pt: contains a different model (causal False, not True); choose another --checkpoint_dir" in said
    copy.train("--epochs", 1, "--causal", "--resume", "never")
    said = copy.train("--epochs", 2, status=1)
    assert "last.pt: contains a different model (causal True, not False); choose another --checkpoint_dir" in said
    copy.train("--epochs", 2, "--causal")
    code = (
        "import torch\n"
        "from model_simple_transformer import SimpleTransformer\n"
        "from training.checkpoint import load_checkpoint\n"
        "model = SimpleTransformer.from_checkpoint(load_checkpoint('run/best_model.pt'))\n"
        "x = torch.randn(1, 128, 20, requires_grad=True)\n"
        "model(x)[0, :, 9].sum().backward()\n"
        "assert x.grad[0, :, :10].abs().sum() > 0 and x.grad[0, :, 10:].abs().max() == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=copy.folder, check=True)


def test_a_finished_run_keeps_its_best_weights_when_the_loss_changes(copy):
    """Even if the new loss is more than one line long. With more epochs, it counts from there on.

    The changed file is named once.
    """
    assert "changed    " not in copy.train("--epochs", 2) + copy.train("--epochs", 2)
    before = {name: (copy.run_dir / name).read_bytes() for name in ("best_model.pt", "last.pt", "metrics.jsonl")}
    copy.edit(
        "train_simple_worker.py",
        "    return F.mse_loss(predictions, targets)",
        "    weights = torch.linspace(1, 2, 128, device=targets.device).view(-1, 1)\n"
        "    errors = F.huber_loss(predictions, targets, reduction='none')\n"
        "    return (weights * errors).mean()",
    )
    said = copy.train("--epochs", 2)
    assert "*** train_simple_worker.py changed since this run finished, and nothing was trained." in said
    assert "add --resume never to replace the run, or choose another --checkpoint_dir" in said
    assert "loss       weights = torch.linspace(1, 2, 128" in said
    assert before == {name: (copy.run_dir / name).read_bytes() for name in before}
    (line,) = [line for line in copy.train("--epochs", 3).splitlines() if line.startswith("changed    ")]
    assert "train_simple_worker.py " in line and "train_simple_worker.py" in copy.metrics()[-1]["changed"]
    (best, last) = (torch.load(copy.run_dir / name, weights_only=True) for name in ("best_model.pt", "last.pt"))
    assert last["best_epoch"] >= 2 and best["loss"] == last["loss"] != "MSE"
    assert "changed    " not in copy.train("--epochs", 4) and "changed" not in copy.metrics()[-1]
