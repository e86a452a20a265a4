"""The two job scripts on a real SLURM: from sbatch to best_model.pt, through every way in which a job can end.

Whatever happens to a training, it ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slurm_cluster import launcher, workers
from slurm_user import (  # noqa: F401 (fixtures, used by their names)
    CODEC,
    EPOCHS,
    TINY,
    Uninterrupted,
    User,
    a_cluster,
    a_dataset,
    a_repository,
    a_user,
    an_uninterrupted_training,
    assert_same_end,
    run_time,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(240)]
TWO_GPUS = "--gpus-per-node=2"  # four workers take longer to start


# ------------------------------------------------------------------ a job that nothing disturbs


def test_from_sbatch_to_best_model(user: User, uninterrupted: Uninterrupted) -> None:
    log = user.log()
    commit = user.shell("git describe --always")
    assert f"commit {commit}" in log.splitlines()[0]
    assert log.startswith(f"== job {uninterrupted.job}, start 1, on node")
    assert f"== job {uninterrupted.job}, start 1" in user.log("train_simple.err")
    assert "batch 1 x 4 = 4" in log and "4 x cpu" in log
    assert [f"epoch {epoch:3d}/" in log for epoch in range(1, EPOCHS + 1)] == [True] * EPOCHS
    assert (user.folder / "checkpoints_simple" / "best_model.pt").exists()
    assert (user.folder / "checkpoints_simple" / "checkpoint_epoch_10.pt").exists()
    assert "Traceback" not in user.log("train_simple.err")
    assert not list((user.folder / "logs").glob(".started_*"))


def test_finished_training_submitted_again_says_so(user: User, uninterrupted: Uninterrupted) -> None:
    command = "sbatch --dependency=afterany:JOBID run_train_simple.sh"
    job = user.submit(command, *TINY, options=TWO_GPUS, replace={"JOBID": uninterrupted.job})
    assert user.cluster.wait(job)["ExitCode"] == "0:0"
    assert "already finished" in user.job_log(job)
    assert torch.equal(user.last("checkpoints_simple")["model"]["mean"], uninterrupted.last["model"]["mean"])


# ------------------------------------------------------------------ jobs that are interrupted


def test_a_killed_canceled_or_requeued_training_gives_the_same_result(
    user: User, dataset: Path, uninterrupted: Uninterrupted
) -> None:
    """One training is interrupted in each way, one after the other."""
    folder = "checkpoints_cut"

    def submit() -> str:
        options = "--signal=B:USR2@20"
        return user.submit("sbatch run_train_simple.sh", *TINY, "--checkpoint_dir", folder, options=options)

    job = submit()
    user.await_line("epoch   2/", job)
    started = time.monotonic()
    os.kill(workers(job)[2], signal.SIGKILL)
    ended = user.cluster.wait(job, timeout_s=60)
    assert ended["JobState"] == "FAILED" and time.monotonic() - started < 60
    assert not workers(job)
    assert "Signal 9 (SIGKILL)" in user.job_log(job, "train_simple.err").rpartition("Root Cause")[2]

    job = submit()
    user.await_line("resuming", job)
    done = user.last(folder)["epoch"]
    user.await_line(f"epoch {done + 2:3d}/", job)
    user.run("scancel JOBID", replace={"JOBID": job})
    assert user.cluster.wait(job, timeout_s=60)["JobState"] == "CANCELLED"
    assert user.last(folder)["epoch"] >= done + 1

    job = submit()
    user.await_line("resuming", job)
    done = user.last(folder)["epoch"]
    user.await_line(f"epoch {done + 1:3d}/", job)
    frozen = workers(job)[0]
    os.kill(frozen, signal.SIGSTOP)  # all others wait for it, so the time limit comes during training
    user.shell(f"scontrol update jobid={job} TimeLimit=1")
    user.await_line("warned by SLURM, stopping the training", job)
    with contextlib.suppress(ProcessLookupError):  # ended already
        os.kill(frozen, signal.SIGCONT)
    user.await_line("requeueing before the time limit", job)
    user.cluster.wait(job, "PENDING")
    user.shell(f"scontrol update jobid={job} TimeLimit=60")
    user.cluster.start_requeued(job)
    ended = user.cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert f"== job {job}, start 2, on" in user.log() and "resuming" in user.log()
    assert_same_end(user, folder, uninterrupted)


def test_a_job_that_achieves_nothing_does_not_requeue(user: User, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """The workers hang in the first epoch, so the job fails at the warning before its time limit."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "if 'RANK' in os.environ:\n"
        "    import torch\n"
        "    torch.optim.AdamW.step = lambda *_: time.sleep(600)\n"
    )
    command = "sbatch run_train_simple.sh --epochs 50 --checkpoint_dir checkpoints_50"
    arguments = (*TINY, "--checkpoint_dir", "checkpoints_stuck")
    job = user.submit(command, *arguments, options=TWO_GPUS, PYTHONPATH=str(tmp_path))
    user.await_line("baselines", job)
    user.run("scancel --signal=USR2 --batch JOBID", replace={"JOBID": job})
    assert user.cluster.wait(job, timeout_s=90)["JobState"] == "FAILED"
    errors = user.job_log(job, "train_simple.err").rstrip().splitlines()
    assert "neither an epoch nor an embedding was finished before the time limit" in errors[-1]


def await_next_epoch(user: User, folder: str, job: str) -> None:
    """Wait until a resumed training has finished an epoch."""
    user.await_line("resuming", job)
    user.await_line(f"epoch {user.last(folder)['epoch'] + 1:3d}/", job)


def test_two_nodes_end_together_and_resume(user: User, dataset: Path, uninterrupted: Uninterrupted) -> None:
    """2 nodes x 2 GPUs give the same numbers as 1 x 4, because both have 4 ranks. Both nodes fill the cache."""
    folder, cache = "checkpoints_two_nodes", user.folder / "cache_two"

    def submit() -> str:
        command = "sbatch --nodes=2 run_train_simple.sh --checkpoint_dir checkpoints_two_nodes"
        return user.submit(command, *TINY, "--cache_dir", str(cache), options=TWO_GPUS)

    job = submit()
    user.await_line("epoch   2/", job)
    assert sorted(workers(job)) == [0, 1, 2, 3]
    nodes = {Path(f"/proc/{pid}/environ").read_bytes().split(b"SLURMD_NODENAME=")[1][:5] for pid in
             workers(job).values()}  # fmt: skip
    assert nodes == {b"node1", b"node2"}
    user.run("scancel --signal=USR2 --batch JOBID", replace={"JOBID": job})
    user.cluster.start_requeued(job)
    await_next_epoch(user, folder, job)
    log = user.log().partition(f"== job {job}, start 1")[2]
    assert "requeueing" in log and "batch 1 x 4 = 4" in log

    os.kill(launcher(job, "node2"), signal.SIGKILL)
    assert user.cluster.wait(job, timeout_s=60)["JobState"] == "FAILED"
    user.cluster.until(lambda: not workers(job), 10, "end of the workers on both nodes")

    assert user.cluster.wait(submit(), timeout_s=120)["JobState"] == "COMPLETED"
    log = user.log().partition("checkpoints_two_nodes")[2]
    assert log.count("encoding ") == 1, "the cache is filled once"
    written = [path.name for path in cache.rglob("*.npy")]
    assert len(written) == len(set(written)) > 20 and not list(cache.rglob("*.part"))
    assert_same_end(user, folder, uninterrupted)


def test_one_workers_error_ends_all_and_its_traceback_comes_last(user: User, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import torch\n"
        "    steps = []\n"
        "    def step(self, closure=None):\n"
        "        steps.append(1)\n"
        "        if len(steps) == 5: raise RuntimeError('broken on purpose')\n"
        "    torch.optim.AdamW.step = step\n"
    )
    command = "sbatch run_train_simple.sh --epochs 50 --checkpoint_dir checkpoints_50"
    job = user.submit(command, *TINY, options=TWO_GPUS, PYTHONPATH=str(tmp_path))
    ended = user.cluster.wait(job)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] != "0:0"
    assert run_time(ended) < 60
    assert not workers(job)
    errors = user.job_log(job, "train_simple.err")
    root_cause = errors.rpartition("Root Cause")[2]
    assert "RuntimeError: broken on purpose" in root_cause and "in train_epoch" in root_cause
    after = [line for line in root_cause.partition("====")[2].splitlines() if line.strip("=")]
    assert all(line.startswith(("srun:", "slurmstepd:")) for line in after), after


# ------------------------------------------------------------------ wrong use


@pytest.fixture
def silent_network() -> Iterator[str]:
    """A proxy that accepts connections and never answers, as some compute nodes' networks do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_wrong_use_ends_in_seconds_with_one_line(
    user: User, dataset: Path, tmp_path: Path, silent_network: str
) -> None:
    elsewhere, bare = tmp_path / "elsewhere", tmp_path / "bare"
    (elsewhere / "logs").mkdir(parents=True)
    (bare / "logs").mkdir(parents=True)
    for path in user.folder.glob("*.??"):
        if path.suffix in (".py", ".sh"):
            (bare / path.name).symlink_to(path)
    train, make = "run_train_simple.sh", "create_dataset_pairs_levante.sh"
    offline = {"TORCH_HOME": str(tmp_path), "https_proxy": silent_network, "no_proxy": ""}
    no_python = {"PATH": "/usr/bin:/bin"}
    cases = {  # name: (folder, command, environment, what the line must say)
        "no_weights": (user.folder, [train, "--device", "cpu"], offline, "python test_simple_setup.py"),
        "no_gpu_seen": (user.folder, [train, *CODEC], {}, "torch sees no CUDA GPU"),
        "no_gpu_given": (user.folder, ["--gpus-per-node=0", train, *TINY], {}, "--gpus-per-node"),
        "no_dataset": (user.folder, [train, *TINY, "--dataset_dir", "nothing"], {}, "create the dataset first"),
        "no_python": (bare, [train, *TINY], no_python, "create .venv first"),
        "not_the_repository": (elsewhere, [user.folder / train, *TINY], {}, "call sbatch from its folder"),
        "make_no_music": (user.folder, [make, "--input_dir", "nothing"], {}, "nothing"),
    }
    if torch.cuda.is_available():
        del cases["no_gpu_seen"]
    jobs = {
        name: User(user.cluster, folder)
        .shell("sbatch --parsable", f"-o logs/{name}.out -e logs/{name}.err", *map(str, command), env=environment)
        .strip()
        for name, (folder, command, environment, _) in cases.items()
    }
    for name, (folder, _, _, says) in cases.items():
        ended = user.cluster.wait(jobs[name], timeout_s=120)
        errors = User(user.cluster, folder).log(f"{name}.err").splitlines()
        lines = [line for line in errors if not line.startswith("== job")]
        assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "1:0", name
        assert len(lines) == 1 and says in lines[0] and ": error: " in lines[0], f"{name}: {lines}"
        assert run_time(ended) < (45 if name == "no_weights" else 20), name
    # Without logs/ SLURM has nowhere to write and ends the job by itself.
    shutil.rmtree(elsewhere / "logs")
    job = User(user.cluster, elsewhere).shell("sbatch --parsable", str(user.folder / train))
    assert user.cluster.wait(job)["JobState"] == "FAILED"


# These need a login node with a network, Levante's modules, or a project. `make install` does the same.
ON_A_LOGIN_NODE = [
    "cd /work/PROJECT/$USER",
    "git clone URL Jingle_D",
    "cd Jingle_D",
    "module load python3",
    "python3 -m venv .venv",
    "source .venv/bin/activate",
    "pip install -r requirements.txt",
    "python test_simple_setup.py",
    "export SBATCH_ACCOUNT=PROJECT",  # holds for all tests here
]


def test_every_command_of_the_page_was_tried(user: User, request: pytest.FixtureRequest) -> None:
    if len({item.nodeid for item in request.session.items if item.path == request.path}) < 7:
        pytest.skip("needs the other tests of this file to have run")
    assert set(user.page_lines()) == user.tried | set(ON_A_LOGIN_NODE)
