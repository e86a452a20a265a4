"""Machines that people have: containers, odd file systems, launchers' leftovers."""

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
    """Run a script in a mount namespace of its own, after shell commands that change what is mounted there."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    script, *rest = args
    line = [sys.executable, str(ROOT / script), *map(str, rest)]
    words = ["unshare", "-m", "sh", "-c", f'{setup} && exec "$@"', "sh", *line]
    return subprocess.run(words, env=os.environ | env, capture_output=True, text=True, timeout=200)


# ------------------------------------------------------------------ containers


@pytest.mark.slow
def test_a_user_without_a_name_trains(small_dataset, tmp_path):
    """docker run -u 12345: no passwd entry, no USER, no home. A user namespace, so that Python can be read."""
    as_nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if not shutil.which("unshare") or subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    nameless = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME")}
    words = [sys.executable, *command(small_dataset, tmp_path, "--epochs", 1)]
    done = subprocess.run([*as_nobody, *map(str, words)], cwd=ROOT, env=nameless, capture_output=True, text=True)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", ["ro", "rw,size=64m"])
def test_a_small_or_read_only_dev_shm_trains_with_two_processes(small_dataset, tmp_path, options):
    args = command(small_dataset, tmp_path, "--epochs", 1, "--num_processes", 2)
    done = in_namespace(f"mount -t tmpfs -o {options} none /dev/shm", *args)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/docker/abc/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ({}, float("inf")),
    ],
    ids=["v2", "v2 in a container", "no limit", "v1", "no cgroups"],
)
def test_cores_respect_a_containers_quota(tmp_path, files, cores, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cgroup_cores(str(tmp_path)) == cores
    monkeypatch.setattr(machine, "cgroup_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.available_cores() == min(64, max(1, int(cores) if cores < 64 else 64))


V2 = "sys/fs/cgroup/a/memory"


@pytest.mark.parametrize(
    "files, left",
    [
({"proc/self/cgroup": "0::/a\n", f"{V2}.max": "8000\n", f"{V2}.current": "3000\n"}, 5000),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}.max": "max\n", f"{V2}.current": "3\n"}, float("inf")),
        (
            {
                "proc/self/cgroup": "5:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "900\n",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "100\n",
            },
            800,
        ),
    ],
    ids=["v2", "no limit", "v1"],
)  # fmt: skip
def test_memory_respects_a_containers_limit(tmp_path, files, left, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cgroup_memory(str(tmp_path)) == left
    monkeypatch.setattr(devices, "cgroup_memory", lambda: left)
    assert free_memory(torch.device("cpu"), 2) <= left / 2


# ------------------------------------------------------------------ launchers and shells


def test_a_launchers_leftovers_are_named_or_ignored(small_dataset, tmp_path, fails, run, monkeypatch):
    train = command(small_dataset, tmp_path, "--epochs", 1)
    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    run(*train)  # without RANK they do not count
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    fails(*train, says="RANK is set but MASTER_ADDR is not; start with torchrun, or unset RANK and WORLD_SIZE")
    monkeypatch.setenv("WORLD_SIZE", "two")
    fails(*train, says="WORLD_SIZE='two': not a whole number")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "")
    assert "finished already" in run(*train).stdout


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["PYTHONSAFEPATH", "PYTHONOPTIMIZE"])
def test_python_without_its_path_or_its_asserts(variable, tmp_path):
    for script in ("create_dataset_pairs_wav.py", "train_simple_ddp.py", "generate_continuation.py"):
        assert "usage" in run_script(script, "--help", cwd=tmp_path, **{variable: "1"}).stdout
    args = ("--encodec_weights", tmp_path / "none.th")
    lines = run_script("test_simple_setup.py", *args, status=1, cwd=tmp_path, **{variable: "1"}).stdout.splitlines()
    assert lines[-1].startswith("not ready: fix encodec")


@pytest.mark.parametrize("script", STARTS_AT_ONCE)
def test_help_does_not_import_torch(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, ROOT / script]
    for args, status in ((["--help"], 0), (["--no_such_flag"], 2)):
        done = subprocess.run([*words, *args], env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == status and "torch was imported" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", STARTS_AT_ONCE)
def test_ctrl_c_during_imports_is_one_line(script):
    args = ["a.wav"] if script.startswith("generate") else []
    words = [sys.executable, ROOT / script, *args]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    end, maps = time.monotonic() + 60, Path(f"/proc/{process.pid}/maps")
    while time.monotonic() < end and "libtorch" not in maps.read_text():  # torch is being imported
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and said == f"{script}: interrupted\n", said


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0, 0.5, 2, 4, 6])
def test_ctrl_c_while_processes_start_is_one_line(small_dataset, tmp_path, delay_s):
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


def test_a_closed_stdout_is_no_hindrance(small_dataset, tmp_path):
    words = [sys.executable, ROOT / "train_simple_ddp.py", *command(small_dataset, tmp_path, "--epochs", 1)[1:]]
    line = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and len(metrics(tmp_path)) == 1, done.stderr


@pytest.mark.slow
def test_a_notebook_runs_the_scripts(small_music, tmp_path):
    """Jupyter's %run: sys.stdout is an object of its own, without `reconfigure` or a file number."""
    words = ["create_dataset_pairs_wav.py", "--input_dir", small_music, "--output_dir", tmp_path / "data"]
    code = (
        f"import io, runpy, sys; sys.stdout, sys.argv = io.StringIO(), {[*map(str, words), '--segment_duration', '1']}"
    )
    run_as_main = f"runpy.run_path({str(ROOT / words[0])!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", f"{code}; {run_as_main}"], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "data" / "metadata.txt").exists(), done.stderr


# ------------------------------------------------------------------ file systems


@pytest.mark.slow
def test_a_read_only_home_is_one_line_that_names_the_way_out(small_dataset, tmp_path):
    args = ("train_simple_ddp.py", "--dataset_dir", small_dataset, "--checkpoint_dir", tmp_path / "run")
    proxy = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    setup = f"mount -t tmpfs -o ro none {tmp_path / 'home'}"
    line = one_line(in_namespace(setup, *args, **proxy).stderr, "no EnCodec weights at")
    assert "TORCH_HOME moves the folder" in line and "--encodec_weights FILE" in line


@pytest.mark.slow
def test_a_read_only_dataset_is_one_line_that_names_cache_dir(small_dataset, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(small_dataset, folder, ignore=lambda *_: [".embedding_cache"])
    args = ("train_simple_ddp.py", "--dataset_dir", folder, "--checkpoint_dir", tmp_path / "run", *UNTRAINED)
    setup = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    one_line(in_namespace(setup, *args).stderr, "name another folder with --cache_dir")


def test_inode_numbers_beyond_63_bits(small_music, small_dataset, tmp_path, run, monkeypatch):
    """mergerfs and GlusterFS hash their inode numbers to 64 bits."""
    real = os.stat

    def hashed(*args, **kwargs):
        about = real(*args, **kwargs)
        extra = {name: getattr(about, name) for name in dir(about) if name.startswith("st_")}
        return os.stat_result([about[0], 2**64 - 1 - about[1], *about[2:10]], extra)

    monkeypatch.setattr(os, "stat", hashed)
    folder = tmp_path / "data"
    words = ("--input_dir", small_music, "--output_dir", folder, "--segment_duration", 1, "--num_workers", 1)
    run("create_dataset_pairs_wav.py", *words, "--max_pairs", 22, "--val_pairs", 3)
    assert os.stat(folder).st_ino >= 2**63
    assert (folder / "metadata.txt").read_text() == (small_dataset / "metadata.txt").read_text()
    run("dataset_wav_pairs.py", "--dataset_dir", folder, *UNTRAINED)


def test_a_gpu_whose_driver_is_too_old_is_named_with_both_versions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 11040, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(devices.UserError, match=r"driver supports CUDA 11\.4 and torch .* was built for CUDA 12\.8"):
        devices.pick_device("cuda")


def test_out_of_gpu_memory_names_the_batch_size(small_dataset, tmp_path, fails, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("train_simple_worker.train_epoch", too_much)
    fails(
        *command(small_dataset, tmp_path, "--epochs", 1),
        says="--batch_size 16: cpu is out of memory; use a smaller one",
    )


def test_nothing_of_this_machine_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if name.endswith((".py", ".sh", ".md", ".txt", ".toml", ".j2")) and Path(name).name != Path(__file__).name:
            text = (ROOT / name).read_text()
            assert "/work/" + "main" not in text and "/Users/" not in text, name
