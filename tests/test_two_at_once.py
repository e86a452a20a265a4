"""Two runs at once in one folder: both succeed, or the second names the process that holds it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CODEC, ROOT
from soak_kill import difference, outcome

from common.files import lock_folder

pytestmark = pytest.mark.slow


def together(*commands: tuple[object, ...]) -> list[subprocess.CompletedProcess]:
    """Run commands side by side."""
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    outputs = [process.communicate(timeout=300) for process in started]
    ended = zip(started, outputs, strict=True)
    return [subprocess.CompletedProcess(process.pid, process.returncode, *texts) for process, texts in ended]


def test_two_trainings_fill_one_cache(tmp_path, small_dataset, codec):
    command = ("train_simple_ddp.py", "--dataset_dir", small_dataset, "--cache_dir", tmp_path / "cache", *CODEC)
    command += ("--num_layers", 1, "--epochs", 1, "--checkpoint_dir")
    ended = together(*((*command, tmp_path / name) for name in "ab"))
    assert [(run.returncode, run.stderr) for run in ended] == [(0, ended[0].stderr)] * 2
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in "ab")
    assert not difference(a, b)
    filled = tmp_path / "cache" / codec.fingerprint
    known = small_dataset / ".embedding_cache" / codec.fingerprint
    assert set(os.listdir(filled)) == set(os.listdir(known))
    for path in known.iterdir():
        np.testing.assert_allclose(np.load(filled / path.name), np.load(path), atol=1e-4)


def test_two_generations_into_one_folder(tmp_path, small_music, trained):
    songs = [small_music / "track_0.wav", small_music / "track_1.wav"]
    command = ("generate_continuation.py", "--checkpoint", trained / "best_model.pt", *CODEC, "--output_dir")
    one, other, alone = together(
        (*command, tmp_path / "both", *songs),
        (*command, tmp_path / "both", *songs[::-1]),
        (*command, tmp_path / "alone", *songs),
    )
    assert one.returncode == other.returncode == alone.returncode == 0
    assert not difference(outcome(tmp_path / "alone"), outcome(tmp_path / "both"))


def test_a_second_run_in_one_folder_is_refused(tmp_path, small_music, small_dataset, trained, fails):
    evaluate = ("evaluate_continuation.py", "--checkpoint", trained / "best_model.pt", "--dataset_dir", small_dataset)
    commands = {
        "dataset creation": ("create_dataset_pairs_wav.py", "--input_dir", small_music, "--output_dir", tmp_path),
        "a training run": (
            "train_simple_ddp.py", "--dataset_dir", small_dataset, *CODEC, "--checkpoint_dir", tmp_path
        ),
        "an evaluation": (*evaluate, *CODEC, "--output_dir", tmp_path),
    }  # fmt: skip
    for what, command in commands.items():
        with lock_folder(tmp_path, what):
            fails(*command, says=f"{tmp_path}: in use by {what} (process {os.getpid()} on ")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"], what
