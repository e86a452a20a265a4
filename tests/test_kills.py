"""kill -9 at any moment, in short; `make soak` is the long form."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_killed_anywhere_every_command_resumes_and_ends_the_same(seed):
    command = [sys.executable, ROOT / "tests" / "soak_kill.py", "--kills", "12", "--seed", str(seed)]
    result = subprocess.run(command, capture_output=True, text=True)
    print(result.stdout, result.stderr)
    assert result.returncode == 0 and "12 kills" in result.stdout
