"""Progress: what a log and a terminal show during long work."""

from __future__ import annotations

import sys

import pytest

from common import progress as module
from common.progress import Progress


@pytest.fixture()
def clock(monkeypatch):
    """A clock that moves only when a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute_with_the_time_left(capsys, clock):
    progress = Progress()
    for done in range(101):
        progress(done, 100, "tracks cut")
        clock[0] += 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 of 100 tracks cut, 6 min left"
    assert 11 <= len(lines) <= 13 and all("of 100 tracks cut, " in line for line in lines)


def test_short_work_prints_nothing_and_new_work_starts_over(capsys, clock):
    progress = Progress()
    assert list(progress.over("abc", 3, "tracks cut")) == ["a", "b", "c"]
    clock[0] += 100
    progress(0.5, 2.0, "h of audio encoded")
    clock[0] += 60
    progress(1.0, 2.0, "h of audio encoded")
    assert capsys.readouterr().out == "1.00 of 2.00 h of audio encoded, 1 min left\n"


def test_a_terminal_shows_lines_above_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress()
    for song in progress.over(["one", "two"], 2, "songs continued"):
        progress.print(f"{song} is done")
    out, err = capsys.readouterr()
    assert out.splitlines() == ["one is done", "two is done"]
    assert "2 of 2 songs continued" in err or "0 of 2 songs continued" in err
    assert err.endswith("\r"), "the bar is wiped away when all is done"
