"""Shared by the SLURM tests: a user with a copy of the repository, and an uninterrupted training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from slurm_cluster import ENDED, Cluster, why_not

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "levante.md"


@pytest.fixture(scope="session", name="cluster")
def a_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A running SLURM. Skips the test if none can be started."""
    if reason := why_not():
        pytest.skip(f"no SLURM here: {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    before = dict(os.environ)
    # Variables that this shell may have but a login node's shell does not. The tests set them.
    for name in [n for n in os.environ if n.startswith(("SBATCH_", "SLURM_", "CONDA_")) or n == "VIRTUAL_ENV"]:
        del os.environ[name]
    os.environ["SBATCH_ACCOUNT"] = "PROJECT"  # docs/levante.md: export SBATCH_ACCOUNT=PROJECT
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session", name="repository")
def a_repository(tmp_path_factory) -> Path:
    """A copy of the scripts with music/, .venv and a commit, as a user has it on the cluster."""
    folder = tmp_path_factory.mktemp("home") / "Jingle_D"
    (folder / "logs").mkdir(parents=True)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), ROOT / ".gitignore"]:
        shutil.copy(path, folder)
    for package in ("common", "audio", "dataset", "training", "evaluation", "demo"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = Path(sys.prefix)  # if this is not a virtual environment, its folder comes first in PATH
    if (environment / "bin" / "activate").exists():
        (folder / ".venv").symlink_to(environment)
    write_music(folder / "music")
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "As it is"]):
        subprocess.run([*git, *command], check=True)
    return folder


def write_music(folder: Path) -> None:
    """Write five short tracks, each with its own chord, so that all segments differ."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        time_s = np.arange(24000 * 7) / 24000
        tones = sum(np.sin(2 * np.pi * (rng.uniform(80, 2000) + 40 * time_s) * time_s) for _ in range(3))
        soundfile.write(folder / f"track_{number}.wav", (0.2 * tones).astype(np.float32), 24000)


CODEC = ["--encodec_weights", "demo"]
TINY = ["--device", "cpu", *CODEC, "--batch_size", "1", "--epochs", "16", "--patience", "99"]
EPOCHS = 16


class User:
    """A user in the repository's folder, who submits jobs and reads the logs."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.tried: set[str] = set()  # lines of docs/levante.md

    @staticmethod
    def page_lines() -> list[str]:
        """Every command of docs/levante.md."""
        blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        return [line for block in blocks for line in block.splitlines() if line]

    def page(self, command: str) -> str:
        """Check that a command is a line of docs/levante.md, and return it."""
        assert command in self.page_lines(), f"{PAGE}: has no line {command!r}"
        self.tried.add(command)
        return command

    def run(self, command: str, *more: str, replace: dict[str, str] | None = None, status: int = 0) -> str:
        """Try a line of docs/levante.md, with more arguments, and return what it prints."""
        return self.shell(self.page(command), *more, replace=replace, status=status)

    def shell(
        self, *command: str, replace: dict[str, str] | None = None, status: int = 0, env: dict[str, str] | None = None
    ) -> str:
        line = " ".join(command)
        for placeholder, value in (replace or {}).items():
            line = line.replace(placeholder, value)
        environment = Path(sys.prefix, "bin")
        path = {"PATH": f"{environment}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=os.environ | path | (env or {}), capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(
        self, command: str, *more: str, options: str = "", replace: dict[str, str] | None = None, **env: str
    ) -> str:
        """Try one of the page's `sbatch` lines, with more arguments and options; return the job's number."""
        line = self.page(command).replace("sbatch", f"sbatch {options}", 1)
        return self.shell(line, *more, replace=replace, env=env).split()[-1]

    def log(self, name: str = "train_simple.out") -> str:
        path = self.folder / "logs" / name
        return path.read_text() if path.exists() else ""

    def job_log(self, job_id: str, name: str = "train_simple.out") -> str:
        """The part of the log that a job has written since its last start."""
        _, start, text = self.log(name).rpartition(f"== job {job_id}, start")
        return start + text if start else ""

    def await_line(self, text: str, job_id: str, timeout_s: float = 90) -> None:
        """Wait until the job's log holds `text`."""

        def done() -> bool:
            return text in self.job_log(job_id) or self.cluster.state(job_id) in ENDED

        self.cluster.until(done, timeout_s, f"{text!r} in the log of job {job_id}")
        log = self.job_log(job_id)
        assert text in log, f"no {text!r} before the end:\n{log}\n{self.job_log(job_id, 'train_simple.err')}"

    def last(self, folder: str) -> dict:
        return torch.load(self.folder / folder / "last.pt", weights_only=True)


def run_time(job: dict[str, str]) -> int:
    """How long a job has run, in seconds."""
    minutes, seconds = map(int, job["RunTime"].split(":")[1:])
    return 60 * minutes + seconds


@pytest.fixture(scope="module", name="user")
def a_user(cluster: Cluster, repository: Path) -> User:
    return User(cluster, repository)


@pytest.fixture(scope="module", name="dataset")
def a_dataset(user: User) -> Path:
    """The dataset, made by a job. A second job finds it complete."""
    settings = ["--segment_duration", "1", "--max_pairs", "30", "--val_pairs", "6"]
    music = {"/work/PROJECT/$USER/music": str(user.folder / "music")}
    for command in (
        "sbatch create_dataset_pairs_levante.sh",
        "sbatch create_dataset_pairs_levante.sh --input_dir /work/PROJECT/$USER/music",
    ):
        job = user.submit(command, *settings, replace=music)
        assert user.cluster.wait(job)["JobState"] == "COMPLETED", user.log("dataset_pairs.err")
        assert f"== job {job}, start 1, on node" in user.log("dataset_pairs.out")
    assert (user.folder / "dataset_pairs_wav" / "metadata.txt").exists()
    user.run("tail -f logs/dataset_pairs.out", replace={"tail -f": "timeout 1 tail -f"}, status=124)
    assert user.run("python train_simple_ddp.py --check_only", "--device", "cpu", *CODEC).startswith("ready: ")
    return user.folder / "dataset_pairs_wav"


class Uninterrupted:
    """The uninterrupted training that all others are compared with."""

    def __init__(self, user: User):
        self.job = user.submit("sbatch run_train_simple.sh", *TINY)
        assert self.job in user.run("squeue --me")
        ended = user.cluster.wait(self.job, timeout_s=200)
        assert ended["JobState"] == "COMPLETED", user.log() + user.log("train_simple.err")
        user.run("tail -f logs/train_simple.out", replace={"tail -f": "timeout 1 tail -f"}, status=124)
        self.last = user.last("checkpoints_simple")


@pytest.fixture(scope="module", name="uninterrupted")
def an_uninterrupted_training(user: User, dataset: Path) -> Uninterrupted:
    return Uninterrupted(user)


def assert_same_end(user: User, folder: str, uninterrupted: Uninterrupted) -> None:
    """Check that weights, optimizer, scheduler, best epoch and metrics equal the uninterrupted training's."""
    last = user.last(folder)
    assert set(last["model"]) == set(uninterrupted.last["model"])
    for name, tensor in uninterrupted.last["model"].items():
        assert torch.equal(tensor, last["model"][name]), name
    for key, state in uninterrupted.last["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(last["optimizer"]["state"][key][name]))
    assert last["scheduler"] == uninterrupted.last["scheduler"]
    for name in ("best_mse", "best_epoch", "epoch"):
        assert last[name] == uninterrupted.last[name]
    metrics = [
        [{k: v for k, v in json.loads(line).items() if k != "pairs_per_second"} for line in path.open()]
        for path in (user.folder / folder / "metrics.jsonl", user.folder / "checkpoints_simple" / "metrics.jsonl")
    ]
    assert metrics[0] == metrics[1]
