"""Progress: what a log shows during long work."""

from __future__ import annotations

from common import progress as module
from common.progress import Progress


def test_a_log_gets_a_line_every_half_minute_with_the_time_left(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress = Progress()
    for done in range(101):
        progress(done, 100, "tracks cut")
        now += 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 of 100 tracks cut, 6 min left"
    assert 11 <= len(lines) <= 13 and all("of 100 tracks cut, " in line for line in lines)
