"""Shared by all tests: a codec, small music, a small dataset, and a way to run the scripts for real."""

from __future__ import annotations

import functools
import importlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

# Threads that spin while they wait would slow every test on a busy machine. torch reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import soundfile
import torch

from common import errors

# A shell ignores Ctrl-C in background jobs, and the scripts that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
CODEC = ("--encodec_weights", "demo", "--device", "cpu")  # the smallest codec, so the fastest


def run_script(
    script: str, *args: object, status: int | None = 0, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess:
    """Run a script as a user does, in its own process, and check its exit status."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | env
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    if status is not None:
        assert result.returncode == status, f"{script} {args}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def main_of(script: str, *args: object) -> int:
    """Run a script's `main` in this process, which saves the imports, and return its exit status."""
    before, threads = sys.argv, torch.get_num_threads()
    sys.argv = [script, *map(str, args)]
    try:
        errors.run_script(importlib.import_module(Path(script).stem).main)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
    raise AssertionError(f"{script} did not exit")


@pytest.fixture
def run(capfd):
    """Like `main_of`, but returns the output: run(script, *args, status=0) -> CompletedProcess."""

    def run_here(script: str, *args: object, status: int = 0) -> subprocess.CompletedProcess:
        capfd.readouterr()
        ended = main_of(script, *args)
        said = capfd.readouterr()
        assert ended == status, f"{script} {args}: {ended}\n{said.out}\n{said.err}"
        return subprocess.CompletedProcess([script, *args], ended, said.out, said.err)

    return run_here


@pytest.fixture
def create(run):
    """Create a dataset of one-second segments: create(music, out, *args, status=0) -> CompletedProcess."""
    short = ("--segment_duration", 1, "--num_workers", 1)
    return lambda music, out, *args, status=0: run(
        "create_dataset_pairs_wav.py", "--input_dir", music, "--output_dir", out, *short, *args, status=status
    )


def one_line(stderr: str, says: str = "") -> str:
    """The only line of an error, which must contain `says`. The banner of the codec does not count."""
    lines = [line for line in stderr.splitlines() if not line.startswith("***")]
    assert len(lines) == 1 and ": error: " in lines[0] and says in lines[0], f"expected one line, {says!r}:\n{stderr}"
    return lines[0]


@pytest.fixture
def fails(run):
    """Run a script that must fail, in this process, with status 1 and one line on stderr that contains `says`."""
    return lambda script, *args, says: one_line(run(script, *args, status=1).stderr, says)


def one_line_error(script: str, *args: object, says: str, status: int = 1, **kwargs) -> str:
    """Like `fails`, but in its own process."""
    return one_line(run_script(script, *args, status=status, **kwargs).stderr, says)


def noise(rng: np.random.Generator, samples: int, channels: int = 1) -> np.ndarray:
    """Noise that fades in and out, float32 [samples, channels]. All parts of it are different."""
    envelope = 0.2 + 0.1 * np.sin(np.arange(samples)[:, None] / 5000)
    return (envelope * rng.standard_normal((samples, channels))).clip(-0.99, 0.99).astype(np.float32)


def write_track(path: Path, seconds: float, seed: int, rate: int = 24000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(np.random.default_rng(seed), round(seconds * rate), channels), rate)
    return path


def checkpoint_of(model, **others: object) -> dict:
    """The content of a checkpoint of `model`, for one-second segments of the demo's codec."""
    content = {"model": model.state_dict(), "model_config": model.config, "codec": demo_codec().fingerprint, "epoch": 1}
    content |= {"encodec_weights": "demo"}
    content |= {"num_samples": 24000, "val_mse": 1.0, "loss": "MSE"}
    return content | {"baselines": {"training_mean": 2.0, "repeat_input": 3.0, "channel_regression": 1.5}} | others


@pytest.fixture
def seed(request) -> int:
    """A new seed every run, shown when the test fails."""
    value = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


@functools.cache
def demo_codec():
    from audio.frozen_encodec import load_frozen_encodec

    return load_frozen_encodec("demo")


@pytest.fixture(scope="session")
def codec():
    return demo_codec()


@pytest.fixture(scope="session")
def small_music(tmp_path_factory) -> Path:
    """Seven short tracks: 12 + 5 x 3 + 2 s."""
    folder = tmp_path_factory.mktemp("music")
    for number, seconds in enumerate([12.4, 3.2, 3.2, 3.2, 3.2, 3.2, 2.1]):
        write_track(folder / f"track_{number}.wav", seconds, seed=number)
    return folder


@pytest.fixture(scope="session")
def small_dataset(small_music, tmp_path_factory) -> Path:
    """Pairs of one-second segments (75 frames): 19 train, 3 val; already encoded."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    create = ("--input_dir", small_music, "--output_dir", folder, "--segment_duration", 1, "--num_workers", 1)
    assert main_of("create_dataset_pairs_wav.py", *create, "--max_pairs", 22, "--val_pairs", 3) == 0
    assert main_of("dataset_wav_pairs.py", "--dataset_dir", folder, *CODEC) == 0
    return folder


@pytest.fixture(scope="session")
def trained(small_dataset, tmp_path_factory) -> Path:
    """The folder of a run of two epochs on `small_dataset`. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoints_simple"
    command = ("--dataset_dir", small_dataset, "--checkpoint_dir", folder, "--num_layers", 1, *CODEC)
    assert main_of("train_simple_ddp.py", *command, "--epochs", 2, "--checkpoint_every", 1, "--lr", 1e-3) == 0
    return folder
