"""Kill trainings at random moments with kill -9, go on, and compare with one that was left alone.

    python tests/soak_kill.py                     # 20 runs, about 11 minutes on 2 cores
    python tests/soak_kill.py --runs 100 --seed 7

Each run is killed one to three times: in the fill of the cache, in a step, or in a save; all of its
processes at once, or one worker of three. It must end with exactly the weights, optimizer, metrics and
best model of the undisturbed run. Exit status 1 if one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from pipeline_common import positive_int, whole_number  # noqa: E402

EPOCHS = 8
PROCESSES = (1, 3)  # with three and more, the order in which gradients are added matters too


class Training:
    """One start of a training in a folder of its own, with its log."""

    def __init__(self, dataset: Path, folder: Path, processes: int):
        self.folder, self.log = folder, folder / "log.txt"
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable, "train_simple_ddp.py", "--dataset_dir", dataset, "--cache_dir", folder / "cache",
            "--checkpoint_dir", folder / "checkpoints", "--encodec_weights", "untrained", "--device", "cpu",
            "--batch_size", "4", "--epochs", str(EPOCHS), "--num_processes", str(processes), "--checkpoint_every", "3",
        ]  # fmt: skip
        self.log.write_text("")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [*map(str, command)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def until(self, condition: Callable[[], bool], timeout_s: float = 120) -> bool:
        """Wait for `condition`; False if the training ends before."""
        end = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{self.folder}: still waiting after {timeout_s} s\n{self.log.read_text()}")
            time.sleep(0.001)
        return True

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def workers(self) -> list[int]:
        """Process ids of the launcher's children that train."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self.process.pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def kill(self, one_worker: random.Random | None = None) -> None:
        """kill -9 everything, or one worker, whose end must then end the rest."""
        victims = self.workers() if one_worker else []
        if victims and one_worker:
            os.kill(one_worker.choice(victims), signal.SIGKILL)
            if self.process.wait(timeout=60) == 0:
                raise AssertionError(f"{self.folder}: status 0 though a worker was killed")
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def kill_once(training: Training, rng: random.Random) -> str:
    """Kill a training at a random moment; says where, empty if it was finished before."""
    checkpoints, cache = training.folder / "checkpoints", training.folder / "cache"
    where = rng.choice(["fill", "step", "save"])
    if where == "fill" and training.until(lambda: training.said("encoding") or training.said("epoch ")):
        files = rng.randrange(16)
        training.until(lambda: sum(1 for _ in cache.rglob("*.npy")) >= files)
    elif where != "fill":
        epoch = rng.randint(1, EPOCHS - 1)
        training.until(lambda: any(training.said(f"epoch {e:3d}/") for e in range(epoch, EPOCHS)))
        if where == "step":
            time.sleep(rng.uniform(0, 0.2))
        else:
            training.until(lambda: any(checkpoints.glob(".*.part")))
            time.sleep(rng.uniform(0, 0.01))
    if training.process.poll() is not None:
        return ""
    one = rng.random() < 0.4 and bool(training.workers())
    training.kill(rng if one else None)
    return f"{where}{' (one worker)' if one else ''}"


def finish(dataset: Path, folder: Path, processes: int) -> None:
    training = Training(dataset, folder, processes)
    if training.process.wait(timeout=300) != 0:
        raise AssertionError(f"{folder}: status {training.process.returncode}\n{training.log.read_text()}")


def outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves, but for how long it took."""
    checkpoints = folder / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir() if path.name != ".lock")
    left: dict[str, object] = {"files": names}
    for name in (name for name in names if name.endswith(".pt")):
        content = torch.load(checkpoints / name, weights_only=True)
        del content["config"], content["progress"]["seconds"]
        left[name] = content
    lines = map(json.loads, (checkpoints / "metrics.jsonl").read_text().splitlines())
    left["metrics"] = [{k: v for k, v in line.items() if k not in ("pairs_per_second", "crc32")} for line in lines]
    return left


def difference(a: object, b: object, path: str = "") -> str:
    """Where two outcomes differ first, empty if nowhere: to the last bit, NaN equal to NaN."""
    if isinstance(a, list) and isinstance(b, list):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for key in a if (d := difference(a[key], b[key], f"{path}/{key}"))), "")
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if torch.equal(a, b) else path
    return "" if a == b or (a != a and b != b) else f"{path}: {a!r} and {b!r}"


def make_dataset(folder: Path) -> Path:
    """24 pairs of 1 s from four tracks of noise: small enough to train in seconds."""
    (folder / "music").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        noise = np.cumsum(rng.standard_normal(24000 * 7)) * 0.001
        soundfile.write(folder / "music" / f"{number}.wav", np.sin(noise * 20).astype(np.float32) * 0.3, 24000)
    command = ["create_dataset_pairs_wav.py", "--input_dir", folder / "music", "--output_dir", folder / "dataset",
               "--segment_duration", "1", "--max_pairs", "24", "--val_pairs", "6", "--num_workers", "1"]  # fmt: skip
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "dataset"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive_int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=whole_number, help="of the moments (default: drawn, and printed)")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.randrange(1_000_000)
    rng = random.Random(seed)
    print(f"seed {seed}", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="soak_kill_") as name:
        base = Path(name)
        dataset = make_dataset(base)
        expected = {}
        for processes in PROCESSES:
            finish(dataset, base / f"undisturbed_{processes}", processes)
            expected[processes] = outcome(base / f"undisturbed_{processes}")
        for run in range(1, args.runs + 1):
            processes, folder = PROCESSES[run % len(PROCESSES)], base / f"run_{run}"
            kills = [kill_once(Training(dataset, folder, processes), rng) for _ in range(rng.randint(1, 3))]
            finish(dataset, folder, processes)
            found = difference(expected[processes], outcome(folder))
            bad += bool(found)
            told = ", ".join(kill or "was finished" for kill in kills)
            print(f"run {run}: {processes} processes, killed: {told}; {found or 'identical'}", flush=True)
    print(f"{args.runs - bad} of {args.runs} runs ended exactly as the undisturbed one (seed {seed})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
