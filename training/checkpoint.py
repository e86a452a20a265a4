"""What a training run knows, and its checkpoints: written whole, read safely, resumed exactly.

Nothing to run. Used by train_simple_worker.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import itertools
import os
import platform
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError, name_in_errors
from common.files import atomic_write
from dataset.cache import metrics_line, read_metrics, seal
from model_simple_transformer import CHECKPOINT_FORMAT, load_checkpoint

LAST, BEST, METRICS = "last.pt", "best_model.pt", "metrics.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run; the defaults are the document's. Saved in every checkpoint."""

    dataset_dir: str = "dataset_pairs_wav"
    checkpoint_dir: str = "checkpoints_simple"
    batch_size: int = 16  # pairs per process
    epochs: int = 200
    lr: float = 1e-4
    weight_decay: float = 0.01
    patience: int = 20  # epochs without a better validation MSE before the run stops
    scheduler_factor: float = 0.5
    scheduler_patience: int = 5
    max_grad_norm: float = 1.0
    checkpoint_every: int = 10  # epochs
    num_layers: int = 4
    num_heads: int = 8
    dropout: float = 0.1
    device: str = "auto"
    precision: str = "auto"
    compile: str = "off"  # or a backend of torch.compile
    resume: str = "auto"
    no_cache: bool = False
    cache_dir: str | None = None
    encodec_weights: str = "pretrained"
    seed: int = 42


# Settings that leave the course of the training as it is, so that a resumed run may have others.
FREE_ON_RESUME = {
    "dataset_dir", "checkpoint_dir", "epochs", "checkpoint_every", "device", "resume", "no_cache", "cache_dir",
    "encodec_weights",
}  # fmt: skip


@dataclass
class Progress:
    """Where a run is. With weights, optimizer and scheduler this is all that a resume needs: the order of
    the data and the random numbers of a step follow from seed, epoch and step alone.
    """

    epoch: int = 1  # the epoch under way
    step: int = 0  # steps of it that are done
    step_errors: list[float] = field(default_factory=list)  # of these steps: this process's squared error
    step_grad_norms: list[float] = field(default_factory=list)
    best_mse: float = float("inf")
    best_epoch: int = 0
    seconds: float = 0.0  # of training so far
    finished: str = ""  # why, once it is


def run_identity(config: TrainConfig, world_size: int, precision: str, codec: str) -> dict[str, object]:
    """What must be equal for a run to go on: settings, processes and codec; the data comes later."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_ON_RESUME}
    return settings | {"precision": precision, "world_size": world_size, "codec": codec}


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint (tensors and plain values), sealed, beside its name and rename it."""
    content = io.BytesIO()
    torch.save(checkpoint | {"format": CHECKPOINT_FORMAT}, content)
    with atomic_write(path, sync=True) as beside:
        beside.write_bytes(seal(content.getvalue()))


def read_last(config: TrainConfig) -> dict | None:
    """The checkpoint that a run in `checkpoint_dir` goes on from, None if there is none.

    UserError if it is damaged or gone; it offers the latest of the others that is whole.
    """
    folder = Path(config.checkpoint_dir)
    others = [*folder.glob("checkpoint_epoch_*.pt"), *folder.glob(BEST)]
    if config.resume == "never" or not (others or (folder / LAST).exists()):
        return None
    try:
        return load_checkpoint(folder / LAST)
    except UserError as error:
        what = "damaged, or no checkpoint of this project" if (folder / LAST).exists() else "missing"
        whole = [(found["epoch"], path) for path in others if (found := _load_whole(path))]
        offer = f"copy {max(whole)[1]} over it to go on from there, or " if whole else ""
        ways = f"{offer}choose another --checkpoint_dir, or --resume never to start anew"
        raise UserError(f"{folder / LAST}: {what}; {ways}") from error


def _load_whole(path: Path) -> dict | None:
    with contextlib.suppress(UserError, OSError):
        return load_checkpoint(path)


def restore_state(
    checkpoint: dict,
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
) -> Progress:
    """Bring model, optimizer and scheduler to where the checkpoint from `path` is; UserError if it is of another form.

    The optimizer's tensors are copied into the parameters' shapes: a fused AdamW writes as far as the parameter
    reaches, whatever it was given.
    """
    try:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        for parameter, state in optimizer.state.items():
            state["step"] = state["step"].float().reshape(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(parameter).copy_(state[name])
        scheduler.load_state_dict(checkpoint["scheduler"])
        progress = Progress(**checkpoint["progress"])
        if [type(v) for v in vars(progress).values()] != [type(v) for v in vars(Progress()).values()]:
            raise TypeError("a value of another type than a training saves")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: not what this training saves; choose another --checkpoint_dir") from error
    return progress


def check_same_run(folder: str, saved: dict[str, object], now: dict[str, object]) -> None:
    """UserError that names each difference if the run in `folder` cannot go on as the present one."""
    changed = [f"{key} {saved.get(key)} -> {value}" for key, value in now.items() if saved.get(key) != value]
    if changed:
        raise UserError(
            f"{folder}: holds a run with another configuration ({'; '.join(changed)}); "
            "choose another --checkpoint_dir, or --resume never"
        )


def start_anew(folder: Path) -> None:
    """Remove the files of an earlier run; what has one of their names and is not ours, or damaged, is set aside."""
    for path in [folder / LAST, folder / BEST, folder / METRICS, *folder.glob("checkpoint_epoch_*.pt")]:
        if not path.exists():
            continue
        if _is_ours(path):
            path.unlink()
            continue
        beside = (path.with_name(f"{path.name}.kept_{number}") for number in itertools.count(1))
        kept = next(other for other in beside if not other.exists())
        path.rename(kept)
        print(f"{path}: damaged or not this project's; kept as {kept.name}", flush=True)


def _is_ours(path: Path) -> bool:
    """Is it a checkpoint or a metrics.jsonl of this project, undamaged?"""
    try:
        if path.name == METRICS:
            return "baselines" in read_metrics(path, 0)[0][0]
        return bool(load_checkpoint(path))
    except (UserError, OSError, ValueError, IndexError, TypeError):
        return False


class MetricsLog:
    """metrics.jsonl: a line with the baselines, then one a finished epoch."""

    def __init__(self, folder: Path):
        self.path = folder / METRICS

    def begin(self, baselines: dict[str, float], epochs_done: int) -> None:
        """Start the file, or bring it back to where the resumed checkpoint is; what was damaged is named."""
        lines, wrong = read_metrics(self.path, epochs_done) if epochs_done else ([], [])
        for problem in wrong:
            print(problem, flush=True)
        kept = [line for line in lines if line.get("epoch", 0) in range(1, epochs_done + 1)]
        with atomic_write(self.path) as beside:
            beside.write_text("".join(map(metrics_line, [{"baselines": baselines}, *kept])))

    def append(self, line: dict[str, object]) -> None:
        with name_in_errors(self.path), open(self.path, "a") as file:
            file.write(metrics_line(line))
            file.flush()
            os.fsync(file.fileno())


def epoch_chunks(
    num_pairs: int, batch_size: int, rank: int, world_size: int, seed: int, epoch: int
) -> tuple[list[list[int]], list[list[int]]]:
    """The pairs of each step of an epoch for one process, and how many every process has in it.

    The order follows from seed and epoch alone. A step takes batch_size * world_size pairs, spread as
    evenly as can be; the last takes what remains. A process without a pair there gets one to
    run along with, which counts 0.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs).tolist()
    step_size = batch_size * world_size
    batches = [order[i : i + step_size] for i in range(0, num_pairs, step_size)]
    chunks = [batch[rank::world_size] or batch[:1] for batch in batches]
    return chunks, [[len(batch[r::world_size]) for r in range(world_size)] for batch in batches]


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def mean_and_variance(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Over time: [B, C, T] -> [B, C] each. torch.var_mean takes nine times as long on a CPU."""
    mean = embeddings.mean(dim=2)
    return mean, (embeddings - mean.unsqueeze(2)).square_().mean(dim=2)


def choose_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16: `auto` is bf16 on GPUs that compute it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def data_parallel(
    model: torch.nn.Module, example: torch.Tensor, autocast: contextlib.AbstractContextManager
) -> DistributedDataParallel:
    """`model` under DDP, after one pass on `example` that trains nothing.

    After its first backward pass DDP arranges its buckets anew, and with them the order in which the gradients of
    three or more processes are added. This pass comes before a run's first step and before a resumed run's: all
    steps then add alike.
    """
    ids = [example.device.index] if example.device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    with autocast:
        output = parallel(example)
    output.sum().backward()
    return parallel


@contextlib.contextmanager
def signals_to(remember: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within, SIGTERM, SIGINT and SIGUSR2 call `remember` and nothing else."""
    before = {s: signal.signal(s, remember) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_group(kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
    """Join the other processes in ending the group; not after an error, as they may wait in a collective."""
    if kind is None or (isinstance(error, SystemExit) and error.code != 1):
        torch.distributed.destroy_process_group()


def describe_epoch(line: dict[str, object], epochs: int, seconds: float) -> str:
    """An epoch's line in the log, `seconds` into the training; `left` would be without early stopping."""
    left = datetime.timedelta(seconds=round(seconds / line["epoch"] * (epochs - line["epoch"])))
    return (
        f"epoch {line['epoch']:3d}/{epochs}  train {line['train_mse']:.6g}  val {line['val_mse']:.6g}  "
        f"skill {line['skill']:+.4f}  deviation {line['deviation_ratio']:.3f}  lr {line['lr']:.2e}  "
        f"grad {line['grad_norm']:.3g}  {line['pairs_per_second']:.1f} pairs/s  "
        f"left {left}{'  *best' if line['best'] else ''}"
    )


def evaluation_command(config: TrainConfig, checkpoint: Path) -> str:
    """The command that looks at, and listens to, a checkpoint of this run."""
    words = ["python", "evaluate_continuation.py", "--checkpoint", str(checkpoint)]
    for flag in ("dataset_dir", "cache_dir", "encodec_weights"):
        value = getattr(config, flag)
        if value != getattr(TrainConfig(), flag):
            words += [f"--{flag}", value]
    return shlex.join(words)


def describe_run(config: TrainConfig, world_size: int, device: torch.device, precision: str) -> str:
    """The opening of the log: when, what code, on what, with which settings."""
    here, now = Path(__file__).parent, datetime.datetime.now().isoformat(timespec="seconds")
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        commit = ""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads each"
    )
    settings = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(config).items())
    return (
        f"training   {now}, commit {commit or 'unknown'}\n"
        f"versions   python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}\n"
        f"devices    {world_size} x {device.type} ({name}), {precision}, "
        f"batch {config.batch_size} x {world_size} = {config.batch_size * world_size}\n"
        f"settings   {settings}"
    )


def job_folder() -> Path | None:
    """The folder in which run_train_simple.sh and its workers leave word for each other, if a job runs this."""
    folder = os.environ.get("TRAIN_JOB_DIR")
    return Path(folder) if folder else None
