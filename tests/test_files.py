"""Files appear complete or not at all, errors name them, and only one process can lock a folder."""

import errno
import fcntl
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


@pytest.mark.parametrize("has_locks", [True, False])
def test_partial_files_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path, monkeypatch, has_locks):
    code = "import os, sys; from common.files import atomic_write as w\n"
    code += "with w(sys.argv[1] + '/half'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    own = [tmp_path / name for name in ("mine.part", ".mine.part", "a.abcdefgh.part")]
    for path in own:
        path.write_text("mine")
    if not has_locks:
        monkeypatch.setattr("fcntl.flock", no_locks)
        remove_partial_files(tmp_path)
        assert left.exists(), "it could be a living process's"
        os.utime(left, (0, 0))
    with atomic_write(tmp_path / "whole") as temporary:
        remove_partial_files(tmp_path)
        assert temporary.exists() and not left.exists()
    assert set(tmp_path.iterdir()) == {*own, tmp_path / "whole"}


def test_a_partial_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, removed = fcntl.flock, []

    def too_late(handle: int, how: int) -> None:
        if not removed:
            removed.append(next(tmp_path.iterdir()))
            removed[0].unlink()
        lock(handle, how)

    monkeypatch.setattr("fcntl.flock", too_late)
    with atomic_write(tmp_path / "whole") as temporary:
        temporary.write_text("whole")
    assert removed and [path.name for path in tmp_path.iterdir()] == ["whole"]


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
