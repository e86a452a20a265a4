"""Measure speed as ratios, side by side. Prints each row of the table as soon as it is measured.

make bench                                                   # everything, then gpu.sh if there is a GPU
python benchmarks/run_benchmarks.py --only codec training    # only these subjects
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile
import torch

from audio.frozen_encodec import load_frozen_encodec
from benchmarks.literal_baseline import LiteralTraining, LiteralTransformer
from benchmarks.measure import about_this_run, best_of_alternating, run_command, run_python, take_step
from common.arguments import parse_settings, setting
from common.errors import run_script
from common.machine import available_cores
from model_simple_transformer import SimpleTransformer
from train_simple_worker import train_worker
from training.config import TrainConfig
from training.log import METRICS, read_metrics

LITERAL_EPOCHS = 3
FILES, MINUTES = 4, 20  # music files per format, and the length of each
FORMATS = {  # ffmpeg's options, and the goal: times as fast as ffmpeg
    "wav": ([], 1.2),
    "flac": ([], 0.8),
    "mp3": (["-b:a", "192k"], 0.8),
    "m4a": (["-b:a", "192k"], 0.55),
    "ogg": (["-c:a", "libvorbis", "-b:a", "160k"], 0.55),
}


def row(subject: str, against: str, ratio: float, goal: float | None, note: str) -> str:
    """A line of the table. ratio: how many times as fast as `against`. goal: the least ratio, if there is one."""
    reached = "—" if goal is None else f"≥ {goal:.2g} {'reached' if ratio >= goal else 'missed'}"
    return f"| {subject} | {against} | {ratio:.2f} | {reached} | {note} |"


@torch.no_grad()
def measure_codec(work: Path) -> Iterator[str]:
    """Encoding and decoding four clips of 16 s, against EnCodec's own encoder and decoder."""
    codec = load_frozen_encodec("untrained")
    waveforms = 0.1 * torch.randn(4, 1, 16 * 24000)
    embeddings = codec.model.encoder(waveforms)
    error = (codec.encode(waveforms) - embeddings).abs().max() / embeddings.abs().max()
    ours, theirs = best_of_alternating(lambda: codec.encode(waveforms), lambda: codec.model.encoder(waveforms))
    yield row("encoding, 16 s clips", "EncodecModel.encoder", theirs / ours, 2.2, f"relative error {error:.0e}")
    error = (codec.decode(embeddings) - codec.model.decoder(embeddings)).abs().max()
    ours, theirs = best_of_alternating(lambda: codec.decode(embeddings), lambda: codec.model.decoder(embeddings))
    yield row("decoding, 16 s clips", "EncodecModel.decoder", theirs / ours, None, f"error {error:.0e}")


# ------------------------------------------------------------------ training


def measure_training(work: Path) -> Iterator[str]:
    """A step, an epoch and the time to a validation MSE, against a literal version of the original experiment."""
    music, dataset = work / "music", work / "dataset"
    run_python("demo/make_music.py", "--output_dir", music, "--num_tracks", 9, "--riffs", 13)
    limits = ("--max_pairs", 18, "--val_pairs", 2)
    run_python("create_dataset_pairs_wav.py", "--input_dir", music, "--output_dir", dataset, *limits)
    yield training_step()
    yield from training_epochs(dataset, work)
    yield two_processes(dataset, work)


def training_step() -> str:
    """A step on a batch of 16 embeddings of 16 s."""
    inputs, targets = torch.randn(2, 16, 128, 1200)
    model, literal = SimpleTransformer(), LiteralTransformer()
    our_optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)
    their_optimizer = torch.optim.AdamW(literal.parameters(), 1e-4, weight_decay=0.01)
    take_step(model, our_optimizer, inputs, targets)  # warm-up
    ours, theirs = best_of_alternating(
        lambda: take_step(model, our_optimizer, inputs, targets),
        lambda: take_step(literal, their_optimizer, inputs, targets),
        rounds=2,
    )
    return row("training step, batch 16", "literal step", theirs / ours, 8.0, f"{ours:.2f} s against {theirs:.2f} s")


def training_epochs(dataset: Path, work: Path) -> Iterator[str]:
    """An epoch from the second on, and the time to the MSE that the literal run reaches, on the same pairs."""
    literal = LiteralTraining(dataset)
    their_epochs = timeit.repeat(literal.epoch, number=1, repeat=LITERAL_EPOCHS)
    their_epoch, their_total = min(their_epochs), sum(their_epochs)
    target = literal.validate()

    folder, epochs = work / "checkpoints", 4 * LITERAL_EPOCHS
    config = TrainConfig(
        str(dataset), str(folder), epochs=epochs, checkpoint_every=1, device="cpu", encodec_weights="untrained"
    )
    started = time.time()
    with contextlib.redirect_stdout(io.StringIO()):
        train_worker(config)
    # An epoch's checkpoint is written at its end.
    ends = [(folder / f"checkpoint_epoch_{epoch}.pt").stat().st_mtime for epoch in range(1, epochs + 1)]
    our_epoch = min(after - before for before, after in itertools.pairwise(ends))
    note = f"{our_epoch:.2f} s with validation and saving, against {their_epoch:.1f} s without"
    yield row("epoch from the second on", "literal epoch, same pairs", their_epoch / our_epoch, 25.0, note)
    reached = [line["epoch"] for line in read_metrics(folder / METRICS)[1:] if line["val_mse"] <= target]
    ratio, note = 0.0, f"{target:.4g} was not reached"
    if reached:
        our_total = ends[reached[0] - 1] - started
        ratio = their_total / our_total
        note = f"{target:.4g} after {our_total:.0f} s with encoding, against {their_total:.0f} s"
    yield row("time to a validation MSE", f"literal run, {LITERAL_EPOCHS} epochs", ratio, 25.0, note)


def two_processes(dataset: Path, work: Path) -> str:
    """Pairs per second of two processes, compared with one process and the same global batch."""
    rates = []
    for processes in (1, 2):
        folder = work / f"processes_{processes}"
        paths = ("--dataset_dir", dataset, "--checkpoint_dir", folder, "--encodec_weights", "untrained")
        split = ("--device", "cpu", "--num_processes", processes, "--batch_size", 16 // processes, "--epochs", 4)
        run_python("train_simple_ddp.py", *paths, *split)
        rates.append(max(line["pairs_per_second"] for line in read_metrics(folder / METRICS)[1:]))
    note = f"{rates[1]:.1f} and {rates[0]:.1f} pairs/s"
    return row("2 processes on the same cores", "1 process", rates[1] / rates[0], 0.9, note)


# ------------------------------------------------------------------ dataset creation


def measure_creation(work: Path) -> Iterator[str]:
    """Dataset creation in one process against ffmpeg on the same files, and two workers against one."""
    for number in range(FILES):
        write_noise(work / "wav" / f"{number}.wav", 60 * MINUTES, 44100)
    for number in range(2):
        write_noise(work / "short" / f"{number}.wav", 33, 24000)
    # The imports, and what the first segment waits for. A real folder pays this once.
    start_up = {workers: create(work, "short", workers) for workers in (1, 2)}
    note = f"{start_up[1]:.1f} s of start-up subtracted"
    for kind, (options, goal) in FORMATS.items():
        (work / kind).mkdir(exist_ok=True)
        for number in range(FILES if kind != "wav" else 0):
            source, target = work / "wav" / f"{number}.wav", work / kind / f"{number}.{kind}"
            run_command("ffmpeg", "-loglevel", "error", "-i", source, "-vn", *options, target)
        ours = create(work, kind, 1) - start_up[1]
        speed = FILES * MINUTES * 60 / ours
        theirs = ffmpeg(work, kind)
        yield row(f"dataset creation, {kind}", "ffmpeg", theirs / ours, goal, f"{speed:.0f} x real time, {note}")
    one, two = (create(work, "mp3", workers) - start_up[workers] for workers in (1, 2))
    yield row("dataset creation, 2 workers", "1 worker", one / two, 1.8, f"mp3, {start_up[2]:.1f} s subtracted")


def write_noise(path: Path, seconds: int, rate: int) -> None:
    """Pink-like stereo noise, different for each file name."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(int(path.stem))
    with soundfile.SoundFile(path, "w", rate, 2) as out:
        for _ in range(seconds):
            walk = np.cumsum(rng.standard_normal((rate, 2)), axis=0)
            out.write((0.015 * (walk - np.roll(walk, 50, axis=0))).clip(-1, 1).astype(np.float32))


def create(work: Path, kind: str, workers: int) -> float:
    """Seconds that dataset creation takes on a folder."""
    with tempfile.TemporaryDirectory(dir=work) as output:
        flags = ("--num_workers", workers, "--max_pairs", 100_000)
        return run_python("create_dataset_pairs_wav.py", "--input_dir", work / kind, "--output_dir", output, *flags)


def ffmpeg(work: Path, kind: str) -> float:
    """Seconds that ffmpeg takes for the same conversion and cutting, one file after the other."""
    command = ("ffmpeg", "-loglevel", "error", "-threads", "1", "-i")
    convert = ("-ac", "1", "-ar", "24000", "-f", "segment", "-segment_time", "16")
    with tempfile.TemporaryDirectory(dir=work) as output:
        files = list((work / kind).iterdir())
        return sum(run_command(*command, path, *convert, f"{output}/{path.stem}_%05d.wav") for path in files)


SUBJECTS = {"codec": measure_codec, "training": measure_training, "creation": measure_creation}


@dataclass
class Settings:
    only: list[str] = setting(tuple(SUBJECTS), "subjects to measure (default: all)", nargs="+", choices=tuple(SUBJECTS))  # noqa: RUF009


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    torch.set_num_threads(available_cores())
    print(", ".join(about_this_run().values()))
    print("\n| subject | measured against | ratio | goal | |\n|---|---|---|---|---|", flush=True)
    for subject in settings.only:
        with tempfile.TemporaryDirectory() as work:
            for line in SUBJECTS[subject](Path(work)):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
