"""On a CUDA GPU: a step, encoding, and a whole training of 1800 + 200 synthetic pairs, in bf16 and fp32."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

import train_simple_worker
from audio.frozen_encodec import load_frozen_encodec
from benchmarks.bench_scale import make_dataset, make_segments
from benchmarks.literal_baseline import LiteralTransformer
from benchmarks.measure import Row, best_of_alternating
from model_simple_transformer import SimpleTransformer
from training.config import TrainConfig

PAIRS = 2000
GOAL_S = 180  # for 200 epochs on one H100-class GPU


def run(work_dir: Path, device: str = "cuda", pairs: int = PAIRS, epochs: int = 200) -> list[Row]:
    rows = [step_row(device, "bf16"), step_row(device, "fp32"), encoding_row(device)]
    digests = make_segments(work_dir / "gpu_segments")
    make_dataset(work_dir / "gpu_dataset", work_dir / "gpu_segments", digests, pairs)
    trained = {precision: train(work_dir, device, precision, epochs) for precision in ("bf16", "fp32")}
    bf16, fp32 = trained["bf16"], trained["fp32"]
    note = (
        f"{bf16['seconds']:.0f} s: {bf16['startup']:.0f} until the first epoch (encoding included), "
        f"{bf16['saving']:.0f} saving, peak {bf16['peak_gb']:.1f} GB; fp32 {fp32['seconds']:.0f} s"
    )
    rows.append(Row(f"{epochs} epochs of {pairs} pairs", f"{GOAL_S} s", GOAL_S / bf16["seconds"], 1.0, note))
    ratio = bf16["val_mse"] / fp32["val_mse"]
    rows.append(Row("best validation MSE in fp32", "in bf16", 1 / ratio, 0.99, f"{ratio - 1:+.2%} in bf16"))
    return rows


def step_row(device: str, precision: str) -> Row:
    """A step on a batch of 16 embeddings of 16 s against the literal one in float32 on the same GPU."""
    inputs, targets = torch.randn(2, 16, 128, 1200, device=device)

    def stepper(model: torch.nn.Module, dtype: torch.dtype | None, **fused: bool) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, **fused)

        def step() -> None:
            with torch.autocast(device, dtype, enabled=dtype is not None):
                predictions = model(inputs)
            loss = torch.nn.functional.mse_loss(predictions.float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    ours = stepper(SimpleTransformer().to(device), torch.bfloat16 if precision == "bf16" else None, fused=True)
    literal = stepper(LiteralTransformer().to(device), None)
    seconds, theirs = best_of_alternating(repeated(ours, device), repeated(literal, device), rounds=5)
    note = f"{1000 * seconds / STEPS:.1f} ms against {1000 * theirs / STEPS:.1f} ms"
    return Row(f"training step on a GPU, {precision}", "literal step, same GPU", theirs / seconds, None, note)


STEPS = 10


def repeated(call: Callable[[], None], device: str) -> Callable[[], None]:
    """STEPS calls and a wait for the GPU, after one call that warms up."""
    call()

    def calls() -> None:
        for _ in range(STEPS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    return calls


def encoding_row(device: str) -> Row:
    codec = load_frozen_encodec("untrained", device)
    waveforms = torch.randn(16, 1, 17 * 24000, device=device) * 0.1
    seconds, _ = best_of_alternating(repeated(lambda: codec.encode(waveforms), device), lambda: None)
    rate = STEPS * 16 * 17 / seconds
    return Row("encoding on a GPU", "real time", rate, None, "16 clips of 17 s at a time")


def train(work_dir: Path, device: str, precision: str, epochs: int) -> dict[str, float]:
    """The real worker, encoding included: seconds in all, until the first epoch, in saving; peak memory; best MSE."""
    folder = work_dir / f"gpu_{precision}"
    config = TrainConfig(
        str(work_dir / "gpu_dataset"), str(folder), epochs=epochs, patience=epochs, device=device, precision=precision,
        cache_dir=str(work_dir / f"gpu_cache_{precision}"), encodec_weights="untrained",
    )  # fmt: skip
    first_epoch, saving = [], 0.0
    save, train_epoch = train_simple_worker.save_checkpoint, train_simple_worker.train_epoch

    def timed_save(*args: object) -> None:
        nonlocal saving
        before = time.perf_counter()
        save(*args)
        saving += time.perf_counter() - before

    def marked(*args: object) -> tuple[float, float]:
        first_epoch.append(time.perf_counter())
        return train_epoch(*args)

    train_simple_worker.save_checkpoint, train_simple_worker.train_epoch = timed_save, marked
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train_simple_worker.train_worker(config)
    finally:
        train_simple_worker.save_checkpoint, train_simple_worker.train_epoch = save, train_epoch
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    return {
        "seconds": time.perf_counter() - started,
        "startup": first_epoch[0] - started,
        "saving": saving,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
        "val_mse": min(line["val_mse"] for line in lines),
    }
