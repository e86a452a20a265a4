"""kill -9 at random moments, in short; `make soak` is the long form."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_every_command_that_is_killed_anywhere_ends_the_same(seed):
    command = [sys.executable, ROOT / "tests" / "soak_kill.py", "--kills", "9", "--seed", str(seed)]
    result = subprocess.run(command, capture_output=True, text=True)
    print(result.stdout, result.stderr)
    assert result.returncode == 0 and "9 kills" in result.stdout
