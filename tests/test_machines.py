"""Unusual machines: containers, odd file systems, and variables left by launchers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from training_runs import command, metrics

from common import devices, machine
from common.devices import free_memory

STARTS_AT_ONCE = ["create_dataset_pairs_wav.py", "train_simple_ddp.py"]
STARTS_AT_ONCE += ["generate_continuation.py", "evaluate_continuation.py"]


# ------------------------------------------------------------------ containers


@pytest.mark.slow
def test_a_user_without_a_name_and_without_stdout_can_train(small_dataset, tmp_path):
    """As in docker run -u 12345: no passwd entry, no USER, no home. A user namespace lets it read Python's files."""
    as_nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if not shutil.which("unshare") or subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    nameless = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME")}
    words = [*as_nobody, sys.executable, *command(small_dataset, tmp_path, "--epochs", 1)]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, words)]
    done = subprocess.run(closed, cwd=ROOT, env=nameless, capture_output=True, text=True)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


GROUP = "sys/fs/cgroup/a"
V1_CPU, V1_MEMORY = "sys/fs/cgroup/cpu/a/cpu.cfs", "sys/fs/cgroup/memory/a/memory"


@pytest.mark.parametrize(
    "files, cores, memory",
    [
        (
            {"proc/self/cgroup": "0::/a\n", f"{GROUP}/cpu.max": "200000 100000\n"}
            | {f"{GROUP}/memory.max": "8\n", f"{GROUP}/memory.current": "3\n"},
            2,
            5,
        ),
        (
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
            | {f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "3\n"},
            float("inf"),
            float("inf"),
        ),
        (
            {"proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n"}
            | {f"{V1_CPU}_quota_us": "400000\n", f"{V1_CPU}_period_us": "100000\n"}
            | {f"{V1_MEMORY}.limit_in_bytes": "9\n", f"{V1_MEMORY}.usage_in_bytes": "1\n"},
            4,
            8,
        ),
        ({}, float("inf"), float("inf")),
    ],
    ids=["v2", "no limit", "v1", "no cgroups"],
)
def test_cores_and_memory_respect_a_containers_limits(tmp_path, files, cores, memory, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cgroup_cores(str(tmp_path)) == cores
    assert machine.cgroup_memory(str(tmp_path)) == memory
    monkeypatch.setattr(machine, "cgroup_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.available_cores() == min(64, cores)
    monkeypatch.setattr(devices, "cgroup_memory", lambda: memory)
    assert free_memory(torch.device("cpu"), 2) <= memory / 2


# ------------------------------------------------------------------ launchers and shells


def test_a_launchers_leftover_variables_are_ignored(small_dataset, tmp_path, run, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    run(*command(small_dataset, tmp_path, "--epochs", 1))


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


def test_a_home_that_cannot_be_written_gives_one_line_that_names_the_remedy(
    small_dataset, tmp_path, fails, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folders = ("--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path / "run")
    line = fails("train_simple_ddp.py", *folders, says="no EnCodec weights at")
    assert "set TORCH_HOME to use another folder" in line and "--encodec_weights FILE" in line


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
