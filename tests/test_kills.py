"""A short version of `make soak`: kill -9 at random moments."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_every_command_gives_the_same_result_after_kills(seed):
    command = [sys.executable, ROOT / "tests" / "soak_kill.py", "--kills", "6", "--seed", str(seed)]
    result = subprocess.run(command, capture_output=True, text=True)
    print(result.stdout, result.stderr)
    assert result.returncode == 0 and "6 kills" in result.stdout
