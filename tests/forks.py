"""Run scripts in forks of a process that has imported the libraries, which takes most of the time of a short run."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import json, os, runpy, sys
import encodec, matplotlib.figure, scipy.stats, soundfile, soxr, torch._dynamo, torchaudio

def become(script, arguments, folder, environment, output):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(output, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")

for line in sys.stdin:
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    status = 1
    try:
        become(*json.loads(line))
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)
"""


@functools.cache
def server() -> subprocess.Popen:
    """The process that forks. It ends with this one, because its standard input does."""
    words = [sys.executable, "-c", SERVER]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_in_fork(script: Path, *args: object) -> tuple[int, str]:
    """Run a script from its own folder, whose modules it imports. Returns its exit status and its output."""
    with tempfile.NamedTemporaryFile("r") as output:
        order = [str(script), [*map(str, args)], str(script.parent), dict(os.environ), output.name]
        print(json.dumps(order), file=server().stdin, flush=True)
        status = server().stdout.readline()
        return int(status), output.read()
