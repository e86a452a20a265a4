"""The parts of gpu.sh. Each prints its rows as they are measured and appends them to gpu.jsonl.

python benchmarks/gpu.py PART RESULTS_FOLDER WORK_FOLDER     # PART: step, for example, or table for all rows so far
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

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import train_simple_ddp
from audio.frozen_encodec import load_frozen_encodec
from benchmarks import scale
from benchmarks.literal_baseline import LiteralTraining, LiteralTransformer
from benchmarks.measure import about_this_run, replace_everywhere
from benchmarks.study_planted import TRACKS, write_world
from dataset_wav_pairs import prepare_cache
from model_simple_transformer import SimpleTransformer
from train_simple_worker import train_epoch, train_worker, validate
from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.curves import draw_curves
from training.log import append_metrics, read_metrics

IMPORTS_S = time.perf_counter() - STARTED
DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"
# A CPU only tests the script, with sizes that take seconds.
SECONDS, PAIRS, EPOCHS, BATCHES = (16, 2000, 200, (16, 64, 128)) if ON_CUDA else (1, 18, 2, (1,))
BATCH_SIZE, FRAMES, STEPS = (16, 75 * SECONDS, 100) if ON_CUDA else (1, 4, 1)
PLANTED_TRACKS, PLANTED_EPOCHS, LITERAL_STEPS = (TRACKS, 15, 10) if ON_CUDA else ({"train": 1, "val": 1}, 1, 1)
PART, RESULTS, WORK = sys.argv[1], *map(Path, sys.argv[2:])
DATASET, CACHE = WORK / "dataset", WORK / "cache"
SHARES = {
    prepare_cache: "encoding", train_epoch: "training", validate: "validation", save_checkpoint: "saving",
    append_metrics: "saving", draw_curves: "drawing",
}  # fmt: skip


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


def autocast(dtype: torch.dtype) -> torch.autocast:
    """As in training, but without the cache of cast weights, which CUDA graphs do not permit."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


def profiled(call: Callable[[], object]) -> list:
    """The profiler's events of a call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_CUDA else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        call()
        now()
    return profiler.key_averages()


# ------------------------------------------------------------------ the parts


def machine() -> None:
    """Versions, and the kernels that attention uses, as the profiler sees them."""
    about = about_this_run() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    record("CUDA" if ON_CUDA else "CPU: nothing here is a measurement", **about)
    model = SimpleTransformer().to(DEVICE)
    inputs = torch.randn(BATCH_SIZE, 128, FRAMES, device=DEVICE)
    for row, dtype, kernel in (
        ("attention in bf16", torch.bfloat16, None),
        ("attention in bf16, flash alone", torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        ("attention in bf16, cuDNN alone", torch.bfloat16, SDPBackend.CUDNN_ATTENTION),
        ("attention in fp32", torch.float32, None),
    ):
        with row_of(row, kernel), autocast(dtype):
            names = {event.key.split("::")[-1] for event in profiled(lambda: model(inputs).sum().backward())}
            record(row, runs=", ".join(sorted(name for name in names if name.startswith("_scaled_dot_product_"))))


def step() -> None:
    """A training step on 16 pairs of 16 s: by wall clock, and the kernels' own time."""
    inputs, targets = torch.randn(2, BATCH_SIZE, 128, FRAMES, device=DEVICE)
    for name, make, dtype, kernel in (
        ("bf16, flash", SimpleTransformer, torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        ("bf16, cuDNN", SimpleTransformer, torch.bfloat16, SDPBackend.CUDNN_ATTENTION),
        ("bf16, flash, graphed", SimpleTransformer, torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        ("fp32", SimpleTransformer, torch.float32, None),
        ("literal model, fp32, attention dropout", LiteralTransformer, torch.float32, None),
    ):
        with row_of(name, kernel):
            model = make().to(DEVICE)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused="literal" not in name)
            predict = model
            if "graphed" in name and ON_CUDA:
                with autocast(dtype):
                    predict = torch.cuda.make_graphed_callables(model, (inputs,))

            def take_step(model=model, optimizer=optimizer, predict=predict, dtype=dtype) -> None:
                with autocast(dtype):
                    predictions = predict(inputs)
                loss = torch.nn.functional.mse_loss(predictions.float(), targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

            take_step()  # warm-up
            take_step()
            started = now()
            for _ in range(STEPS):
                take_step()
            wall_ms = 1000 * (now() - started) / STEPS
            kernels = [e for e in profiled(take_step) if e.device_type != DeviceType.CPU and not e.is_user_annotation]
            kernels_ms = sum(kernel.self_device_time_total for kernel in kernels) / 1000 or float("nan")
            record(name, wall_ms=wall_ms, kernels_ms=kernels_ms, wall_by_kernels=wall_ms / kernels_ms)
            del model, optimizer, predict, take_step


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
    """The real command line without early stopping, and where its time goes."""
    digests = scale.make_segments(WORK / "segments", PAIRS + 1, SECONDS)
    scale.make_dataset(DATASET, WORK / "segments", digests, PAIRS, SECONDS)
    spent: Counter[str] = Counter()
    epochs, started = 0, time.perf_counter() - IMPORTS_S

    def clock(function: Callable, share: str) -> None:
        """Add the time of every call of a function to a share."""

        def timed(*args: object) -> object:
            before = time.perf_counter()
            if share == "training":
                begin_epoch(before)
            try:
                return function(*args)
            finally:
                spent[share] += time.perf_counter() - before

        replace_everywhere(function, timed)

    def begin_epoch(at: float) -> None:
        nonlocal epochs
        if epochs == 0:  # everything before the first epoch is start-up, except encoding
            encoding_s = spent["encoding"]
            spent.clear()
            spent.update(encoding=encoding_s, start_up=at - started - encoding_s)
        elif epochs % max(1, EPOCHS // 4) == 0:
            summarize(at)
        epochs += 1

    def summarize(at: float) -> None:
        shares = {f"{share}_s": seconds for share, seconds in spent.items()}
        epoch_s = (sum(spent.values()) - spent["encoding"] - spent["start_up"]) / epochs
        record(f"{epochs} epochs", total_s=at - started, epoch_s=epoch_s, **shares)

    for function, share in SHARES.items():
        clock(function, share)
    command = ["--dataset_dir", DATASET, "--checkpoint_dir", WORK / "checkpoints", "--cache_dir", CACHE]
    command += ["--encodec_weights", "untrained", "--device", DEVICE, "--num_processes", 1, "--precision", "bf16"]
    sys.argv = ["train_simple_ddp.py", *map(str, command), "--epochs", str(EPOCHS), "--patience", str(EPOCHS)]
    with open(RESULTS / "training.log", "w") as log, contextlib.redirect_stdout(log):
        train_simple_ddp.main()
    summarize(time.perf_counter())


def start() -> None:
    """From the end of the imports to the first step, when everything is encoded."""
    record("second start, to the first step", imports_s=IMPORTS_S, **scale.measure_start(DATASET, CACHE, DEVICE))


def precision() -> None:
    """bf16 against fp32 on data that can be learned: after each clip, a coin decides between two others."""
    write_world(WORK / "planted", "coin", np.random.default_rng(0), PLANTED_TRACKS)
    best = {}
    for name in ("fp32", "bf16"):
        folder = WORK / f"planted_{name}"
        config = TrainConfig(
            str(WORK / "planted"), str(folder), batch_size=8, epochs=PLANTED_EPOCHS, patience=PLANTED_EPOCHS, lr=1e-3,
            device=DEVICE, precision=name, encodec_weights="untrained",
        )  # fmt: skip
        with open(RESULTS / f"planted_{name}.log", "w") as log, contextlib.redirect_stdout(log):
            train_worker(config)
        best[name] = min(read_metrics(folder / "metrics.jsonl")[1:], key=lambda line: line["val_mse"])
        record(name, epochs=PLANTED_EPOCHS, best_validation_mse=best[name]["val_mse"], skill=best[name]["skill"])
    record("bf16 against fp32", more_mse=best["bf16"]["val_mse"] / best["fp32"]["val_mse"] - 1)


def literal() -> None:
    """The literal original experiment: encoding in every step, with torch's defaults."""
    weights = load_frozen_encodec("untrained").model.state_dict()
    run = LiteralTraining(DATASET, weights, DEVICE, num_workers=4 if ON_CUDA else 0)
    batches, name = iter(run.train), "an epoch, extrapolated"
    with row_of(name):
        for count in range(LITERAL_STEPS + 1):
            if count == 1:  # the first step warms up
                started = now()
            inputs, targets = next(batches)
            run.step(run.encode(inputs), run.encode(targets))
        step_s = (now() - started) / LITERAL_STEPS
        record(name, step_s=step_s, epoch_s=step_s * len(run.train))


# ------------------------------------------------------------------ the table


def table() -> None:
    """The rows of the last run, then the goals."""
    _, first, others = (RESULTS / "gpu.jsonl").read_text().rpartition('{"part": "run"')
    lines = [json.loads(line) for line in (first + others).splitlines()]
    print("\n| part | row | |\n|---|---|---|")
    for line in lines:
        figures = {name: value for name, value in line.items() if name not in ("part", "row")}
        print(f"| {line['part']} | {line['row']} | {describe(figures)} |")

    rows = {line["row"]: line for line in lines}
    whole, literal_epoch = rows.get(f"{EPOCHS} epochs", {}), rows.get("an epoch, extrapolated", {})
    times = literal_epoch["epoch_s"] / whole["epoch_s"] if whole and "epoch_s" in literal_epoch else None
    start_s = rows.get("second start, to the first step", {}).get("seconds")
    more_mse = rows.get("bf16 against fp32", {}).get("more_mse")
    print("\n| goal | measured | |\n|---|---|---|")
    for goal, value, reached in (
        (f"{EPOCHS} epochs, with encoding, in 180 s (H100)", whole.get("total_s"), lambda x: x < 180),
        ("second start: first step 5 s after the imports", start_s, lambda x: x < 5),
        ("an epoch 30 times as fast as the literal one", times, lambda x: x >= 30),
        ("bf16: best validation MSE within 1% of fp32's", more_mse, lambda x: abs(x) < 0.01),
    ):
        verdict = "not measured" if value is None else "reached" if reached(value) else "missed"
        print(f"| {goal} | {'–' if value is None else f'{value:.3g}'} | {verdict} |")


if __name__ == "__main__":
    globals()[PART]()
