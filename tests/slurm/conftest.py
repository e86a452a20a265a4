"""The SLURM tests' fixtures: the cluster, and a copy of the repository to submit from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from slurm_cluster import Cluster, why_not

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(f"no SLURM here: {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    before = dict(os.environ)
    # What a user's shell may hold and a login node's does not: the tests decide on it.
    for name in [n for n in os.environ if n.startswith(("SBATCH_", "SLURM_", "CONDA_")) or n == "VIRTUAL_ENV"]:
        del os.environ[name]
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """A copy of the scripts with music/, .venv and a commit, as a user has it on the cluster."""
    folder = tmp_path_factory.mktemp("home") / "Jingle_D"
    (folder / "logs").mkdir(parents=True)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), ROOT / ".gitignore"]:
        shutil.copy(path, folder)
    environment = Path(sys.prefix)
    if (environment / "bin" / "activate").exists():
        (folder / ".venv").symlink_to(environment)
    else:
        os.environ["PATH"] = f"{environment / 'bin'}:{os.environ['PATH']}"
    write_music(folder / "music")
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "*.py", "*.sh", ".gitignore"], ["commit", "-qm", "As it is"]):
        subprocess.run([*git, *command], check=True)
    return folder


def write_music(folder: Path) -> None:
    """Five short tracks, each its own chord, so that all segments differ."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        time_s = np.arange(24000 * 7) / 24000
        tones = sum(np.sin(2 * np.pi * (rng.uniform(80, 2000) + 40 * time_s) * time_s) for _ in range(3))
        soundfile.write(folder / f"track_{number}.wav", (0.2 * tones).astype(np.float32), 24000)
