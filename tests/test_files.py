"""Files appear complete or not at all, errors name them, and only one process can lock a folder."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from common.errors import UserError, describe_os_error, printable
from common.files import atomic_write, lock_folder, remove_partial_files


def test_atomic_write_replaces_at_the_end_and_leaves_nothing_behind(tmp_path, monkeypatch):
    target = Path(tmp_path, "a" * 250)
    target.write_text("old")
    with monkeypatch.context() as patched, pytest.raises(OSError) as caught:
        patched.setattr("os.fsync", no_space)
        atomic_write(target, "half", sync=True)
    assert target.read_text() == "old" and os.listdir(tmp_path) == [target.name]
    expected = f"{target}: No space left on device; free some space, then run the same command again"
    assert describe_os_error(caught.value) == expected
    atomic_write(target, "new", sync=True)
    assert target.read_text() == "new" and os.listdir(tmp_path) == [target.name]
    os.umask(before := os.umask(0))
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~before


def no_space(_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_file_names_are_printed_as_one_line_of_text():
    assert printable("a\nb\x1b[2J\udcff") == r"a\nb\x1b[2J\xff"


def test_partial_files_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    code = "import os, sys; from common.files import atomic_write as w\n"
    code += "os.replace = lambda *_: os.kill(os.getpid(), 9); w(sys.argv[1] + '/whole', 'half')"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    own = {tmp_path / name for name in ("mine.part", ".mine.part", "a.12345678.part")}
    for path in own:
        path.write_text("mine")
    remove_partial_files(tmp_path)
    assert left.exists(), "it could be a living process's"
    with lock_folder(tmp_path, "the only process that writes here"):
        assert not left.exists()
    left.write_text("half")
    os.utime(left, (0, 0))
    remove_partial_files(tmp_path)
    assert set(tmp_path.iterdir()) == {*own, tmp_path / ".lock"}


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOTSUP, "Operation not supported")


def test_the_error_names_the_process_that_holds_a_folder(tmp_path, monkeypatch):
    with (
        lock_folder(tmp_path, "an evaluation"),
        pytest.raises(UserError, match=rf"{tmp_path}: in use by an evaluation \(process {os.getpid()} on "),
        lock_folder(tmp_path, "another"),
    ):
        pass

    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock_folder(tmp_path, "a training"), lock_folder(tmp_path, "another"):
        pass
