"""Unusual machines: containers, odd file systems, and variables left by launchers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, UNTRAINED, one_line, run_script
from training_runs import command, metrics

from common import devices, machine
from common.devices import free_memory

STARTS_AT_ONCE = ["create_dataset_pairs_wav.py", "train_simple_ddp.py"]
STARTS_AT_ONCE += ["generate_continuation.py", "evaluate_continuation.py"]


def in_namespace(setup: str, *args: object, **env: str) -> subprocess.CompletedProcess:
    """Run a script in its own mount namespace, after shell commands that change the mounts."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    script, *rest = args
    line = [sys.executable, str(ROOT / script), *map(str, rest)]
    words = ["unshare", "-m", "sh", "-c", f'{setup} && exec "$@"', "sh", *line]
    return subprocess.run(words, env=os.environ | env, capture_output=True, text=True, timeout=200)


# ------------------------------------------------------------------ containers


@pytest.mark.slow
def test_a_user_without_a_name_can_train(small_dataset, tmp_path):
    """As in docker run -u 12345: no passwd entry, no USER, no home. A user namespace lets it read Python's files."""
    as_nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if not shutil.which("unshare") or subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    nameless = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME")}
    words = [sys.executable, *command(small_dataset, tmp_path, "--epochs", 1)]
    done = subprocess.run([*as_nobody, *map(str, words)], cwd=ROOT, env=nameless, capture_output=True, text=True)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


@pytest.mark.slow
def test_two_processes_train_where_dev_shm_is_read_only(small_dataset, tmp_path):
    args = command(small_dataset, tmp_path, "--epochs", 1, "--num_processes", 2)
    done = in_namespace("mount -t tmpfs -o ro none /dev/shm", *args)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


GROUP = "sys/fs/cgroup/a"
V1 = {"proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n"}
V1_CPU, V1_MEMORY = "sys/fs/cgroup/cpu/a/cpu.cfs", "sys/fs/cgroup/memory/a/memory"


def write_files(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        (V1 | {f"{V1_CPU}_quota_us": "400000\n", f"{V1_CPU}_period_us": "100000\n"}, 4),
        ({}, float("inf")),
    ],
    ids=["v2", "no limit", "v1", "no cgroups"],
)
def test_cores_respect_a_containers_quota(tmp_path, files, cores, monkeypatch):
    assert machine.cgroup_cores(write_files(tmp_path, files)) == cores
    monkeypatch.setattr(machine, "cgroup_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.available_cores() == min(64, cores)


@pytest.mark.parametrize(
    "files, left",
    [
        ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/memory.max": "8\n", f"{GROUP}/memory.current": "3\n"}, 5),
        (
            {"proc/self/cgroup": "0::/a\n", f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "3\n"},
            float("inf"),
        ),
        (V1 | {f"{V1_MEMORY}.limit_in_bytes": "9\n", f"{V1_MEMORY}.usage_in_bytes": "1\n"}, 8),
    ],
    ids=["v2", "no limit", "v1"],
)
def test_memory_respects_a_containers_limit(tmp_path, files, left, monkeypatch):
    assert machine.cgroup_memory(write_files(tmp_path, files)) == left
    monkeypatch.setattr(devices, "cgroup_memory", lambda: left)
    assert free_memory(torch.device("cpu"), 2) <= left / 2


# ------------------------------------------------------------------ launchers and shells


def test_a_launchers_leftover_variables_are_named_or_ignored(small_dataset, tmp_path, fails, run, monkeypatch):
    train = command(small_dataset, tmp_path, "--epochs", 1)
    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    run(*train)  # without RANK they are ignored
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    fails(*train, says="RANK is set but MASTER_ADDR is not; start with torchrun, or unset RANK and WORLD_SIZE")
    monkeypatch.setenv("WORLD_SIZE", "two")
    fails(*train, says="WORLD_SIZE='two': not a whole number")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "")
    assert "already finished" in run(*train).stdout


@pytest.mark.parametrize("script", STARTS_AT_ONCE)
def test_help_starts_from_anywhere_and_does_not_import_torch(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    assert "usage" in run_script(script, "--help", cwd=tmp_path, **environment).stdout
    run_script(script, "--no_such_flag", cwd=tmp_path, status=2, **environment)


def test_a_dataset_is_created_without_importing_torch(small_music, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    folders = ("--input_dir", small_music, "--output_dir", tmp_path / "dataset")
    run_script("create_dataset_pairs_wav.py", *folders, "--segment_duration", 1, PYTHONPATH=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0, 4])
def test_ctrl_c_while_processes_start_gives_one_line(small_dataset, tmp_path, delay_s):
    words = [sys.executable, *command(small_dataset, tmp_path, "--num_processes", 2)]
    process = subprocess.Popen(
        [*map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 60
    while time.monotonic() < end and len(children.read_text().split()) < 2:
        time.sleep(0.01)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and len(said.splitlines()) == 1 and "interrupted" in said, said


@pytest.mark.slow
def test_a_training_with_closed_stdout(small_dataset, tmp_path):
    words = [sys.executable, ROOT / "train_simple_ddp.py", *command(small_dataset, tmp_path, "--epochs", 1)[1:]]
    line = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


# ------------------------------------------------------------------ file systems


@pytest.mark.slow
def test_a_read_only_home_gives_one_line_that_names_the_remedy(small_dataset, tmp_path):
    args = ("train_simple_ddp.py", "--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path / "run")
    proxy = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    setup = f"mount -t tmpfs -o ro none {tmp_path / 'home'}"
    line = one_line(in_namespace(setup, *args, **proxy).stderr, "no EnCodec weights at")
    assert "set TORCH_HOME to use another folder" in line and "--encodec_weights FILE" in line


@pytest.mark.slow
def test_a_read_only_dataset_gives_one_line_that_names_cache_dir(small_dataset, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(small_dataset, folder, ignore=lambda *_: [".embedding_cache"])
    args = ("train_simple_ddp.py", "--dataset_dir", folder, "--checkpoint_dir", tmp_path / "run", *UNTRAINED)
    setup = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    one_line(in_namespace(setup, *args).stderr, "choose another folder with --cache_dir")


def test_a_gpu_whose_driver_is_too_old_is_named_with_both_versions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 11040, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(
        devices.UserError, match=r"driver is too old \(it supports CUDA 11\.4, torch .* was built for 12\.8\)"
    ):
        devices.pick_device("cuda")


def test_nothing_of_this_machine_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if name.endswith((".py", ".sh", ".md", ".txt", ".toml", ".j2")) and Path(name).name != Path(__file__).name:
            text = (ROOT / name).read_text()
            assert "/work/" + "main" not in text and "/Users/" not in text, name
