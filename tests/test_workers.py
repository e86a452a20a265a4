"""Worker processes: any of them may die, and the results are still complete and in order."""

import os
import signal
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.workers import Workers


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def dies_once(item: tuple[int, Path]) -> int:
    number, marker = item
    if number in (3, 4) and not marker.with_suffix(f".{number}").exists():
        marker.with_suffix(f".{number}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def fails(number: int) -> int:
    if number == 5:
        raise UserError("no space")
    return number


def lost(item: object, reason: str) -> tuple[object, str]:
    return item, reason


@pytest.mark.parametrize("count", [1, 3])
def test_an_item_whose_process_was_killed_is_tried_again(tmp_path, count):
    with Workers(count) as workers:
        items = [(number, tmp_path / "marker") for number in range(12)]
        assert list(workers.map(dies_once, items, lost)) == [number**2 for number in range(12)]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_is_passed_on_and_no_process_is_left():
    with pytest.raises(UserError, match="no space") as raised, Workers(2) as workers:
        list(workers.map(fails, range(100), lost))
    assert "fails" in str(raised.value.__cause__), "no traceback of where it happened"
    assert not any(process.is_alive() for process in workers._processes.values())
