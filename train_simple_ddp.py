"""Train the transformer: the entry point, on one CPU, one GPU or many.

    python train_simple_ddp.py                             # one process per GPU, or one on the CPU
    python train_simple_ddp.py --num_processes 2           # two processes on this machine
    torchrun --nproc_per_node=4 train_simple_ddp.py        # the same, started by torchrun
    python train_simple_ddp.py --check_only                # is all there that a training needs?
    sbatch run_train_simple.sh                             # on Levante, 4 GPUs

Every default is the original experiment's. The same command resumes a run after its last finished epoch,
whatever ended it; other settings given then hold from there on. Watch the log, or checkpoints_simple/metrics.jsonl.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.multiprocessing
from torch.distributed.elastic.multiprocessing.errors import record

from audio.frozen_encodec import find_weights
from common.arguments import parse_settings
from common.devices import pick_device
from common.errors import UserError, print_error, print_interrupt, run_script
from common.files import check_output_folder
from dataset.pairs import METADATA_NAME, find_pairs
from dataset_wav_pairs import CACHE_NAME
from train_simple_worker import train_worker
from training.config import TrainConfig


def main() -> int:
    config = parse_settings(TrainConfig, __doc__)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not config.check_only:
        run_under_torchrun(config)
        return 0
    on_cuda = pick_device(config.device).type == "cuda"
    num_processes = config.num_processes or (torch.cuda.device_count() if on_cuda else 1)
    check_before_start(config, num_processes)
    if config.check_only:
        print(f"ready: {num_processes} x {pick_device(config.device).type}, {config.dataset_dir}")
        print(f"checkpoints: {config.checkpoint_dir}")
        print(f"embeddings: {config.cache_dir or Path(config.dataset_dir, CACHE_NAME)}")
    elif num_processes == 1:
        train_worker(0, 0, 1, config)
    else:
        return start_processes(num_processes, config)
    return 0


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
    dataset = Path(config.dataset_dir)
    if (dataset / ".staging").is_dir() and not (dataset / METADATA_NAME).exists():
        raise UserError(f"{dataset}: its creation was cut short; run create_dataset_pairs_wav.py again")
    for split in ("train", "val"):
        find_pairs(dataset / split)
    check_output_folder("--checkpoint_dir", config.checkpoint_dir)
    check_output_folder("--cache_dir", config.cache_dir, is_written=False)
    if config.encodec_weights != "untrained":
        find_weights(config.encodec_weights)


def start_processes(num_processes: int, config: TrainConfig) -> int:
    """Train with several processes on this machine; the exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = torch.multiprocessing.spawn(run_process, (num_processes, config), num_processes, join=False)
    try:
        while not started.join(grace_period=5):
            pass
    except torch.multiprocessing.ProcessExitedException as error:  # it has printed its reason
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    except KeyboardInterrupt:  # which the processes hear too, as long as it comes from the terminal
        for process in started.processes:
            process.join(timeout=5)
            process.terminate()
        return 130
    return 0


@record
def run_under_torchrun(config: TrainConfig) -> None:
    if config.num_processes is not None:
        raise UserError("--num_processes: torchrun has its own, --nproc_per_node; leave this one out")
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if local_rank == 0:
        check_before_start(config, on_node)
    run_process(local_rank, int(os.environ["WORLD_SIZE"]), config, int(os.environ["RANK"]))


def run_process(local_rank: int, num_processes: int, config: TrainConfig, global_rank: int | None = None) -> None:
    """One of several processes: an error that a user can fix ends it in one line and status 1."""
    global_rank = local_rank if global_rank is None else global_rank
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        train_worker(local_rank, global_rank, num_processes, config)
    except (UserError, OSError) as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        if global_rank == 0:
            print_interrupt(interrupt)
        sys.exit(130)
    except RuntimeError as error:
        # Another process has ended and broken the connection: its reason counts, and the launcher ends this one.
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            time.sleep(30)
        raise


if __name__ == "__main__":
    run_script(main)
