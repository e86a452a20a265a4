"""Full disk, file-size limit, read-only folder, no permission: one line, nothing lost, and the run resumes.

They mount a small tmpfs, so they run as root on Linux only.
"""

import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import CODEC, main_of, one_line_error
from soak_kill import check_what_is_there, difference, outcome

pytestmark = pytest.mark.slow
DISK_KB = 32 * 1024


@pytest.fixture
def disk():
    """A folder with its own 32 MB file system that any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="disk_"))
    folder.chmod(0o755)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "none", folder]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        mounted = subprocess.CompletedProcess(command, 1, stderr="no mount command")
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def leave_free(disk: Path, kilobytes: int) -> None:
    """Fill the disk until only so many kilobytes are free."""
    (disk / "filler").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - 1024 * kilobytes))


@pytest.fixture
def try_command(capfd):
    """Run a command in this process. Returns its exit status and its stderr without banners."""

    def run_here(command: list[object]) -> tuple[int, str]:
        capfd.readouterr()
        status = main_of(*command)
        lines = capfd.readouterr().err.splitlines()
        return status, "\n".join(line for line in lines if not line.startswith("***"))

    return run_here


def commands(folder: Path, small_music: Path, small_dataset: Path, trained: Path) -> dict[str, list[object]]:
    """The commands of all scripts that write files. They write into `folder` and read from elsewhere."""
    return {
        "create": [
            "create_dataset_pairs_wav.py", "--input_dir", small_music, "--output_dir", folder / "out",
            "--segment_duration", 1, "--num_workers", 1,
        ],
        "train": [
            "train_simple_ddp.py", "--dataset_dir", small_dataset, "--cache_dir", folder / "cache", "--checkpoint_dir",
            folder / "out", "--num_layers", 1, "--epochs", 2, "--checkpoint_every", 1, *CODEC,
        ],
        "generate": [
            "generate_continuation.py", small_music / "track_0.wav", "--checkpoint", trained / "best_model.pt",
            "--output_dir", folder / "out", *CODEC,
        ],
        "evaluate": [
            "evaluate_continuation.py", "--dataset_dir", small_dataset, "--cache_dir", folder / "cache", "--checkpoint",
            trained / "best_model.pt", "--output_dir", folder / "out", "--num_examples", 1, "--max_sound_pairs", 1,
            *CODEC,
        ],
    }  # fmt: skip


SCRIPTS = ("create", "train", "generate", "evaluate")


def is_one_line(stderr: str, *parts: str) -> bool:
    return len(stderr.splitlines()) == 1 and "error: " in stderr and all(part in stderr for part in parts)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_disk_gives_one_line_and_the_run_resumes(
    script, disk, try_command, rng, small_music, small_dataset, trained
):
    """First it has a random share of the space that it needs, then enough."""
    folder = disk / "work"
    command = commands(folder, small_music, small_dataset, trained)[script]
    folder.mkdir()
    assert try_command(command)[0] == 0
    expected = outcome(folder)
    needed_kb = shutil.disk_usage(disk).used // 1024
    shutil.rmtree(folder)
    folder.mkdir()
    leave_free(disk, int(rng.uniform(0, 1) * needed_kb))
    status, stderr = try_command(command)
    assert status == 1 and is_one_line(stderr, f"{folder}/", "No space left on device; free some space"), stderr
    assert not check_what_is_there(folder, expected), "something half-written is left"
    (disk / "filler").unlink()
    assert try_command(command)[0] == 0 and not difference(expected, outcome(folder))


def test_a_full_disk_with_two_processes_gives_one_line_too(disk, small_music, small_dataset, trained):
    """The disk is full while both fill the cache, and while one saves and the other waits."""
    folder = disk / "work"
    script, *arguments = commands(folder, small_music, small_dataset, trained)["train"]
    command = (script, *arguments, "--num_processes", 2, "--batch_size", 3)
    for free_kb, name in ((200, "cache/"), (1500, "out/last.pt")):
        leave_free(disk, free_kb)
        line = one_line_error(*command, says="No space left on device; free some space")
        assert name in line and not list(folder.rglob("*.part"))


def test_a_limit_on_the_size_of_files_gives_one_line(tmp_path, try_command, small_music, small_dataset, trained):
    command = commands(tmp_path, small_music, small_dataset, trained)["train"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * 1024, before[1]))
    try:
        status, stderr = try_command(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1 and is_one_line(stderr, f"{tmp_path}/out/last.pt", "File too large; raise the limit"), stderr


@pytest.mark.parametrize("script", ["create", "train", "evaluate"])
def test_a_read_only_folder_gives_one_line(script, disk, try_command, small_music, small_dataset, trained):
    command = commands(disk / "work", small_music, small_dataset, trained)[script]
    for folder in (disk, disk / "work" / "out"):  # the output folder is missing, then it exists
        folder.mkdir(parents=True, exist_ok=True)
        remount(disk, "ro")
        status, stderr = try_command(command)
        assert status == 1 and is_one_line(stderr, f"{disk}/work", "Read-only file system; fix its permissions"), stderr
        remount(disk, "rw")


def test_a_read_only_dataset_trains_if_its_cache_is_full(
    disk, try_command, tmp_path, small_music, small_dataset, trained
):
    """Otherwise one line names --cache_dir."""
    shutil.copytree(small_dataset, disk / "dataset")
    remount(disk, "ro")
    script, *arguments = commands(tmp_path, small_music, disk / "dataset", trained)["train"]
    at = arguments.index("--cache_dir")
    command = [script, *arguments[:at], *arguments[at + 2 :]]
    assert try_command(command) == (0, "")
    remount(disk, "rw")
    shutil.rmtree(disk / "dataset" / ".embedding_cache")
    remount(disk, "ro")
    status, stderr = try_command(command)
    assert status == 1 and is_one_line(stderr, "choose another folder with --cache_dir"), stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize("script", ["create", "train"])
def test_a_folder_that_is_another_users_gives_one_line(script, disk, try_command, small_music, small_dataset, trained):
    (disk / "work" / "out").mkdir(parents=True)
    shutil.copytree(small_music, disk / "music")
    shutil.copytree(small_dataset, disk / "dataset")
    command = commands(disk / "work", disk / "music", disk / "dataset", trained)[script]
    os.seteuid(65534)
    try:
        status, stderr = try_command(command)
    finally:
        os.seteuid(0)
    assert status == 1 and is_one_line(stderr, f"{disk}/work/", "Permission denied; fix its permissions"), stderr
