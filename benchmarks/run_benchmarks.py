"""Measure speed as ratios, side by side. Prints each row of the table at once and writes all of them as JSON.

make bench                                                   # everything, then gpu.sh if there is a GPU
python benchmarks/run_benchmarks.py --only codec training    # only these subjects
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile
import torch

from audio.frozen_encodec import load_frozen_encodec
from benchmarks.literal_baseline import LiteralTraining
from benchmarks.measure import HEADER, Row, about_this_run, best_of_alternating, run_command, run_python
from common.arguments import file_path, parse_settings, setting
from common.errors import run_script
from common.files import atomic_write
from common.machine import available_cores
from model_simple_transformer import SimpleTransformer
from train_simple_worker import train_worker
from training.config import TrainConfig

LITERAL_EPOCHS = 3
FILES, MINUTES = 4, 20  # music files per format, and the length of each
FORMATS = {  # ffmpeg's options, and the goal: times as fast as ffmpeg
    "wav": ([], 1.2),
    "flac": ([], 0.8),
    "mp3": (["-b:a", "192k"], 0.8),
    "m4a": (["-b:a", "192k"], 0.55),
    "ogg": (["-c:a", "libvorbis", "-b:a", "160k"], 0.55),
}


@torch.no_grad()
def measure_codec(work: Path) -> Iterator[Row]:
    """Encoding and decoding four clips of 16 s, against EnCodec's own encoder and decoder."""
    codec = load_frozen_encodec("untrained")
    waveforms = 0.1 * torch.randn(4, 1, 16 * 24000)
    embeddings = codec.model.encoder(waveforms)
    error = (codec.encode(waveforms) - embeddings).abs().max() / embeddings.abs().max()
    ours, theirs = best_of_alternating(lambda: codec.encode(waveforms), lambda: codec.model.encoder(waveforms))
    yield Row("encoding, 16 s clips", "EncodecModel.encoder", theirs / ours, 2.2, f"relative error {error:.0e}")
    error = (codec.decode(embeddings) - codec.model.decoder(embeddings)).abs().max()
    ours, theirs = best_of_alternating(lambda: codec.decode(embeddings), lambda: codec.model.decoder(embeddings))
    yield Row("decoding, 16 s clips", "EncodecModel.decoder", theirs / ours, None, f"error {error:.0e}")


# ------------------------------------------------------------------ training


def measure_training(work: Path) -> Iterator[Row]:
    """A step, an epoch and the time to a validation MSE, against a literal version of the original experiment."""
    music, dataset = work / "music", work / "dataset"
    run_python("demo/make_music.py", "--output_dir", music, "--num_tracks", 9, "--riffs", 13)
    limits = ("--max_pairs", 18, "--val_pairs", 2)
    run_python("create_dataset_pairs_wav.py", "--input_dir", music, "--output_dir", dataset, *limits)
    weights = load_frozen_encodec("untrained").model.state_dict()
    yield training_step(LiteralTraining(dataset, weights))
    yield from training_epochs(LiteralTraining(dataset, weights), dataset, work)
    yield two_processes(dataset, work)


def training_step(literal: LiteralTraining) -> Row:
    """A step on a batch of 16 embeddings of 16 s."""
    inputs, targets = torch.randn(2, 16, 128, 1200)
    model = SimpleTransformer().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)

    def step() -> None:
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()
    ours, theirs = best_of_alternating(step, lambda: literal.step(inputs, targets), rounds=2)
    return Row("training step, batch 16", "literal step", theirs / ours, 8.0, f"{ours:.2f} s against {theirs:.2f} s")


def training_epochs(literal: LiteralTraining, dataset: Path, work: Path) -> Iterator[Row]:
    """An epoch from the second on, and the time to the MSE that the literal run reaches, on the same pairs."""
    started = time.perf_counter()
    their_epoch = min(literal.epoch() for _ in range(LITERAL_EPOCHS))
    their_total = time.perf_counter() - started
    target = literal.validate()

    ends: list[float] = []

    class Clock(io.StringIO):
        """Notes when each epoch is logged."""

        def write(self, text: str) -> int:
            if text.startswith("epoch"):
                ends.append(time.perf_counter())
            return len(text)

    folder = work / "checkpoints"
    config = TrainConfig(
        str(dataset), str(folder), epochs=4 * LITERAL_EPOCHS, device="cpu", encodec_weights="untrained"
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(Clock()):
        train_worker(config)
    our_epoch = min(after - before for before, after in itertools.pairwise(ends))
    note = f"{our_epoch:.2f} s with validation and saving, against {their_epoch:.1f} s without"
    yield Row("epoch from the second on", "literal epoch, same pairs", their_epoch / our_epoch, 25.0, note)
    totals = [end - started for end, mse in zip(ends, epochs_of(folder, "val_mse"), strict=True) if mse <= target]
    ratio, note = 0.0, f"{target:.4g} was not reached"
    if totals:
        ratio = their_total / totals[0]
        note = f"{target:.4g} after {totals[0]:.0f} s with encoding, against {their_total:.0f} s"
    yield Row("time to a validation MSE", f"literal run, {LITERAL_EPOCHS} epochs", ratio, 25.0, note)


def two_processes(dataset: Path, work: Path) -> Row:
    """Pairs per second of two processes, compared with one process and the same global batch."""
    rates = []
    for processes in (1, 2):
        folder = work / f"processes_{processes}"
        paths = ("--dataset_dir", dataset, "--checkpoint_dir", folder, "--encodec_weights", "untrained")
        split = ("--device", "cpu", "--num_processes", processes, "--batch_size", 16 // processes, "--epochs", 4)
        run_python("train_simple_ddp.py", *paths, *split)
        rates.append(max(epochs_of(folder, "pairs_per_second")))
    note = f"{rates[1]:.1f} and {rates[0]:.1f} pairs/s"
    return Row("2 processes on the same cores", "1 process", rates[1] / rates[0], 0.9, note)


def epochs_of(checkpoint_dir: Path, name: str) -> list[float]:
    """A value of each epoch in metrics.jsonl."""
    return [json.loads(line)[name] for line in (checkpoint_dir / "metrics.jsonl").read_text().splitlines()[1:]]


# ------------------------------------------------------------------ dataset creation


def measure_creation(work: Path) -> Iterator[Row]:
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
        yield Row(f"dataset creation, {kind}", "ffmpeg", theirs / ours, goal, f"{speed:.0f} x real time, {note}")
    one, two = (create(work, "mp3", workers) - start_up[workers] for workers in (1, 2))
    yield Row("dataset creation, 2 workers", "1 worker", one / two, 1.8, f"mp3, {start_up[2]:.1f} s subtracted")


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
    output: str = setting("benchmarks/results/benchmarks.json", "the table as JSON", type=file_path)


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    output, about, rows = Path(settings.output), about_this_run(), []
    output.parent.mkdir(parents=True, exist_ok=True)
    open(output, "a").close()  # an error here comes before the work
    torch.set_num_threads(available_cores())
    print(", ".join(about.values()), HEADER, sep="\n\n", flush=True)
    for subject in settings.only:
        with tempfile.TemporaryDirectory() as work:
            for row in SUBJECTS[subject](Path(work)):
                print(row, flush=True)
                rows.append(asdict(row))
    atomic_write(output, json.dumps(about | {"rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    run_script(main)
