"""Train the transformer: the entry point, on one CPU, one GPU or many.

    python train_simple_ddp.py                             # one process per GPU, or one on the CPU
    python train_simple_ddp.py --num_processes 2           # two processes on this machine
    torchrun --nproc_per_node=4 train_simple_ddp.py        # the same, started by torchrun
    python train_simple_ddp.py --check_only                # is all there that a training needs?
    sbatch run_train_simple.sh                             # on Levante, 4 GPUs

Every default is the document's. A run that was cut goes on where it was when the same command is given
again; Ctrl-C saves first. Watch the log, or checkpoints_simple/metrics.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from multiprocessing import SimpleQueue
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from tqdm import tqdm

from audio.frozen_encodec import find_weights
from common.arguments import file_path, number
from common.devices import pick_device
from common.errors import UserError, describe_os_error, printable, run_script
from common.files import check_output_folder
from dataset.cutting import exit_with_parent
from dataset.pairs import find_pairs
from train_simple_worker import train_worker
from training.checkpoint import TrainConfig, job_folder


def parse_args() -> tuple[TrainConfig, int | None, bool]:
    """The run's settings, --num_processes and --check_only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = TrainConfig()

    def add(flag: str, help: str, **options: object) -> None:
        parser.add_argument(
            f"--{flag}", default=getattr(defaults, flag), help=f"{help} (default: %(default)s)", **options
        )

    add("dataset_dir", "as made by create_dataset_pairs_wav.py", type=file_path)
    add("checkpoint_dir", "where checkpoints and metrics.jsonl go", type=file_path)
    add("batch_size", "pairs per process and step", type=number(int, at_least=1))
    add("epochs", "at most so many", type=number(int, at_least=1))
    add("lr", "AdamW's learning rate", type=number(float, above=0))
    add("weight_decay", "AdamW's weight decay", type=number(float, at_least=0))
    add("patience", "stop after so many epochs without a better validation MSE", type=number(int, at_least=1))
    add(
        "scheduler_factor",
        "the learning rate is multiplied by this on a plateau",
        type=number(float, at_least=0, below=1),
    )
    add("scheduler_patience", "epochs without progress before that", type=number(int, at_least=0, below=2**63))
    add("max_grad_norm", "gradients are clipped to this norm", type=number(float, above=0))
    add("checkpoint_every", "epochs between the checkpoint_epoch_N.pt that are kept", type=number(int, at_least=1))
    add("num_layers", "transformer layers", type=number(int, at_least=1, at_most=1000))
    add("num_heads", "attention heads", type=number(int, at_least=1, at_most=128))
    add("dropout", "on embeddings, residual branches and feed-forward", type=number(float, at_least=0, below=1))
    parser.add_argument(
        "--num_processes",
        type=number(int, at_least=1, at_most=1024),
        help="on this machine (default: one per GPU, else 1)",
    )
    add("device", "auto is CUDA, else Apple's GPU, else the CPU", choices=("auto", "cpu", "cuda", "mps"))
    add(
        "compile",
        "a backend of torch.compile for the model: a minute at the start, for fewer launches on a GPU",
        choices=("off", "inductor", "cudagraphs"),
    )
    add("precision", "auto is bf16 on GPUs that have it, else fp32", choices=("auto", "fp32", "bf16"))
    add(
        "resume",
        "auto goes on with a run found in checkpoint_dir, never removes it and starts anew",
        choices=("auto", "never"),
    )
    parser.add_argument("--no_cache", action="store_true", help="encode every batch as it comes and keep nothing")
    parser.add_argument(
        "--cache_dir", type=file_path, help="where embeddings are kept (default: .embedding_cache in dataset_dir)"
    )
    add("encodec_weights", "pretrained, untrained, or a file or folder", type=file_path)
    add("seed", "of weights, data order and dropout", type=number(int, at_least=0, below=2**63))
    parser.add_argument("--check_only", action="store_true", help="check dataset, weights and devices, train nothing")
    args = vars(parser.parse_args())
    num_processes, check_only = args.pop("num_processes"), args.pop("check_only")
    return TrainConfig(**args), num_processes, check_only


def check_before_start(config: TrainConfig, processes_on_node: int) -> None:
    """Raise UserError for whatever can be known to be wrong before any long work."""
    device = pick_device(config.device)
    if device.type == "cuda" and processes_on_node > torch.cuda.device_count():
        raise UserError(
            f"--num_processes {processes_on_node}: only {torch.cuda.device_count()} GPUs are visible; "
            "ask for as many, or --device cpu"
        )
    if device.type == "mps" and processes_on_node > 1:
        raise UserError(
            f"--num_processes {processes_on_node}: Apple's GPU takes one process; use --device cpu for more"
        )
    if 128 % config.num_heads:
        raise UserError(f"--num_heads {config.num_heads}: must divide the 128 embedding channels (1, 2, 4, 8, ...)")
    if config.scheduler_factor == 0:
        raise UserError("--scheduler_factor 0: must be above 0, or the training would stand still")
    dataset = Path(config.dataset_dir)
    if (dataset / ".staging").is_dir() and not (dataset / "metadata.txt").exists():
        raise UserError(f"{dataset}: its creation was cut short; run create_dataset_pairs_wav.py again")
    for split in ("train", "val"):
        find_pairs(dataset / split)
    check_output_folder("--checkpoint_dir", config.checkpoint_dir)
    check_output_folder("--cache_dir", config.cache_dir, is_written=False)
    if config.encodec_weights != "untrained":
        find_weights(config.encodec_weights)
    if config.compile != "off":
        try:
            torch.compile(torch.neg, backend=config.compile)(torch.zeros(2, device=device))
        except Exception as error:  # torch raises many kinds where a compiler is missing or too old
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--compile {config.compile}: torch cannot compile here ({reason}); leave it off"
            ) from error


def run_process(rank: int, world_size: int, config: TrainConfig, mistakes: SimpleQueue | None = None) -> None:
    """One of several processes: a user's mistake met there ends in one line, as in a single one."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text
    if mistakes is not None:
        exit_with_parent()
    tqdm.set_lock(threading.RLock())  # its default, a semaphore between processes, would be left behind
    try:
        if mistakes is None:
            check_before_start(config, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
        train_worker(rank, world_size, config)
        status = 0
    except SystemExit as end:  # saved, after a signal
        status = int(end.code or 0)
    except (UserError, OSError) as error:
        error = error if isinstance(error, UserError) else UserError(describe_os_error(error))
        if mistakes is not None:
            mistakes.put(str(error))
        else:
            # All processes of a node meet most mistakes; the first speaks, and torchrun ends the others.
            time.sleep(0 if int(os.environ.get("LOCAL_RANK", rank)) == 0 else 3)
            tell(rank, f"{Path(sys.argv[0]).name}: error: {printable(str(error))}\n")
        status = 1
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if mistakes is not None:
            raise
        # A broken connection is the echo of another process's end: torchrun is to see that one first.
        is_echo = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        time.sleep(3 if is_echo else 0)
        tell(rank, traceback.format_exc(), is_echo)
        status = 1
    # Leave as we are. After an error the others may wait in a collective, which must not be joined; and at the
    # interpreter's end torch's threads now and then abort a process whose work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def tell(rank: int, text: str, is_echo: bool = False) -> None:
    """Print an error; in a batch job also keep it, for the script to print the earliest one last."""
    if not is_echo and (folder := job_folder()):
        with contextlib.suppress(OSError):
            (folder / f"error_{time.time_ns()}_rank_{rank}").write_text(text)
    print(text, end="", file=sys.stderr, flush=True)


def start_processes(num_processes: int, config: TrainConfig) -> int:
    """Start the processes on this machine, pass signals on to them, return the exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    mistakes = torch.multiprocessing.get_context("spawn").SimpleQueue()
    started = torch.multiprocessing.start_processes(
        run_process, (num_processes, config, mistakes), num_processes, join=False, start_method="spawn"
    )

    def pass_on(number: int, _frame: object) -> None:
        for pid in started.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(signal_number, pass_on)
    try:
        while not started.join(grace_period=5):
            pass
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
        if not mistakes.empty():  # what the others raise is its echo
            raise UserError(mistakes.get()) from error
        if isinstance(error, torch.multiprocessing.ProcessRaisedException):
            raise
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    return 0


def main() -> int:
    config, num_processes, check_only = parse_args()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not check_only:  # under torchrun
        if num_processes is not None:
            raise UserError("--num_processes: torchrun has its own, --nproc_per_node; leave this one out")
        run_process(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), config)
    on_cuda = pick_device(config.device).type == "cuda"
    num_processes = num_processes or (torch.cuda.device_count() if on_cuda else 1)
    check_before_start(config, num_processes)
    if check_only:
        print(f"ready: {num_processes} x {pick_device(config.device).type}, {config.dataset_dir}")
        return 0
    if num_processes == 1:
        train_worker(0, 1, config)
        return 0
    return start_processes(num_processes, config)


if __name__ == "__main__":
    run_script(main)
