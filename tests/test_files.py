"""Files appear whole or not at all, errors name them, and a folder is held by one process."""

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


def test_atomic_write_replaces_at_the_end_and_leaves_nothing_behind(tmp_path):
    target = Path(tmp_path, "a" * 250)
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == [target.name]
    with atomic_write(target, sync=True) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == [target.name]
    os.umask(before := os.umask(0))
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~before


def test_atomic_write_works_where_chmod_is_refused(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_an_error_names_the_file_and_the_remedy(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    expected = f"{tmp_path}/a: No space left on device; free some space, then run the same command again"
    assert describe_os_error(caught.value) == expected
    assert printable("a\nb\x1b[2J\udcff") == r"a\nb\x1b[2J\udcff".replace(r"\udcff", r"\xff")


def test_what_a_killed_process_left_is_removed_with_the_next_lock(tmp_path):
    code = "import os, sys; from common.files import lock_folder, atomic_write as w\n"
    code += "with lock_folder(sys.argv[1], 'killed'), w(sys.argv[1] + '/half'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    (left,) = set(tmp_path.iterdir()) - {tmp_path / ".lock"}
    own = [tmp_path / name for name in ("mine.part", ".mine.part", "a.abcdefgh.part")]
    for path in own:
        path.write_text("mine")
    remove_partial_files(tmp_path, min_age_s=3600)
    assert left.exists(), "it could be another process's"
    with lock_folder(tmp_path, "a test"):
        assert not left.exists()
    assert set(tmp_path.iterdir()) == {*own, tmp_path / ".lock"}


def test_the_error_names_the_process_that_holds_a_folder(tmp_path, monkeypatch):
    with (
        lock_folder(tmp_path, "an evaluation"),
        pytest.raises(UserError, match=rf"{tmp_path}: in use by an evaluation, process {os.getpid()} on "),
        lock_folder(tmp_path, "another"),
    ):
        pass

    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock_folder(tmp_path, "a training"), lock_folder(tmp_path, "another"):
        pass
