"""The parts of gpu.sh. Each prints its rows as they are measured and appends them to gpu.jsonl.

python benchmarks/gpu.py PART RESULTS_FOLDER WORK_FOLDER     # step, for example; `table` prints what there is so far
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import contextlib
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import train_simple_ddp
import train_simple_worker
from audio.frozen_encodec import load_frozen_encodec
from benchmarks import bench_scale
from benchmarks.literal_baseline import LiteralTraining, LiteralTransformer
from benchmarks.run_benchmarks import about_this_run
from benchmarks.study_planted import TRACKS, write_world
from model_simple_transformer import SimpleTransformer
from training.config import TrainConfig
from training.log import read_metrics

IMPORTS_S = time.perf_counter() - STARTED
DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"
# On a CPU only the script is tried, with sizes that take seconds.
SECONDS, PAIRS, EPOCHS, STEPS, BATCHES = (16, 2000, 200, 100, (16, 64, 128)) if ON_CUDA else (1, 24, 3, 2, (1, 2))
PLANTED_TRACKS, PLANTED_EPOCHS, LITERAL_STEPS = (TRACKS, 15, 10) if ON_CUDA else ({"train": 3, "val": 2}, 2, 1)
PART, RESULTS, WORK = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
DATASET, CACHE = WORK / "dataset", WORK / "cache"


def record(row: str, **figures: object) -> None:
    """Print a row and append it to gpu.jsonl: a cut-off loses nothing measured before it."""
    figures = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in figures.items()}
    print(f"{PART}: {row}: {describe(figures)}", file=sys.__stdout__, flush=True)
    with open(RESULTS / "gpu.jsonl", "a") as file:
        file.write(json.dumps({"part": PART, "row": row} | figures) + "\n")


def describe(figures: dict[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())


@contextlib.contextmanager
def row_of(name: str) -> Iterator[None]:
    """Name a row that does not fit into the card's memory, or whose kernel torch does not have; the rest goes on."""
    gc.collect()
    if ON_CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.OutOfMemoryError:
        record(name, not_measured="does not fit into this card's memory")
    except RuntimeError as error:
        if not str(error).startswith(("No available kernel", "No viable backend")):
            raise
        record(name, not_measured="torch has no such kernel here")


def wait() -> None:
    if ON_CUDA:
        torch.cuda.synchronize()


def peak_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if ON_CUDA else 0.0


# ------------------------------------------------------------------ the parts


def machine() -> None:
    """Versions, and the kernels that attention runs on, as the profiler sees them."""
    libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    record("CUDA" if ON_CUDA else "CPU: nothing here is a measurement", **about_this_run(), **libraries)
    model = SimpleTransformer().to(DEVICE)
    inputs = torch.randn(16, 128, 75 * SECONDS, device=DEVICE)
    rows = {
        "attention in bf16": (torch.bfloat16, None),
        "attention in bf16, flash alone": (torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        "attention in bf16, cuDNN alone": (torch.bfloat16, SDPBackend.CUDNN_ATTENTION),
        "attention in fp32": (torch.float32, None),
    }
    for row, (dtype, kernel) in rows.items():
        with row_of(row), only(kernel), autocast(dtype):
            with profile(activities=activities(), acc_events=True) as profiled:
                model(inputs).sum().backward()
                wait()
            found = {event.key.split("::")[-1] for event in profiled.key_averages()}
            record(row, runs=", ".join(sorted(key for key in found if key.startswith("_scaled_dot_product_"))))


def activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_CUDA else [])]


def only(kernel: SDPBackend | None) -> contextlib.AbstractContextManager:
    return sdpa_kernel(kernel) if kernel else contextlib.nullcontext()


def autocast(dtype: torch.dtype) -> torch.autocast:
    """As in training; without its cache of cast weights, which graphs do not permit."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


def step() -> None:
    """A training step on 16 pairs of 16 s, by wall clock, between CUDA events, and by the kernels' own time."""
    inputs, targets = torch.randn(2, 16, 128, 75 * SECONDS, device=DEVICE)
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    rows = {
        "bf16, flash": (SimpleTransformer, torch.bfloat16, flash, False),
        "bf16, cuDNN": (SimpleTransformer, torch.bfloat16, cudnn, False),
        "bf16, flash, graphed": (SimpleTransformer, torch.bfloat16, flash, True),
        "fp32": (SimpleTransformer, torch.float32, None, False),
        "literal model, fp32, attention dropout": (LiteralTransformer, torch.float32, None, False),
    }
    for name, (make, dtype, kernel, graphed) in rows.items():
        with row_of(name), only(kernel):
            model = make().to(DEVICE)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused="literal" not in name)
            predict = graph_of(model, inputs, dtype) if graphed else model

            def take_step(model=model, optimizer=optimizer, predict=predict, dtype=dtype) -> None:
                with autocast(dtype):
                    predictions = predict(inputs)
                loss = torch.nn.functional.mse_loss(predictions.float(), targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

            wall_ms, events_ms = time_steps(take_step)
            kernels_ms = kernel_time_ms(take_step)
            ratio = wall_ms / kernels_ms if kernels_ms else 0.0
            figures = {"wall_ms": wall_ms, "events_ms": events_ms, "kernels_ms": kernels_ms, "wall_by_kernels": ratio}
            record(name, **figures, peak_gb=peak_gb())
            del model, optimizer, predict, take_step


def graph_of(model: torch.nn.Module, inputs: torch.Tensor, dtype: torch.dtype) -> Callable:
    """Forward and backward as CUDA graphs, for inputs of this shape."""
    if not ON_CUDA:
        return model
    with autocast(dtype):
        return torch.cuda.make_graphed_callables(model, (inputs,))


def time_steps(call: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds a step by wall clock and between CUDA events (0 without), after three that warm up."""
    for _ in range(3):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if ON_CUDA else []
    wait()
    started = time.perf_counter()
    if events:
        events[0].record()
    for _ in range(STEPS):
        call()
    if events:
        events[1].record()
    wait()
    wall_ms = 1000 * (time.perf_counter() - started) / STEPS
    return wall_ms, events[0].elapsed_time(events[1]) / STEPS if events else 0.0


def kernel_time_ms(call: Callable[[], None], calls: int = 5) -> float:
    """Milliseconds a call in which the GPU computed: the sum over kernels, without the gaps between them."""
    with profile(activities=activities(), acc_events=True) as profiled:
        for _ in range(calls):
            call()
        wait()
    on_gpu = [e for e in profiled.key_averages() if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    return sum(event.self_device_time_total for event in on_gpu) / 1000 / calls


def encoding() -> None:
    """Segments behind a second of context, in fp32 as the project does it, and in TF32 with its error."""
    codec = load_frozen_encodec("untrained", DEVICE)
    for batch in BATCHES:
        waveforms = 0.1 * torch.randn(batch, 1, (SECONDS + 1) * 24000, device=DEVICE)
        expected = None
        for precision in ("fp32", "TF32"):
            torch.backends.cudnn.allow_tf32 = precision == "TF32"
            with row_of(f"batch {batch}, {precision}"):
                codec.encode(waveforms[:, :, :24000])
                wait()
                started = time.perf_counter()
                embeddings = codec.encode(waveforms)
                wait()
                seconds = time.perf_counter() - started
                figures = {"ms_a_segment": 1000 * seconds / batch, "peak_gb": peak_gb()}
                if expected is not None:
                    figures["error_in_deviations"] = ((embeddings - expected).abs().max() / expected.std()).item()
                expected = embeddings if precision == "fp32" else None
                record(f"batch {batch}, {precision}", **figures)


def training() -> None:
    """The real command line, early stopping out of reach: where its time goes."""
    started = time.perf_counter()
    digests = bench_scale.make_segments(WORK / "segments", PAIRS + 1, SECONDS)
    bench_scale.make_dataset(DATASET, WORK / "segments", digests, PAIRS, SECONDS)
    record(f"{len(digests)} synthetic WAVs of {SECONDS} s made", seconds=time.perf_counter() - started)

    spent: Counter[str] = Counter()
    epochs, started = 0, time.perf_counter()

    def clock(name: str, share: str) -> None:
        """Add the time of the worker's function `name` to `share`."""
        function = getattr(train_simple_worker, name)

        def timed(*args: object) -> object:
            before = time.perf_counter()
            if name == "train_epoch":
                begin_epoch(before)
            try:
                return function(*args)
            finally:
                spent[share] += time.perf_counter() - before

        setattr(train_simple_worker, name, timed)

    def begin_epoch(now: float) -> None:
        nonlocal epochs
        if epochs == 0:  # what the baselines took of validation and saving is start-up
            encoding_s = spent["encoding"]
            spent.clear()
            spent.update({"encoding": encoding_s, "start_up": now - started - encoding_s + IMPORTS_S})
            record("until the first step", imports_s=IMPORTS_S, **shares())
        elif epochs % max(1, EPOCHS // 4) == 0:
            summarise(now)
        epochs += 1

    def shares() -> dict[str, float]:
        return {f"{share}_s": seconds for share, seconds in spent.items()}

    def summarise(now: float) -> None:
        each = sum(seconds for share, seconds in spent.items() if share not in ("encoding", "start_up")) / epochs
        record(f"{epochs} epochs", total_s=now - started + IMPORTS_S, epoch_s=each, **shares(), peak_gb=peak_gb())

    for name, share in (
        ("prepare_cache", "encoding"), ("train_epoch", "training"), ("validate", "validation"),
        ("save_checkpoint", "saving"), ("append_metrics", "saving"), ("draw_curves", "drawing"),
    ):  # fmt: skip
        clock(name, share)
    command = ["--dataset_dir", DATASET, "--checkpoint_dir", WORK / "checkpoints", "--cache_dir", CACHE]
    command += ["--encodec_weights", "untrained", "--device", DEVICE, "--num_processes", 1, "--precision", "bf16"]
    sys.argv = ["train_simple_ddp.py", *map(str, command), "--epochs", str(EPOCHS), "--patience", str(EPOCHS)]
    with open(RESULTS / "training.log", "w") as log, contextlib.redirect_stdout(log):
        train_simple_ddp.main()
    summarise(time.perf_counter())


def start() -> None:
    """From the end of the imports to the first step, everything encoded."""
    found = bench_scale.measure_start(str(DATASET), str(CACHE), DEVICE)
    record("second start, to the first step", imports_s=IMPORTS_S, **found)


def precision() -> None:
    """bf16 against fp32 where there is something to learn: after each clip a coin decides between two others."""
    write_world(WORK / "planted", "coin", np.random.default_rng(0), PLANTED_TRACKS)
    best = {}
    for name in ("fp32", "bf16"):
        folder = WORK / f"planted_{name}"
        config = TrainConfig(
            str(WORK / "planted"), str(folder), batch_size=8, epochs=PLANTED_EPOCHS, patience=PLANTED_EPOCHS, lr=1e-3,
            device=DEVICE, precision=name, encodec_weights="untrained",
        )  # fmt: skip
        with open(RESULTS / f"planted_{name}.log", "w") as log, contextlib.redirect_stdout(log):
            train_simple_worker.train_worker(config)
        lines = read_metrics(folder / "metrics.jsonl")[1:]
        best[name] = min(lines, key=lambda line: line["val_mse"])
        record(name, epochs=PLANTED_EPOCHS, best_validation_mse=best[name]["val_mse"], skill=best[name]["skill"])
    record("bf16 against fp32", more_mse=best["bf16"]["val_mse"] / best["fp32"]["val_mse"] - 1)


def literal() -> None:
    """The experiment to the letter: encoding in every step, with torch's own defaults."""
    codec = load_frozen_encodec("untrained")
    workers = {"device": DEVICE, "num_workers": 4 if ON_CUDA else 0}
    run = LiteralTraining(DATASET, codec.model.state_dict(), **workers)
    batches = iter(run.train)
    seconds = []
    with row_of("an epoch, extrapolated"):
        for _ in range(LITERAL_STEPS + 1):
            started = time.perf_counter()
            inputs, targets = next(batches)
            run.step(run.encode(inputs), run.encode(targets))
            wait()
            seconds.append(time.perf_counter() - started)
        step_s = sum(seconds[1:]) / LITERAL_STEPS
        record("an epoch, extrapolated", step_s=step_s, epoch_s=step_s * len(run.train), peak_gb=peak_gb())


# ------------------------------------------------------------------ the table


def table() -> None:
    """The rows of the last run, and the goals."""
    text = (RESULTS / "gpu.jsonl").read_text().rpartition('{"part": "run"')
    lines = [json.loads(line) for line in "".join(text[1:]).splitlines()]
    print("\n| part | row | |\n|---|---|---|")
    for line in lines:
        figures = {name: value for name, value in line.items() if name not in ("part", "row")}
        print(f"| {line['part']} | {line['row']} | {describe(figures)} |")

    def figure(row: str, name: str) -> float | None:
        return next((line[name] for line in lines if line["row"] == row and name in line), None)

    total, ours = (figure(f"{EPOCHS} epochs", name) for name in ("total_s", "epoch_s"))
    literal_s, more_mse = figure("an epoch, extrapolated", "epoch_s"), figure("bf16 against fp32", "more_mse")
    start_s = figure("second start, to the first step", "seconds")
    times = literal_s / ours if literal_s and ours else None
    print("\n| goal | measured | |\n|---|---|---|")
    for goal, value, reached in (
        (f"{EPOCHS} epochs, encoding included, in 180 s on an H100", total, lambda x: x < 180),
        ("second start: first step 5 s after the imports", start_s, lambda x: x < 5),
        ("an epoch 30 times as fast as the literal one", times, lambda x: x >= 30),
        ("bf16: best validation MSE within 1% of fp32's", more_mse, lambda x: abs(x) < 0.01),
    ):
        verdict = "not measured" if value is None else "reached" if reached(value) else "missed"
        print(f"| {goal} | {'–' if value is None else f'{value:.3g}'} | {verdict} |")


if __name__ == "__main__":
    parts = (machine, step, encoding, training, start, precision, literal, table)
    {part.__name__: part for part in parts}[PART]()
