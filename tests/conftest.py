"""Shared by all tests: a codec, small music, a small dataset, and a way to run the scripts for real."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parent.parent
SHARED_MUSIC = ROOT.parent / "shared" / "music"  # real recordings, where there are any


def run_script(
    script: str, *args: object, status: int | None = 0, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess:
    """Run a script as a user does, with another folder as the current one if wanted; check its exit status."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    environment = os.environ | {"PYTHONPATH": "", "PYTHONUNBUFFERED": "1"} | env
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    if status is not None:
        assert result.returncode == status, f"{script} {args}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def one_line_error(script: str, *args: object, says: str, status: int = 1, **kwargs) -> str:
    """Run a script that must refuse: one line on stderr that says `says`, no traceback."""
    result = run_script(script, *args, status=status, **kwargs)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("***")]
    assert len(lines) == 1 and says in lines[0], f"expected one line with {says!r}, got:\n{result.stderr}"
    return lines[0]


def noise(rng: np.random.Generator, samples: int, channels: int = 1) -> np.ndarray:
    """Noise that fades in and out, float32 [samples, channels]: every stretch of it is different."""
    envelope = 0.2 + 0.1 * np.sin(np.arange(samples)[:, None] / 5000)
    return (envelope * rng.standard_normal((samples, channels))).clip(-0.99, 0.99).astype(np.float32)


def write_track(path: Path, seconds: float, seed: int, rate: int = 24000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(np.random.default_rng(seed), round(seconds * rate), channels), rate)
    return path


def checkpoint_of(model, **others: object) -> dict:
    """What a checkpoint of `model` holds, for one-second segments of the untrained codec."""
    content = {"model": model.state_dict(), "model_config": model.config, "codec": "untrained-1", "epoch": 1}
    content |= {"codec_is_pretrained": False, "sample_rate": 24000, "num_samples": 24000, "val_mse": 1.0}
    return content | {"baselines": {"training_mean": 2.0, "repeat_input": 3.0}, "identity": {}} | others


@pytest.fixture
def seed(request) -> int:
    """A new seed every run, shown when the test fails."""
    value = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def codec():
    from audio.frozen_encodec import load_frozen_encodec

    return load_frozen_encodec("untrained")


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
    run_script(
        "create_dataset_pairs_wav.py", "--input_dir", small_music, "--output_dir", folder, "--segment_duration", 1,
        "--max_pairs", 22, "--val_pairs", 3,
    )  # fmt: skip
    run_script("dataset_wav_pairs.py", "--dataset_dir", folder, "--encodec_weights", "untrained", "--device", "cpu")
    return folder
