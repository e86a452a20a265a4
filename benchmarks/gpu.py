"""The parts of gpu.sh. Each prints its rows as they are measured and appends them to gpu.jsonl.

python benchmarks/gpu.py PART RESULTS_FOLDER WORK_FOLDER     # PART: step, for example, or table (the last run's rows)
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import contextlib
import gc
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch._dynamo  # torch.optim imports it on first use, which takes seconds
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import dataset_wav_pairs
import train_simple_worker
from audio.frozen_encodec import load_frozen_encodec
from benchmarks.literal_baseline import LiteralTraining, LiteralTransformer
from benchmarks.measure import about_this_run, take_step, write_noise_dataset
from benchmarks.study_planted import TRACKS, write_world
from common.devices import pick_device
from model_simple_transformer import SimpleTransformer
from training import run as training_run
from training.config import TrainConfig
from training.log import read_metrics

IMPORTS_S = time.perf_counter() - STARTED
DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"
# A CPU only tests the script, with sizes that take seconds.
SECONDS, PAIRS, EPOCHS, BATCHES = (16, 2000, 200, (16, 64, 128)) if ON_CUDA else (1, 18, 2, (1,))
BATCH_SIZE, FRAMES, STEPS = (16, 75 * SECONDS, 100) if ON_CUDA else (1, 4, 1)
PLANTED_TRACKS, PLANTED_EPOCHS, LITERAL_STEPS = (TRACKS, 15, 10) if ON_CUDA else ({"train": 1, "val": 1}, 1, 1)
PART, RESULTS, WORK = sys.argv[1], *map(Path, sys.argv[2:])


def record(row: str, **figures: object) -> None:
    """Print a row and append it to gpu.jsonl, so that a run that is cut off keeps it."""
    if ON_CUDA:
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    figures = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in figures.items()}
    print(f"{PART}: {row}: {describe(figures)}", file=sys.__stdout__, flush=True)
    with open(RESULTS / "gpu.jsonl", "a") as file:
        file.write(json.dumps({"part": PART, "row": row} | figures) + "\n")


def describe(figures: dict[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())


@contextlib.contextmanager
def row_of(name: str, kernel: SDPBackend | None = None) -> Iterator[None]:
    """Use one attention kernel, if given. If the memory or the kernel is missing, record the row as not measured."""
    gc.collect()
    if ON_CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with sdpa_kernel(kernel) if kernel else contextlib.nullcontext():
            yield
    except torch.OutOfMemoryError:
        record(name, not_measured="does not fit into the GPU's memory")
    except RuntimeError as error:
        if not str(error).startswith(("No available kernel", "No viable backend")):
            raise
        record(name, not_measured="torch has no such kernel here")


def now() -> float:
    """The time in seconds, once the GPU has finished its work."""
    if ON_CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def train_config(dataset: Path, checkpoints: Path, **settings: object) -> TrainConfig:
    return TrainConfig(str(dataset), str(checkpoints), device=DEVICE, encodec_weights="untrained", **settings)


# ------------------------------------------------------------------ the parts


def machine() -> None:
    about = about_this_run() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    record("CUDA" if ON_CUDA else "CPU: nothing here is a measurement", **about)


def step() -> None:
    """A training step on 16 pairs of 16 s, with different models, precisions and attention kernels."""
    for row, model, dtype, kernel in (
        ("bf16, flash", SimpleTransformer, torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        ("bf16, cuDNN", SimpleTransformer, torch.bfloat16, SDPBackend.CUDNN_ATTENTION),
        ("bf16, flash, graphed", SimpleTransformer, torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        ("bf16", SimpleTransformer, torch.bfloat16, None),
        ("fp32", SimpleTransformer, torch.float32, None),
        ("literal model, fp32, attention dropout", LiteralTransformer, torch.float32, None),
    ):
        built = model()  # outside the block, because building the model turns off cuDNN's attention
        with row_of(row, kernel):
            measure_step(row, built.to(DEVICE), dtype)


def measure_step(row: str, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Record a step by wall clock, the kernels' own time, and which kernels attention uses."""
    inputs, targets = torch.randn(2, BATCH_SIZE, 128, FRAMES, device=DEVICE)
    fused = None if "literal" in row else True
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=fused)
    # As in training, but without the cache of cast weights, which CUDA graphs do not permit.
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)
    if "graphed" in row and ON_CUDA:
        with autocast:
            model = torch.cuda.make_graphed_callables(model, (inputs,))

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        with autocast:
            return model(inputs)

    for count in range(STEPS + 2):
        if count == 2:  # the first two steps warm up
            started = now()
        take_step(predict, optimizer, inputs, targets)
    wall_ms = 1000 * (now() - started) / STEPS

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if ON_CUDA else [ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as profiler:
        take_step(predict, optimizer, inputs, targets)
        now()
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]
    kernels_ms = sum(kernel.self_device_time_total for kernel in kernels) / 1000 or float("nan")
    names = {event.key.removeprefix("aten::") for event in events}
    attention = ", ".join(sorted(name for name in names if name.startswith("_scaled_dot_product_")))
    record(row, wall_ms=wall_ms, kernels_ms=kernels_ms, wall_by_kernels=wall_ms / kernels_ms, attention=attention)


def encoding() -> None:
    """Segments with a second of context, in fp32 as the project does it, and in TF32 with its error."""
    codec = load_frozen_encodec("untrained", DEVICE)
    for batch in BATCHES:
        waveforms = 0.1 * torch.randn(batch, 1, (SECONDS + 1) * 24000, device=DEVICE)
        expected = None
        for precision in ("fp32", "TF32"):
            torch.backends.cudnn.allow_tf32 = precision == "TF32"
            with row_of(f"batch {batch}, {precision}"):
                codec.encode(waveforms[:, :, :24000])
                started = now()
                embeddings = codec.encode(waveforms)
                figures = {"ms_per_segment": 1000 * (now() - started) / batch}
                if expected is not None:
                    figures["error_in_deviations"] = ((embeddings - expected).abs().max() / expected.std()).item()
                record(f"batch {batch}, {precision}", **figures)
                expected = embeddings


def training() -> None:
    """The whole training without early stopping, from the start of the imports, and where its time goes."""
    write_noise_dataset(WORK / "dataset", PAIRS, SECONDS)
    started = time.perf_counter() - IMPORTS_S
    spent = dict.fromkeys(("start_up", "encoding", "training", "validation", "saving", "drawing"), 0.0)
    clock(spent, "encoding", dataset_wav_pairs, "prepare_cache")
    config = train_config(WORK / "dataset", WORK / "checkpoints", epochs=EPOCHS, patience=EPOCHS, precision="bf16")
    with open(RESULTS / "training.log", "w") as log, contextlib.redirect_stdout(log):
        run, state = set_up(config)
        spent["start_up"] = time.perf_counter() - started - spent["encoding"]
        clock(spent, "training", train_simple_worker, "train_epoch")
        clock(spent, "validation", train_simple_worker, "validate")
        clock(spent, "saving", training_run, "append_metrics")
        clock(spent, "saving", training_run, "save_checkpoint")
        clock(spent, "drawing", training_run, "draw_curves")
        for epoch in range(1, EPOCHS + 1):
            train_simple_worker.run_epoch(run, state)
            if epoch % max(1, EPOCHS // 4) == 0:
                total_s = time.perf_counter() - started
                epoch_s = (total_s - spent["encoding"] - spent["start_up"]) / epoch
                shares = {f"{share}_s": seconds for share, seconds in spent.items()}
                record(f"{epoch} epochs", total_s=total_s, epoch_s=epoch_s, **shares)


def clock(spent: dict[str, float], share: str, module: ModuleType, name: str) -> None:
    """Add the seconds of every call of a module's function to a share."""
    function = getattr(module, name)

    def timed(*args: object) -> object:
        before = time.perf_counter()
        result = function(*args)
        spent[share] += time.perf_counter() - before
        return result

    setattr(module, name, timed)


def set_up(config: TrainConfig) -> tuple[training_run.Run, train_simple_worker.TrainState]:
    """Everything that a training does before its first step."""
    Path(config.checkpoint_dir).mkdir(exist_ok=True)
    return train_simple_worker.set_up(config, pick_device(DEVICE), 1, None)


def start() -> None:
    """From the end of the imports to the first step, when everything is encoded."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        set_up(train_config(WORK / "dataset", WORK / "second", precision="bf16"))
    record("second start, to the first step", imports_s=IMPORTS_S, seconds=now() - started)


def precision() -> None:
    """bf16 against fp32 on data that can be learned: after each clip, a coin decides between two others."""
    write_world(WORK / "planted", "coin", np.random.default_rng(0), PLANTED_TRACKS)
    best = {}
    for name in ("fp32", "bf16"):
        folder, epochs = WORK / f"planted_{name}", PLANTED_EPOCHS
        config = train_config(
            WORK / "planted", folder, batch_size=8, epochs=epochs, patience=epochs, lr=1e-3, precision=name
        )
        with open(RESULTS / f"planted_{name}.log", "w") as log, contextlib.redirect_stdout(log):
            train_simple_worker.train_worker(config)
        best[name] = min(read_metrics(folder / "metrics.jsonl")[1:], key=lambda line: line["val_mse"])
        record(name, epochs=epochs, best_validation_mse=best[name]["val_mse"], skill=best[name]["skill"])
    record("bf16 against fp32", more_mse=best["bf16"]["val_mse"] / best["fp32"]["val_mse"] - 1)


def literal() -> None:
    """The literal original experiment: encoding in every step, with torch's defaults."""
    run = LiteralTraining(WORK / "dataset", DEVICE, num_workers=4 if ON_CUDA else 0)
    batches, row = iter(run.train), "an epoch, extrapolated"
    with row_of(row):
        run.step(*next(batches))  # warm-up
        started = now()
        for _ in range(LITERAL_STEPS):
            run.step(*next(batches))
        step_s = (now() - started) / LITERAL_STEPS
        record(row, step_s=step_s, epoch_s=step_s * len(run.train))


# ------------------------------------------------------------------ the table


def table() -> None:
    """The rows of the last run, then the goals."""
    lines = [json.loads(line) for line in (RESULTS / "gpu.jsonl").read_text().splitlines()]
    first = max(number for number, line in enumerate(lines) if line["part"] == "run")
    print("\n| part | row | |\n|---|---|---|")
    for line in lines[first:]:
        figures = {name: value for name, value in line.items() if name not in ("part", "row")}
        print(f"| {line['part']} | {line['row']} | {describe(figures)} |")

    rows = {line["row"]: line for line in lines[first:]}
    whole, literal_run = rows.get(f"{EPOCHS} epochs", {}), rows.get("an epoch, extrapolated", {})
    total_s, epoch_s, literal_s = whole.get("total_s"), whole.get("epoch_s"), literal_run.get("epoch_s")
    times = literal_s / epoch_s if epoch_s and literal_s else None
    start_s = rows.get("second start, to the first step", {}).get("seconds")
    more_mse = rows.get("bf16 against fp32", {}).get("more_mse")
    print("\n| goal | measured | |\n|---|---|---|")
    for goal, value, at_least, below in (
        (f"{EPOCHS} epochs, with encoding, in 180 s (H100)", total_s, 0, 180),
        ("second start: first step 5 s after the imports", start_s, 0, 5),
        ("an epoch 30 times as fast as the literal one", times, 30, float("inf")),
        ("bf16: best validation MSE within 1% of fp32's", more_mse, -0.01, 0.01),
    ):
        verdict = "not measured" if value is None else "reached" if at_least <= value < below else "missed"
        print(f"| {goal} | {'–' if value is None else f'{value:.3g}'} | {verdict} |")


if __name__ == "__main__":
    globals()[PART]()
