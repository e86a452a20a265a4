"""The training itself: one of these runs for each GPU, started by train_simple_ddp.py.

Nothing to run. MSE in EnCodec's embedding space, AdamW, gradient clipping, ReduceLROnPlateau, early
stopping: the document's training, under DistributedDataParallel when there are several processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from tqdm import tqdm

from audio.frozen_encodec import load_frozen_encodec, untrained_banner
from common.devices import available_cores, pick_device
from common.errors import UserError
from common.files import lock_folder
from dataset_wav_pairs import PairEmbeddings, WavPairsDataset, prepare_cache
from model_simple_transformer import SimpleTransformer, count_parameters
from training.checkpoint import (
    BEST,
    LAST,
    MetricsLog,
    Progress,
    TrainConfig,
    check_same_run,
    choose_precision,
    data_parallel,
    describe_epoch,
    describe_run,
    epoch_chunks,
    evaluation_command,
    job_folder,
    leave_group,
    mean_and_variance,
    mix_seed,
    read_last,
    restore_state,
    run_identity,
    save_checkpoint,
    signals_to,
    start_anew,
)

# How often the processes agree on whether to stop. On a GPU it waits for the steps under way.
STEPS_BETWEEN_POLLS = {"cpu": 1, "cuda": 20, "mps": 20}
ALL_EPOCHS_DONE = "all epochs done"
ASKED_BY_JOB = 1000  # beside the signals' numbers: the stop file of a batch job


def train_worker(rank: int, world_size: int, config: TrainConfig) -> None:
    """Train as process `rank` of `world_size`; with more than one, MASTER_ADDR and MASTER_PORT are set.

    Raises UserError for what the user can mend, SystemExit once it has saved: 128 + signal, 0 if its job asked.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    device = pick_device(config.device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, available_cores() // on_node))
    # A last.pt from another configuration is refused before anything else is done.
    resumed = read_last(config)
    folder = Path(config.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(lock_folder(folder, "a training"))
        if world_size > 1:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=datetime.timedelta(hours=1))
            stack.push(leave_group)
        Trainer(rank, world_size, on_node, device, config, resumed).run()


class Trainer:
    """One process's share of a training run."""

    def __init__(
        self, rank: int, world_size: int, on_node: int, device: torch.device, config: TrainConfig, resumed: dict | None
    ):
        self.rank, self.world_size, self.device, self.config = rank, world_size, device, config
        self.folder = Path(config.checkpoint_dir)
        self.stop_signal = 0
        self.precision = choose_precision(config.precision, device)
        self.codec = load_frozen_encodec(config.encodec_weights, device)
        identity = run_identity(config, world_size, self.precision, self.codec.fingerprint)
        if resumed:
            check_same_run(config.checkpoint_dir, resumed["identity"], identity)
        self.log(describe_run(config, world_size, device, self.precision))
        self.log(untrained_banner(self.codec))
        self.identity = identity | {"data": self.load_data(on_node)}
        if resumed:
            check_same_run(config.checkpoint_dir, resumed["identity"], self.identity)

        torch.manual_seed(config.seed)
        dim = self.codec.embedding_dim
        self.model = SimpleTransformer(dim, config.num_heads, config.num_layers, config.dropout).to(device)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(
            parameters, config.lr, weight_decay=config.weight_decay, fused=device.type != "mps"
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=config.scheduler_factor, patience=config.scheduler_patience
        )
        self.progress, self.metrics = Progress(), MetricsLog(self.folder)
        self.log(f"model      {count_parameters(self.model):,} trainable parameters")
        if resumed:
            self.restore(resumed)
        else:
            self.model.set_statistics(*self.statistics())
            self.baselines = self.measure_baselines()
        self.log(
            f"baselines  validation MSE of predict-the-training-mean {self.baselines['training_mean']:.6g}, "
            f"of repeat-the-input {self.baselines['repeat_input']:.6g}"
        )
        self.parallel: torch.nn.Module = self.model
        if world_size > 1:
            self.parallel = data_parallel(self.model, torch.zeros(1, dim, self.frames, device=device), self.autocast())
        if config.compile != "off":
            self.parallel = torch.compile(self.parallel, backend=config.compile)

    def load_data(self, on_node: int) -> str:
        """Encode what has not been encoded yet, load both splits, return the data's hash."""
        config = self.config
        train, val = (
            WavPairsDataset(Path(config.dataset_dir, split), self.codec, config.cache_dir, not config.no_cache)
            for split in ("train", "val")
        )
        data = prepare_cache([train, val], self.rank, self.world_size)
        self.train_data, self.val_data = (PairEmbeddings(split, self.device, on_node) for split in (train, val))
        self.frames = train.num_frames
        if val.num_samples != train.num_samples:
            raise UserError(f"{config.dataset_dir}: train/ and val/ differ in length; create the dataset again")
        hours = (len(train) + len(val)) * train.num_samples / self.codec.sample_rate / 3600
        self.log(
            f"data       {len(train)} train and {len(val)} val pairs, {hours:.2f} h to predict, "
            f"[{self.codec.embedding_dim}, {self.frames}] embeddings {self.train_data.place}, hash {data}"
        )
        return data

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        config, progress = self.config, self.progress
        if progress.epoch > config.epochs:
            progress.finished = progress.finished or ALL_EPOCHS_DONE
        elif progress.finished == ALL_EPOCHS_DONE:  # there are more to do now
            progress.finished = ""
        if progress.finished:
            self.log(f"finished already: {self.verdict()}")
            return
        if self.rank == 0:
            if progress.epoch == 1 and progress.step == 0:
                start_anew(self.folder)
                # From here on there is a last.pt to go on from, whatever a kill leaves beside it.
                save_checkpoint(self.folder / LAST, self.checkpoint(0, float("nan")))
            self.metrics.begin(self.baselines, progress.epoch - 1)
        with signals_to(self.remember):
            while not progress.finished:
                started, first_step = time.monotonic(), progress.step
                train_mse, grad_norm = self.train_epoch()
                train_seconds = time.monotonic() - started
                val_mse, deviation_ratio = self.validate()
                lr = self.optimizer.param_groups[0]["lr"]
                self.scheduler.step(val_mse)
                is_best = val_mse < progress.best_mse
                if is_best:
                    progress.best_mse, progress.best_epoch = val_mse, progress.epoch
                progress.seconds += time.monotonic() - started
                line = {
                    "epoch": progress.epoch,
                    "train_mse": train_mse,
                    "val_mse": val_mse,
                    "skill": 1 - val_mse / max(self.baselines["training_mean"], 1e-30),
                    "deviation_ratio": deviation_ratio,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "pairs_per_second": self.pairs_after(first_step) / train_seconds,
                    "best": is_best,
                }
                self.end_epoch(line, is_best)
        self.log(f"finished: {self.verdict()}")

    def train_epoch(self) -> tuple[float, float]:
        """Train from `progress.step` to the end of the epoch; (train MSE, mean gradient norm) of all of it."""
        progress, config = self.progress, self.config
        chunks, sizes = epoch_chunks(
            len(self.train_data.dataset), config.batch_size, self.rank, self.world_size, config.seed, progress.epoch
        )
        self.parallel.train()
        errors: list[torch.Tensor] = []
        norms: list[torch.Tensor] = []
        first = progress.step
        steps = tqdm(
            range(first, len(chunks)),
            desc=f"epoch {progress.epoch}",
            leave=False,
            disable=self.rank > 0 or not sys.stderr.isatty(),
        )
        for step, (inputs, targets) in zip(steps, self.train_data.batches(chunks[first:]), strict=True):
            # Dropout's numbers follow from the place in the run: a resumed run draws the same.
            torch.manual_seed(mix_seed(config.seed, progress.epoch, step, self.rank))
            share = sizes[step][self.rank]  # 0 where the last batch has fewer pairs than there are processes
            with self.autocast():
                predictions = self.parallel(inputs)
            error = (predictions - targets).square().sum() * (share / inputs.shape[0])
            # DDP averages the gradients over the processes; this scale makes it the mean over the global batch.
            loss = error * (self.world_size / (sum(sizes[step]) * targets[0].numel()))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm))
            self.optimizer.step()
            errors.append(error.detach())
            if (step + 1) % STEPS_BETWEEN_POLLS[self.device.type] == 0 or step + 1 == len(chunks):
                checked = len(progress.step_errors)
                progress.step_errors += torch.stack(errors).tolist()
                progress.step_grad_norms += torch.stack(norms).tolist()
                progress.step = step + 1
                errors, norms = [], []
                self.poll(chunks, checked)
        total = self.sum_over_processes([sum(progress.step_errors)])[0]
        grad_norm = sum(progress.step_grad_norms) / len(progress.step_grad_norms)
        return total / (len(self.train_data.dataset) * self.codec.embedding_dim * self.frames), grad_norm

    @torch.no_grad()
    def validate(self, predict: Callable[[torch.Tensor], torch.Tensor] | None = None) -> tuple[float, float]:
        """(MSE, deviation ratio) on the validation split, of the model or of `predict`.

        The MSE is the exact mean over every element of the split, for any number of processes. The deviation
        ratio is the predictions' standard deviation over time divided by the targets', each the mean
        over pairs and channels: 1 is alive, 0 has collapsed to a constant. UserError if the MSE is not finite.
        """
        self.model.eval()
        chunks = self.in_batches(range(self.rank, len(self.val_data.dataset), self.world_size))
        sums, bad = torch.zeros(3, dtype=torch.float64), []
        for chunk, (inputs, targets) in zip(chunks, self.val_data.batches(chunks), strict=True):
            with self.autocast():
                predictions = (predict or self.model)(inputs)
            deviations = [mean_and_variance(x)[1].sqrt().sum() for x in (predictions, targets)]
            sums += torch.stack([(predictions - targets).square().sum(), *deviations]).cpu().double()
            bad += [] if sums[0].isfinite() or bad else [self.val_data.dataset.name(i) for i in chunk]
        error, predicted, true = self.sum_over_processes(sums.tolist())
        if not math.isfinite(error):  # the same on every process
            names = ", ".join(sorted(name for names in self.gather(bad) for name in names))
            what = f"the validation MSE is not finite in epoch {self.progress.epoch}, pairs {names}"
            raise UserError(f"{what}; look at these pairs, or lower --lr")
        elements = len(self.val_data.dataset) * self.codec.embedding_dim * self.frames
        return error / elements, predicted / max(true, 1e-30)

    def end_epoch(self, line: dict[str, object], is_best: bool) -> None:
        """Log the epoch, decide whether it was the last, save."""
        config, progress = self.config, self.progress
        epoch = progress.epoch
        if epoch - progress.best_epoch >= config.patience:
            progress.finished = f"no better validation MSE for {config.patience} epochs"
        elif epoch >= config.epochs:
            progress.finished = ALL_EPOCHS_DONE
        self.log(describe_epoch(line, config.epochs, progress.seconds))
        progress.epoch, progress.step, progress.step_errors, progress.step_grad_norms = epoch + 1, 0, [], []
        if self.rank > 0:
            return
        self.metrics.append(line)
        checkpoint = self.checkpoint(epoch, line["val_mse"])
        if is_best:
            save_checkpoint(self.folder / BEST, checkpoint)
        if epoch % config.checkpoint_every == 0:
            save_checkpoint(self.folder / f"checkpoint_epoch_{epoch}.pt", checkpoint)
            newest = self.folder / f"checkpoint_epoch_{epoch}.pt"
            self.log(f"listen     {evaluation_command(config, newest)}")
        save_checkpoint(self.folder / LAST, checkpoint)

    def verdict(self) -> str:
        progress = self.progress
        where = f"in epoch {progress.best_epoch}, {self.folder / BEST}"
        return f"{progress.finished}; best validation MSE {progress.best_mse:.6g} {where}"

    # ------------------------------------------------------------------ stopping and going on

    def poll(self, chunks: list[list[int]], checked: int) -> None:
        """Stop all processes at the same step if one was asked to, or met a number that is not finite.

        `checked`: as many steps of the epoch were looked at before.
        """
        progress = self.progress
        if self.rank == 0 and (job := job_folder()) and (job / "stop").exists():
            self.stop_signal = ASKED_BY_JOB
        # A NaN spreads to every process at the next step: the earliest step, and there the loss, tell the culprit.
        steps = range(checked, progress.step)
        bad = [(step, 0) for step in steps if not math.isfinite(progress.step_errors[step])]
        bad += [(step, 1) for step in steps if not math.isfinite(progress.step_grad_norms[step])]
        order = min(bad, default=(math.inf, 0))
        pairs = [self.train_data.dataset.name(i) for i in chunks[order[0]]] if bad else []
        reports = self.gather((self.stop_signal, order, pairs))
        first = min(order for _, order, _ in reports)
        if first[0] < math.inf:
            names = sorted({name for _, order, pairs in reports if order == first for name in pairs})
            message = (
                f"the loss is not finite: epoch {progress.epoch}, step {first[0] + 1}, pairs {', '.join(names)}; "
                f"look at these pairs, or lower --lr; {self.folder / LAST} is from the last good epoch"
            )
            raise UserError(message) if self.rank == 0 else SystemExit(1)
        stop = max(signal_number for signal_number, _, _ in reports)
        if stop and progress.step < len(chunks):  # else the end of the epoch comes first, and saves
            self.save_and_leave(stop)

    def save_and_leave(self, signal_number: int) -> None:
        progress = self.progress
        # One process holds the sums of all, so that any of them may go on with it.
        summed = self.sum_over_processes(progress.step_errors)
        progress.step_errors = summed if self.rank == 0 else [0.0] * len(summed)
        if self.rank == 0:
            save_checkpoint(self.folder / LAST, self.checkpoint(progress.epoch - 1, float("nan")))
        by_job = signal_number == ASKED_BY_JOB
        by = "its job" if by_job else signal.Signals(signal_number).name
        self.log(
            f"stopped by {by} in epoch {progress.epoch} after step {progress.step}, "
            "saved; the same command goes on from here"
        )
        if by_job and self.rank == 0:
            (job_folder() / "stopped").touch()
        raise SystemExit(0 if by_job else 128 + signal_number)

    def remember(self, signal_number: int, _frame: FrameType | None) -> None:
        """Save at the end of the step, and leave."""
        self.stop_signal = signal_number

    def checkpoint(self, epoch: int, val_mse: float) -> dict:
        """Everything a resume and a use of the model need; `epoch` is the last complete one."""
        return {
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "config": dataclasses.asdict(self.config),
            "identity": self.identity,
            "epoch": epoch,
            "val_mse": val_mse,
            "baselines": self.baselines,
            "codec": self.codec.fingerprint,
            "codec_is_pretrained": self.codec.is_pretrained,
            "sample_rate": self.codec.sample_rate,
            "num_samples": self.train_data.dataset.num_samples,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, checkpoint: dict) -> None:
        self.progress = restore_state(checkpoint, self.folder / LAST, self.model, self.optimizer, self.scheduler)
        self.baselines = checkpoint["baselines"]
        if self.rank > 0:
            self.progress.step_errors = [0.0] * len(self.progress.step_errors)
        self.log(f"resuming   {self.folder / LAST}: epoch {self.progress.epoch}, after step {self.progress.step}")

    # ------------------------------------------------------------------ measures and small parts

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel over the training pairs' embeddings, [128] each."""
        mine = range(self.rank, len(self.train_data.dataset), self.world_size)
        sums = torch.zeros(2, self.codec.embedding_dim, dtype=torch.float64)
        for inputs, targets in self.train_data.batches(self.in_batches(mine)):
            for embeddings in (inputs, targets):
                mean, variance = (t.cpu().double() for t in mean_and_variance(embeddings))
                sums += torch.stack([mean, variance + mean.square()]).sum(dim=1)
        sums = torch.tensor(self.sum_over_processes(sums.flatten().tolist()), dtype=torch.float64).view(2, -1)
        mean, mean_square = sums / (2 * len(self.train_data.dataset))
        std = (mean_square - mean.square()).clamp_min(0).sqrt()
        return mean.float(), std.clamp_min(1e-6).float()

    def pairs_after(self, step: int) -> int:
        """How many pairs of an epoch the steps from `step` on hold."""
        return len(self.train_data.dataset) - step * self.config.batch_size * self.world_size

    def in_batches(self, indices: range) -> list[list[int]]:
        size = self.config.batch_size
        return [list(indices[i : i + size]) for i in range(0, len(indices), size)]

    def measure_baselines(self) -> dict[str, float]:
        """Validation MSE of predicting the training mean and of repeating the input."""
        return {
            "training_mean": self.validate(lambda inputs: self.model.mean.expand_as(inputs))[0],
            "repeat_input": self.validate(lambda inputs: inputs)[0],
        }

    def sum_over_processes(self, values: list[float]) -> list[float]:
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def log(self, line: str) -> None:
        if self.rank == 0 and line:
            print(line, flush=True)
