"""All benchmarks in one run, as ratios measured side by side; prints a table, writes it as JSON.

make bench                                             # all of it; then gpu.sh where there is a GPU
python benchmarks/run_benchmarks.py codec training     # only these subjects
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from audio.frozen_encodec import load_frozen_encodec  # noqa: E402
from benchmarks import bench_codec, bench_dataset, bench_scale, bench_training  # noqa: E402
from benchmarks.measure import Row  # noqa: E402
from common.arguments import file_path  # noqa: E402
from common.errors import run_script  # noqa: E402
from common.files import atomic_write  # noqa: E402
from common.machine import available_cores  # noqa: E402

SUBJECTS = ("codec", "training", "dataset", "scale")


def demo_dataset(work_dir: Path) -> Path:
    """16 pairs of the demo's music for training, 2 for validation."""
    music, dataset = work_dir / "music", work_dir / "dataset"
    limits = ["--max_pairs", 18, "--val_pairs", 2]
    for command in (
        ["demo/make_music.py", "--output_dir", music, "--num_tracks", 9, "--riffs", 13],
        ["create_dataset_pairs_wav.py", "--input_dir", music, "--output_dir", dataset, *limits],
    ):
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return dataset


def about_this_run() -> dict[str, str]:
    """Machine, versions and commit."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        commit = ""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "machine": f"{available_cores()} cores, {model or platform.machine()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "commit": commit or "unknown",
    }


def print_table(rows: list[Row], about: dict[str, str]) -> None:
    print("\n" + ", ".join(about.values()) + "\n")
    print("| subject | measured against | ratio | goal | |\n|---|---|---|---|---|")
    for row in rows:
        goal = f"≥ {row.goal:.2g}" if row.goal else "—"
        print(f"| {row.subject} | {row.against} | {row.ratio:.2f} | {goal} {row.verdict} | {row.note} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)} (default: all)")
    default = "benchmarks/results/benchmarks.json"
    parser.add_argument("--output", type=file_path, default=default, help="(default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    open(output, "a").close()  # before the work, so that it is not for nothing
    torch.set_num_threads(available_cores())
    codec = load_frozen_encodec("untrained")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        for subject in args.subjects or SUBJECTS:
            started = time.monotonic()
            if subject == "codec":
                rows += bench_codec.run(codec)
            elif subject == "training":
                rows += bench_training.run(codec, demo_dataset(work_dir), work_dir)
            elif subject == "dataset":
                rows += bench_dataset.run(work_dir)
            else:
                rows += bench_scale.run(work_dir)
            print(f"{subject}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    about = about_this_run()
    print_table(rows, about)
    with atomic_write(output) as temporary:
        temporary.write_text(json.dumps(about | {"rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
    return 0


if __name__ == "__main__":
    run_script(main)
