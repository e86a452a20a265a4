"""The training loop: train_simple_ddp.py starts one of these for each GPU.

MSE in EnCodec's embedding space, AdamW, gradient clipping, ReduceLROnPlateau and early stopping, under
DistributedDataParallel if there are several processes. `last.pt` is written at the end of every epoch. A run that is
killed at any moment resumes from there; on a CPU it ends with bit-identical weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from dataset_wav_pairs import PairBatches, WavPairsDataset, prepare_cache
from model_simple_transformer import SimpleTransformer, count_parameters
from training.checkpoint import BEST, LAST, find_run, load_checkpoint, remove_run, save_checkpoint
from training.config import TrainConfig
from training.curves import CURVES, draw_curves
from training.distributed import (
    data_parallel,
    gather,
    process_group,
    raise_on_rank_zero,
    rank,
    sum_over_ranks,
    world_size,
)
from training.experiment import CODE, MSE, check_same_model, describe_loss, hash_code, model_settings
from training.log import (
    METRICS,
    append_metrics,
    describe_epoch,
    describe_run,
    describe_tracks,
    listen_command,
    log,
    open_tensorboard,
    start_metrics,
)
from training.state import TrainState, changes, derive_seed
from training.statistics import channel_statistics, deviation_over_time


def loss_function(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """THE LOSS, a mean over all elements of [B, C, T]: training, validation, baselines and early stopping share it."""
    return F.mse_loss(predictions, targets)


SYNC_EVERY_S = 10  # waiting for the disk and drawing take 60 ms, a tenth of an epoch on a fast GPU


@dataclass
class Run:
    """What does not change from the first epoch to the last."""

    config: TrainConfig
    device: torch.device
    train_data: PairBatches
    val_data: PairBatches
    parallel: torch.nn.Module  # the model, under DistributedDataParallel with several processes
    run_metadata: dict[str, object]  # what every checkpoint says of the run
    changed: dict[str, list]  # since the run was saved: {setting: [saved, now]}
    tensorboard: object | None = None  # tensorboard's writer, where that is installed
    synced_at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        return Path(self.config.checkpoint_dir)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.run_metadata["precision"] == "bf16")


def train_worker(
    config: TrainConfig,
    local_rank: int = 0,
    global_rank: int = 0,
    num_processes: int = 1,
    on_node: int = 1,
    codec: Codec | None = None,
) -> None:
    """Train as process `global_rank` of `num_processes`; with more than one, MASTER_ADDR and MASTER_PORT are set.

    local_rank: the number of this process among the `on_node` on its node. codec: instead of the one that
    --encodec_weights names, on the device of the process. Raises UserError for what the user can fix.
    """
    device = pick_device(config.device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, available_cores() // on_node))
    folder = Path(config.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, "a training") if global_rank == 0 else contextlib.nullcontext()
    with lock, process_group(global_rank, num_processes, device):
        try:
            run, state = set_up(config, device, on_node, codec)
            train(run, state)
        except torch.OutOfMemoryError as error:
            what = f"--batch_size {config.batch_size}: {device} is out of memory"
            raise UserError(f"{what}; use a smaller one, or end the other programs on it") from error


# ------------------------------------------------------------------ set up


def set_up(
    config: TrainConfig, device: torch.device, processes_on_node: int, codec: Codec | None
) -> tuple[Run, TrainState]:
    """Codec, data, model, optimizer and scheduler; from last.pt if `checkpoint_dir` holds a run."""
    folder = Path(config.checkpoint_dir)
    saved = find_run(folder) if config.resume == "auto" else None
    codec = codec or load_frozen_encodec(config.encodec_weights, device)
    if codec.embedding_dim % config.num_heads:
        raise UserError(f"--num_heads {config.num_heads}: must divide the {codec.embedding_dim} embedding channels")
    settings = model_settings(SimpleTransformer, config, codec.embedding_dim)
    if saved:
        remedy = "choose another --checkpoint_dir, or --resume never"
        check_same_model(saved, f"{folder / LAST}", settings, codec.fingerprint, remedy)
    precision = choose_precision(config.precision, device)
    log(describe_run(config, device, precision))
    log(codec.banner)

    train_data, val_data, data_hash = open_data(config, codec, device, processes_on_node)
    pairs = len(train_data.dataset) + len(val_data.dataset)
    run_metadata = {
        "config": dataclasses.asdict(config),
        "code": hash_code(),
        "loss": describe_loss(loss_function),
        "world_size": world_size(),
        "precision": precision,
        "data": {"hash": data_hash, "pairs": pairs},
        "codec": codec.fingerprint,
        "codec_is_pretrained": codec.is_pretrained,
        "encodec_weights": weights_source(config.encodec_weights),
        "sample_rate": codec.sample_rate,
        "num_samples": train_data.dataset.num_samples,
    }
    torch.manual_seed(config.seed)
    model = SimpleTransformer(**settings).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, weight_decay=config.weight_decay, fused=device.type != "mps"
    )
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=config.scheduler_factor, patience=config.scheduler_patience
    )
    log(f"model      {count_parameters(model):,} trainable parameters")
    if run_metadata["loss"] != MSE:
        log(f"loss       {run_metadata['loss']}: what is called MSE below is this loss")
    state = TrainState(model, optimizer, scheduler)
    run = Run(config, device, train_data, val_data, model, run_metadata, changes(saved, run_metadata) if saved else {})
    if saved:
        resume(run, state, saved)
    else:
        start(run, state)
    log("baselines  validation MSE: " + ", ".join(f"{k.replace('_', ' ')} {v:.6g}" for k, v in state.baselines.items()))
    with run.autocast():
        example = torch.zeros(1, codec.embedding_dim, train_data.dataset.num_frames, device=device)
        run.parallel = data_parallel(model, example)
    return run, state


def open_data(
    config: TrainConfig, codec: Codec, device: torch.device, processes_on_node: int
) -> tuple[PairBatches, PairBatches, str]:
    """Both splits, every segment encoded, and the hash of their embeddings."""
    train_set, val_set = (
        WavPairsDataset(Path(config.dataset_dir, split), codec, config.cache_dir, not config.no_cache)
        for split in ("train", "val")
    )
    if val_set.num_samples != train_set.num_samples:
        raise UserError(f"{config.dataset_dir}: train/ and val/ differ in length; create the dataset again")
    if min(len(train_set), len(val_set)) < world_size():
        raise UserError(
            f"{config.dataset_dir}: {len(train_set)} train and {len(val_set)} val pairs are too few for {world_size()} "
            "processes; use fewer with --num_processes, or more music"
        )
    data_hash = prepare_cache([train_set, val_set])
    train_data, val_data = (PairBatches(split, device, processes_on_node) for split in (train_set, val_set))
    hours = (len(train_set) + len(val_set)) * train_set.num_samples / codec.sample_rate / 3600
    log(
        f"data       {len(train_set)} train and {len(val_set)} val pairs, {hours:.2f} h to predict, "
        f"[{codec.embedding_dim}, {train_set.num_frames}] embeddings {train_data.place}, hash {data_hash}"
    )
    log(describe_tracks(train_set.segments.tracks, val_set.segments.tracks))
    return train_data, val_data, data_hash


def start(run: Run, state: TrainState) -> None:
    """Start a new run: compute the training split's statistics, or load weights and statistics from --init_from."""
    config = run.config
    if config.init_from:
        initial = load_checkpoint(config.init_from, run.device)
        remedy = "name another with --init_from"
        check_same_model(initial, config.init_from, state.model.config, run.run_metadata["codec"], remedy)
        state.model.load_state_dict(initial["model"])
        log(f"weights    from {config.init_from}, epoch {initial['epoch']}")
    else:
        state.model.set_statistics(
            *channel_statistics(run.train_data(shard_indices(run.train_data), config.batch_size))
        )
    measure_baselines(run, state)
    if rank() == 0:
        remove_run(run.folder)
        save_checkpoint([run.folder / LAST], state.checkpoint() | run.run_metadata | {"val_mse": math.nan})
        start_metrics(run.folder / METRICS, state.baselines, epochs_done=0)


def resume(run: Run, state: TrainState, saved: dict) -> None:
    """Resume the run after its last finished epoch, with the current settings and data.

    With other data the model keeps its statistics, because they belong to its weights. With other data or another loss
    the baselines and the best value are measured again.
    """
    state.restore(saved, run.config)
    log(f"resuming   {run.folder / LAST}: after epoch {state.epoch}")
    is_remeasured = not run.changed.keys().isdisjoint(("pairs", "loss"))
    if is_remeasured:
        measure_baselines(run, state)
        state.reset_best(validate(run, state)[0])
    if run.changed:
        log("changed    " + ", ".join(f"{name} {old} → {new}" for name, (old, new) in run.changed.items()))
    if run.config.init_from:
        log(f"--init_from {run.config.init_from}: ignored, this run has weights of its own")
    if rank() == 0:
        start_metrics(run.folder / METRICS, state.baselines, epochs_done=state.epoch)
        if is_remeasured:  # what the counters call the best must be what best_model.pt holds
            save_checkpoint([run.folder / BEST], state.checkpoint() | run.run_metadata | {"val_mse": state.best_mse})


def measure_baselines(run: Run, state: TrainState) -> None:
    """The loss of predictions that need no training: the training mean, the input itself, the untrained model."""
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
    already = bool(state.stop_reason(run.config))
    run.tensorboard = None if already else open_tensorboard(run.folder, state.epoch)
    saved = state.epoch
    try:
        while not state.stop_reason(run.config):
            run_epoch(run, state)
            saved = state.epoch
        if rank() == 0:
            draw_curves(run.folder / CURVES, run.folder / METRICS)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command resumes after epoch {saved}") from None
    changed_code = [file for file in CODE if file in run.changed] if already else []
    if changed_code:
        log(
            f"*** {', '.join(changed_code)} changed since this run finished: nothing was trained. --resume never "
            "replaces the run, another --checkpoint_dir starts a new one beside it"
        )
    best = f"best validation MSE {state.best_mse:.6g} in epoch {state.best_epoch}, {run.folder / BEST}"
    log(f"finished{' already' if already else ''}: {state.stop_reason(run.config)}; {best}")


def run_epoch(run: Run, state: TrainState) -> None:
    """Train, validate, log and save.

    A killed process loses nothing that was saved. A power failure can cost the last half minute that was not synced.
    """
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
    } | ({"changed": run.changed} if run.changed else {})
    run.changed = {}
    kept = run.folder / f"checkpoint_epoch_{state.epoch}.pt" if state.epoch % run.config.checkpoint_every == 0 else None
    is_due = time.monotonic() - run.synced_at >= SYNC_EVERY_S
    sync = is_due or bool(state.stop_reason(run.config))
    if rank() == 0:
        append_metrics(run.folder / METRICS, line, sync)
        names = [run.folder / BEST if is_best else None, kept, run.folder / LAST]  # last.pt last: it ends the epoch
        save_checkpoint(filter(None, names), state.checkpoint() | run.run_metadata | {"val_mse": val_mse}, sync)
    log(describe_epoch(line, run.config.epochs, state.seconds))  # once saved: an epoch in the log is safe
    if is_due and rank() == 0:
        draw_curves(run.folder / CURVES, run.folder / METRICS)
        run.synced_at = time.monotonic()
    if kept:
        log(f"listen     {listen_command(run.config, kept)}")
    if run.tensorboard:
        for name in ("train_mse", "val_mse", "skill", "deviation_ratio", "lr", "grad_norm"):
            run.tensorboard.add_scalar(name, line[name], state.epoch)
        run.tensorboard.flush()


def train_epoch(run: Run, state: TrainState) -> tuple[float, float]:
    """One pass over the training pairs; returns the train MSE and the mean gradient norm."""
    config, data, epoch = run.config, run.train_data, state.epoch + 1
    # Order and dropout follow from seed, epoch and rank: a resumed run draws the same, and ranks draw other masks.
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
        losses.append(loss.detach())
    losses, grad_norms = torch.stack(losses).cpu(), torch.stack(grad_norms).cpu()
    check_finite(run, epoch, losses, grad_norms, indices)
    sizes = [min(config.batch_size, len(indices) - start) for start in range(0, len(indices), config.batch_size)]
    total = sum_over_ranks((losses.double() * torch.tensor(sizes)).sum())
    return total.item() / (len(indices) * world_size()), grad_norms.mean().item()


@torch.no_grad()
def validate(
    run: Run,
    state: TrainState,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
    data: PairBatches | None = None,
) -> tuple[float, float]:
    """(loss, deviation ratio) of the model or of `predict`, on the validation split or on `data`.

    The loss is the exact mean over every element of the split, for any number of processes. The deviation ratio is
    the predictions' standard deviation over time divided by the targets', each the mean over pairs and channels.
    Raises UserError if the loss is not finite.
    """
    state.model.eval()
    data = data or run.val_data
    dataset, mine, size = data.dataset, shard_indices(data), run.config.batch_size
    sums, bad = torch.zeros(3, dtype=torch.float64), []
    for step, (inputs, targets) in enumerate(data(mine, size)):
        with run.autocast():
            predictions = (predict or state.model)(inputs)
        deviations = [deviation_over_time(x).sum() for x in (predictions, targets)]
        sums += torch.stack([loss_function(predictions, targets) * len(inputs), *deviations]).cpu().double()
        if not sums[0].isfinite() and not bad:
            bad = [dataset.name(i) for i in mine[step * size : (step + 1) * size]]
    error, predicted, true = sum_over_ranks(sums).tolist()
    if not math.isfinite(error):  # the same on every process
        names = ", ".join(sorted(name for names in gather(bad) for name in names))
        what = f"the validation MSE is not finite after epoch {state.epoch}, pairs {names}"
        raise_on_rank_zero(f"{what}; look at these pairs, or lower --lr")
    return error / len(dataset), predicted / max(true, 1e-30)


# ------------------------------------------------------------------ small parts


def shard_indices(data: PairBatches) -> list[int]:
    """The pairs of a split that this process handles when all processes sum over the split: each pair once."""
    return list(range(rank(), len(data.dataset), world_size()))


def check_finite(run: Run, epoch: int, losses: torch.Tensor, grad_norms: torch.Tensor, indices: list[int]) -> None:
    """UserError that names the pairs of the first step, on any process, whose loss or gradient is not finite.

    A NaN reaches every process in the next step: the earliest step, and there the loss, names the culprit.
    """
    bad = [(step, 0) for step in (~losses.isfinite()).nonzero().flatten().tolist()]
    bad += [(step, 1) for step in (~grad_norms.isfinite()).nonzero().flatten().tolist()]
    first, size = min(bad, default=(math.inf, 0)), run.config.batch_size
    names = [run.train_data.dataset.name(i) for i in indices[first[0] * size :][:size]] if bad else []
    reports = gather((first, names))
    earliest = min(order for order, _ in reports)
    if earliest[0] < math.inf:
        culprits = ", ".join(sorted({name for order, names in reports if order == earliest for name in names}))
        what = f"the loss is not finite: epoch {epoch}, step {earliest[0] + 1}, pairs {culprits}"
        raise_on_rank_zero(
            f"{what}; look at these pairs, or lower --lr; {run.folder / LAST} is from the last good epoch"
        )
