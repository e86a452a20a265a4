"""Kill every script that writes files at random moments, run it again, and compare with an uninterrupted run.

    python tests/soak_kill.py                              # 200 kills, about 15 minutes on 2 cores
    python tests/soak_kill.py --kills 50 --seed 7 --only train

A chain kills one command several times in one folder: after a random time, when the n-th file appears or disappears, or
during a write. It kills the whole process group, only the launcher, or only one worker. After each kill, every file
with its final name must be as the uninterrupted run left it. Then the command runs to its end. Its folder must equal
the uninterrupted one byte for byte, except for times, with nothing left over. If it does not, the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from soak_process import Running, SoakError  # noqa: E402
from training_runs import difference  # noqa: E402

from common import arguments  # noqa: E402
from common.files import PARTIAL_FILE  # noqa: E402

SCRIPTS = ("create_dataset_pairs_wav", "dataset_wav_pairs", "train_simple_ddp", "evaluate_continuation")
SCRIPTS += ("generate_continuation",)
CODEC = ("--encodec_weights", "demo", "--device", "cpu")
MAX_KILLS_PER_CHAIN = 6


@dataclass(frozen=True)
class Stage:
    """One command that is killed, and its share of all kills. Paths are relative to the chain's folder."""

    name: str
    share: int
    script: str
    arguments: Callable[[Path], list[object]]


def stages(base: Path) -> list[Stage]:
    def create(workers: int) -> Callable[[Path], list[object]]:
        return lambda folder: [
            "--input_dir", base / "music", "--output_dir", folder, "--segment_duration", 1, "--max_pairs", 24,
            "--val_pairs", 6, "--num_workers", workers,
        ]  # fmt: skip

    def train(processes: int, *more: object) -> Callable[[Path], list[object]]:
        return lambda folder: [
            "--dataset_dir", base / "dataset", "--checkpoint_dir", folder / "checkpoints", "--batch_size", 4,
            "--epochs", 5, "--checkpoint_every", 2, "--num_layers", 1, "--num_processes", processes, *CODEC,
            "--cache_dir", *(more or [folder / "cache"]),
        ]  # fmt: skip

    checkpoint = ("--checkpoint", base / "checkpoints" / "best_model.pt")
    return [
        Stage("create", 5, SCRIPTS[0], create(1)),
        Stage("create, 2 workers", 2, SCRIPTS[0], create(2)),
        Stage("fill", 4, SCRIPTS[1], lambda folder: ["--dataset_dir", base / "dataset", "--cache_dir", folder, *CODEC]),
        Stage("train", 6, SCRIPTS[2], train(1, base / "cache")),
        Stage("fill and train, 2 processes", 3, SCRIPTS[2], train(2)),
        Stage("evaluate", 3, SCRIPTS[3], lambda folder: [
            *checkpoint, "--dataset_dir", base / "dataset", "--output_dir", folder / "results",
            "--cache_dir", folder / "cache", "--num_examples", 1, "--max_sound_pairs", 1, *CODEC,
        ]),
        Stage("generate", 2, SCRIPTS[4], lambda folder: [
            base / "music" / "0.wav", base / "music" / "1.wav", *checkpoint, "--output_dir", folder, *CODEC,
        ]),
    ]  # fmt: skip


# ------------------------------------------------------------------ kills


def kill_once(running: Running, folder: Path, duration_s: float, most_changes: int, rng: random.Random) -> str:
    """Kill a script at a random moment. Returns how it was killed, or "" if it had already ended."""
    some = rng.random() < 0.5  # kill one of its processes, if there are several
    how = rng.choices(("by time", "at a change", "at a write"), (3, 2, 4))[0]
    if how == "by time":
        running.wait(lambda: False, rng.uniform(0, duration_s))
    else:
        before, changes = names(folder), rng.randint(1, most_changes)

        def reached() -> bool:
            nonlocal before, changes
            now = names(folder)
            changes -= len(now ^ before)
            before = now
            return changes <= 0 and (how == "at a change" or any(name.endswith(".part") for name in now))

        # Never later than the uninterrupted run took, so that a missed target still ends in a kill.
        if running.wait(reached, rng.uniform(0.4, 0.9) * duration_s) and how == "at a change":
            time.sleep(rng.choice((0, rng.uniform(0, 0.02))))
    if some and (workers := running.workers()) and not running.has_ended():
        how, victim = rng.choice([(f"{how}, launcher only", running.pid), (f"{how}, one worker", rng.choice(workers))])
        running.kill(victim)
        return how
    running.kill(-running.pid)
    return "" if running.status != -signal.SIGKILL else how


# ------------------------------------------------------------------ what they leave


def files(folder: Path) -> Iterator[Path]:
    for parent, folders, found in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(found))


def names(folder: Path) -> set[str]:
    return {str(path) for path in files(folder)}


def content(path: Path) -> object:
    """A file's content without the run's duration: bytes, or the values in a checkpoint or a JSON file."""
    if path.suffix == ".pt":
        checkpoint = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        del checkpoint["seconds"]
        return checkpoint
    if path.name == "metrics.jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return [{key: value for key, value in line.items() if key != "pairs_per_second"} for line in lines]
    if path.name == "results.json":
        return json.loads(path.read_text()) | {"seconds": 0}
    return path.read_bytes()


def outcome(folder: Path) -> dict[str, object]:
    """The content of every file in a folder."""
    return {str(path.relative_to(folder)): content(path) for path in files(folder) if path.name != ".lock"}


def check_what_is_there(folder: Path, expected: dict[str, object]) -> bool:
    """Check that every file with its final name is complete after a kill. Returns whether a write was interrupted."""
    cut = False
    for path in files(folder):
        name = str(path.relative_to(folder))
        cut |= path.name.endswith(".part")
        # metrics.jsonl may end in half a line, and curves.png may be from an earlier epoch.
        if name in expected and path.name not in ("metrics.jsonl", "curves.png"):
            found = content(path)
            # A checkpoint may be from an earlier epoch. If it can be read, it is complete.
            if path.suffix != ".pt" and (differs := difference(expected[name], found)):
                raise SoakError(f"{name} after the kill{differs}")
    return cut


# ------------------------------------------------------------------ the soak


def prepare(base: Path) -> None:
    """Make the music, and for the later steps a dataset with its cache and checkpoints."""
    (base / "music").mkdir()
    rng = np.random.default_rng(0)
    for number, (rate, channels) in enumerate([(24000, 1), (44100, 2), (48000, 1), (24000, 2), (44100, 1)]):
        steps = np.cumsum(rng.standard_normal((rate * 6 + 100, channels)), axis=0)
        soundfile.write(base / "music" / f"{number}.wav", 0.3 * np.sin(steps * 0.02), rate)
    by_name = {stage.name: stage for stage in stages(base)}
    Running(SCRIPTS[0], by_name["create"].arguments(base / "dataset"), base / "log").finish()
    arguments = by_name["train"].arguments(base)
    Running(SCRIPTS[2], arguments, base / "log").finish()


class Soak:
    """All stages, each with the outcome of its uninterrupted run."""

    def __init__(self, base: Path, seed: int):
        self.base, self.rng = base, random.Random(seed)
        self.folder = base / "chain"  # always the same, because the written files contain paths
        self.uninterrupted: dict[str, tuple[dict[str, object], float]] = {}
        self.counts: Counter[str] = Counter()

    def start(self, stage: Stage) -> Running:
        return Running(stage.script, stage.arguments(self.folder), self.base / "log")

    def leave_alone(self, stage: Stage) -> None:
        started = time.monotonic()
        self.folder.mkdir()
        self.start(stage).finish()
        self.uninterrupted[stage.name] = outcome(self.folder), time.monotonic() - started
        shutil.rmtree(self.folder)
        print(f"{stage.name}: {self.uninterrupted[stage.name][1]:.1f} s uninterrupted", flush=True)

    def chain(self, stage: Stage, most: int) -> int:
        """Kill a stage up to `most` times, let it finish, and compare. Returns the number of kills."""
        if stage.name not in self.uninterrupted:
            self.leave_alone(stage)
        expected, duration_s = self.uninterrupted[stage.name]
        self.folder.mkdir()
        kills: list[str] = []
        try:
            for _ in range(most):
                how = kill_once(self.start(stage), self.folder, duration_s, 2 * len(expected), self.rng)
                if not how:
                    break
                cut = check_what_is_there(self.folder, expected)
                kills.append(how + ", in a write" * cut)
                self.counts["in a write"] += cut
            for path in files(self.folder):
                if PARTIAL_FILE.fullmatch(path.name):
                    os.utime(path, (0, 0))  # young ones may belong to a running process, so they would stay
            self.start(stage).finish()
            if found := difference(expected, outcome(self.folder)):
                raise SoakError(f"not as uninterrupted: {found}")
        except SoakError as failure:
            self.counts["failures"] += 1
            print(f"FAILED {stage.name}, killed {kills}: {failure}", flush=True)
        else:
            summary = ", ".join(f"{n} x {how}" if n > 1 else how for how, n in Counter(kills).items())
            print(f"{stage.name}: {len(kills)} kills ({summary or 'it ended before'}); identical", flush=True)
        self.counts[stage.name] += len(kills)
        self.counts["kills"] += len(kills)
        shutil.rmtree(self.folder)
        return len(kills)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=arguments.number(int, at_least=1), default=200, help="(default: %(default)s)")
    parser.add_argument("--seed", type=arguments.number(int, at_least=0), help="of the moments (default: drawn)")
    minutes = arguments.number(float, above=0)
    parser.add_argument("--minutes", type=minutes, default=60, help="start no chain after these (default: %(default)s)")
    parser.add_argument("--only", choices=[stage.name for stage in stages(Path())], help="kill only this")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that are spawned
    torch.set_num_threads(1)  # other threads do not survive a fork
    for script in SCRIPTS:
        importlib.import_module(script)
    with tempfile.TemporaryDirectory(prefix="soak_kill_") as name:
        soak = Soak(Path(name), seed)
        chosen = [stage for stage in stages(soak.base) if args.only in (None, stage.name)]
        soak.rng.shuffle(chosen)  # a few kills don't reach all stages
        prepare(soak.base)
        while soak.counts["kills"] < args.kills and time.monotonic() - started < 60 * args.minutes:
            # The stage that is furthest behind its share.
            stage = min(chosen, key=lambda stage: soak.counts[stage.name] / stage.share)
            left = args.kills - soak.counts["kills"]
            per_chain = min(MAX_KILLS_PER_CHAIN, left, max(2, args.kills * stage.share // 25))
            if soak.chain(stage, per_chain) == 0:
                soak.counts[stage.name] += 0.2  # it ended before the kill, so let the others have a turn
    kills, failures = soak.counts["kills"], soak.counts["failures"]
    print(
        f"{kills} kills, {soak.counts['in a write']} of them in the writing of a file, {failures} failures, "
        f"{time.monotonic() - started:.0f} s (seed {seed})"
    )
    return 1 if failures or kills < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
