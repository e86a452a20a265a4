"""The training loop. train_simple_ddp.py starts it in one process per GPU, or in one on the CPU.

`last.pt` is written at the end of every epoch. A run that is killed at any moment resumes from there. On a CPU its
final weights are bit-identical to those of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from audio.codec import Codec
from audio.frozen_encodec import load_frozen_encodec
from audio.weights import weights_source
from common.devices import choose_precision, pick_device
from common.errors import UserError
from common.files import lock_folder
from common.machine import available_cores
from dataset.batches import PairBatches
from dataset_wav_pairs import open_splits
from model_simple_transformer import SimpleTransformer, count_parameters
from training.checkpoint import BEST, LAST, find_run, load_checkpoint, remove_run
from training.config import TrainConfig
from training.curves import CURVES, draw_curves
from training.distributed import data_parallel, process_group, rank, shard_indices, sum_over_ranks, world_size
from training.experiment import (
    MSE,
    check_same_model,
    check_settings,
    describe_changed_code,
    describe_loss,
    hash_code,
)
from training.log import METRICS, describe_data, describe_run, log, start_metrics
from training.run import Run, check_finite, raise_not_finite, record_epoch
from training.state import TrainState, changes, derive_seed
from training.statistics import channel_statistics, deviation_over_time


def loss_function(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """THE LOSS: a mean over all elements of [B, C, T]. Training, validation, baselines and early stopping use it."""
    return F.mse_loss(predictions, targets)


def train_worker(
    config: TrainConfig,
    local_rank: int = 0,
    global_rank: int = 0,
    num_processes: int = 1,
    on_node: int = 1,
    codec: Codec | None = None,
) -> None:
    """Train as process `global_rank` of `num_processes`. If there are several, MASTER_ADDR and MASTER_PORT must be set.

    local_rank: this process's number among the `on_node` processes of its node. codec: replaces the one that
    --encodec_weights names, and must be on the process's device. Raises UserError for problems that the user can fix.
    """
    device = pick_device(config.device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, available_cores() // on_node))
    folder = Path(config.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, "a training run") if global_rank == 0 else contextlib.nullcontext()
    with lock, process_group(global_rank, num_processes, device):
        try:
            run, state = set_up(config, device, on_node, codec)
            train(run, state)
        except torch.OutOfMemoryError as error:
            what = f"--batch_size {config.batch_size}: {device} is out of memory"
            raise UserError(f"{what}; use a smaller batch, or stop other programs on the device") from error


# ------------------------------------------------------------------ set up


def set_up(
    config: TrainConfig, device: torch.device, processes_on_node: int, codec: Codec | None
) -> tuple[Run, TrainState]:
    """Load codec and data, and build the training state, from last.pt if `checkpoint_dir` holds a run."""
    saved = find_run(Path(config.checkpoint_dir)) if config.resume == "auto" else None
    codec = codec or load_frozen_encodec(config.encodec_weights, device)
    settings = check_settings(SimpleTransformer, config, codec, saved)
    precision = choose_precision(config.precision, device)
    log(describe_run(config, device, precision))
    log(codec.banner)
    train_set, val_set, data_hash = open_splits(config.dataset_dir, codec, config.cache_dir, not config.no_cache)
    train_data, val_data = (PairBatches(split, device, processes_on_node) for split in (train_set, val_set))
    log(describe_data(train_data, val_data, data_hash))
    metadata = {
        "config": dataclasses.asdict(config),
        "code": hash_code(),
        "loss": describe_loss(loss_function, (codec.embedding_dim, train_set.num_frames), device),
        "world_size": world_size(),
        "precision": precision,
        "data": {"hash": data_hash, "pairs": len(train_set) + len(val_set)},
        "codec": codec.fingerprint,
        "encodec_weights": weights_source(config.encodec_weights),
        "num_samples": train_set.num_samples,
    }
    state = build_state(config, settings, device)
    log(f"model      {count_parameters(state.model):,} trainable parameters")
    if metadata["loss"] != MSE:
        log(f"loss       {metadata['loss']}: the lines below call it MSE")
    # A run that was killed before its next epoch ended has not logged its earlier changes yet.
    changed = saved.get("changed", {}) | changes(saved, metadata) if saved else {}
    run = Run(config, device, train_data, val_data, state.model, metadata, changed)
    if saved:
        resume(run, state, saved)
    else:
        start(run, state)
    log("baselines  validation MSE: " + ", ".join(f"{k.replace('_', ' ')} {v:.6g}" for k, v in state.baselines.items()))
    with run.autocast():
        example = torch.zeros(1, codec.embedding_dim, train_set.num_frames, device=device)
        run.parallel = data_parallel(state.model, example)
    return run, state


def build_state(config: TrainConfig, settings: dict[str, object], device: torch.device) -> TrainState:
    """An untrained model with its optimizer and scheduler."""
    torch.manual_seed(config.seed)
    model = SimpleTransformer(**settings).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, weight_decay=config.weight_decay, fused=device.type != "mps"
    )
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=config.scheduler_factor, patience=config.scheduler_patience
    )
    return TrainState(model, optimizer, scheduler)


def start(run: Run, state: TrainState) -> None:
    """Start a new run: compute the training split's statistics, or load weights and statistics from --init_from."""
    config = run.config
    if config.init_from:
        if Path(config.init_from).resolve().parent == run.folder.resolve():  # the new run would remove it
            raise UserError(f"--init_from {config.init_from}: choose another --checkpoint_dir than its own")
        initial = load_checkpoint(config.init_from, run.device)
        settings, codec, remedy = state.model.config, run.metadata["codec"], "use another checkpoint with --init_from"
        check_same_model(initial, config.init_from, SimpleTransformer, settings, codec, remedy)
        state.model.load_state_dict(initial["model"])
        log(f"weights    from {config.init_from}, epoch {initial['epoch']}")
    else:
        pairs = run.train_data(shard_indices(len(run.train_data.dataset)), config.batch_size)
        state.model.set_statistics(*channel_statistics(pairs))
    measure_baselines(run, state)
    if rank() == 0:
        remove_run(run.folder)
        run.save([run.folder / LAST], state, math.nan)
        start_metrics(run.folder / METRICS, state.baselines, epochs_done=0)


def resume(run: Run, state: TrainState, saved: dict) -> None:
    """Resume the run after its last finished epoch, with the current settings and data.

    If the data changed, the model keeps its statistics, because they belong to its weights. If the data or the loss
    changed and there are epochs left, the baselines and the best value are measured again.
    """
    state.restore(saved, run.config, run.folder / LAST)
    log(f"resuming   {run.folder / LAST}: after epoch {state.epoch}")
    is_remeasured = state.epoch < run.config.epochs and ("pairs" in run.changed or "loss" in run.changed)
    if is_remeasured:
        measure_baselines(run, state)
        state.reset_best(validate(run, state)[0])
    if run.changed:
        log("changed    " + ", ".join(f"{name} {old} → {new}" for name, (old, new) in run.changed.items()))
    if run.config.init_from:
        log(f"--init_from {run.config.init_from}: ignored, because this run already has weights")
    if rank() == 0:
        start_metrics(run.folder / METRICS, state.baselines, epochs_done=state.epoch)
        if is_remeasured:  # the current weights now count as the best
            run.save([run.folder / BEST, run.folder / LAST], state, state.best_mse)


def measure_baselines(run: Run, state: TrainState) -> None:
    """Measure the loss of predictions that need no training."""
    model = state.model
    state.train_baseline = validate(run, state, lambda inputs: model.mean.expand_as(inputs), run.train_data)[0]
    state.baselines = {
        "training_mean": validate(run, state, lambda inputs: model.mean.expand_as(inputs))[0],
        "repeat_input": validate(run, state, lambda inputs: inputs)[0],
        "channel_regression": validate(run, state, model.channel_regression)[0],
    }


# ------------------------------------------------------------------ the loop


def train(run: Run, state: TrainState) -> None:
    """Train until all epochs are done or the validation loss has stopped falling."""
    was_finished, last_saved = bool(state.stop_reason(run.config)), state.epoch
    try:
        while not state.stop_reason(run.config):
            run_epoch(run, state)
            last_saved = state.epoch
        if rank() == 0:
            draw_curves(run.folder / CURVES, run.folder / METRICS)
    except KeyboardInterrupt:
        if run.config.resume == "never":
            raise KeyboardInterrupt(f"leave out --resume never to resume after epoch {last_saved}") from None
        raise KeyboardInterrupt(f"the same command resumes after epoch {last_saved}") from None
    if was_finished:
        log(describe_changed_code(run.changed))
    best = f"best validation MSE {state.best_mse:.6g} in epoch {state.best_epoch}, {run.folder / BEST}"
    log(f"{'already finished' if was_finished else 'finished'}: {state.stop_reason(run.config)}; {best}")


def run_epoch(run: Run, state: TrainState) -> None:
    """Train, validate, save and log."""
    started, lr = time.monotonic(), state.optimizer.param_groups[0]["lr"]
    train_mse, grad_norm = train_epoch(run, state)
    train_seconds = time.monotonic() - started
    val_mse, deviation_ratio = validate(run, state)
    is_best = state.end_epoch(val_mse, time.monotonic() - started)
    line = {
        "epoch": state.epoch,
        "train_mse": train_mse,
        "val_mse": val_mse,
        "skill": 1 - val_mse / max(state.baselines["training_mean"], 1e-30),
        "deviation_ratio": deviation_ratio,
        "lr": lr,
        "grad_norm": grad_norm,
        "pairs_per_second": len(run.train_data.dataset) / train_seconds,
        "best": is_best,
    }
    record_epoch(run, state, line)


def train_epoch(run: Run, state: TrainState) -> tuple[float, float]:
    """Train on all training pairs once. Returns the training loss and the mean gradient norm."""
    config, data, epoch = run.config, run.train_data, state.epoch + 1
    # Order and dropout depend only on seed, epoch and rank, so a resumed run repeats them, and each rank has its own.
    torch.manual_seed(derive_seed(config.seed, epoch, rank()))
    sampler = DistributedSampler(data.dataset, num_replicas=world_size(), rank=rank(), seed=config.seed)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    steps = tqdm(
        data(indices, config.batch_size),
        total=-(-len(indices) // config.batch_size),
        desc=f"epoch {epoch}",
        leave=False,
        disable=rank() > 0 or not sys.stderr.isatty(),
    )
    run.parallel.train()
    losses, grad_norms = [], []
    for inputs, targets in steps:
        with run.autocast():
            predictions = run.parallel(inputs)
        loss = loss_function(predictions, targets)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norms.append(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.max_grad_norm))
        state.optimizer.step()
        losses.append(loss.detach() * len(inputs))
    losses, grad_norms = torch.stack(losses).cpu(), torch.stack(grad_norms).cpu()
    check_finite(run, epoch, losses, grad_norms, indices)
    total = sum_over_ranks(losses.double().sum())
    return total.item() / (len(indices) * world_size()), grad_norms.mean().item()


@torch.no_grad()
def validate(
    run: Run,
    state: TrainState,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
    data: PairBatches | None = None,
) -> tuple[float, float]:
    """The loss and deviation ratio of the model or of `predict`, on the validation split or on `data`.

    The loss is the exact mean over every element of the split, for any number of processes. The deviation ratio is the
    predictions' standard deviation over time divided by the targets', each averaged over pairs and channels.
    Raises UserError if the loss is not finite.
    """
    state.model.eval()
    data = data or run.val_data
    dataset, size = data.dataset, run.config.batch_size
    mine = shard_indices(len(dataset))
    sums, bad = torch.zeros(3, dtype=torch.float64), []
    for step, (inputs, targets) in enumerate(data(mine, size)):
        with run.autocast():
            predictions = (predict or state.model)(inputs)
        deviations = [deviation_over_time(x).sum() for x in (predictions, targets)]
        sums += torch.stack([loss_function(predictions, targets) * len(inputs), *deviations]).cpu().double()
        if not sums[0].isfinite() and not bad:
            bad = [dataset.names[i] for i in mine[step * size : (step + 1) * size]]
    error, predicted, true = sum_over_ranks(sums).tolist()
    if not math.isfinite(error):  # the same on every process
        raise_not_finite(f"the validation MSE is not finite after epoch {state.epoch}", bad)
    return error / len(dataset), predicted / max(true, 1e-30)
