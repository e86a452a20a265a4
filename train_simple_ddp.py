"""Train the transformer on the CPU, one GPU or several GPUs.

    python train_simple_ddp.py                             # one process per GPU, or one on the CPU
    python train_simple_ddp.py --num_processes 2           # two processes on this machine
    torchrun --nproc_per_node=4 train_simple_ddp.py        # four processes, started by torchrun
    python train_simple_ddp.py --check_only                # check dataset, weights and devices; train nothing
    sbatch run_train_simple.sh                             # on Levante, 4 GPUs

The defaults are the original experiment's, except --attention_dropout (README, "Departures", 4). If a run is
interrupted, the same command resumes it after its last finished epoch. Changed settings apply from there on, except
that the model and the codec must stay the same. Watch the log, or checkpoints_simple/metrics.jsonl.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH

from common.arguments import answer_early, parse_settings
from training.config import TrainConfig

if __name__ == "__main__":
    answer_early(TrainConfig, __doc__)

import torch
import torch.multiprocessing
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm import tqdm

from audio.weights import find_weights
from common.devices import pick_device
from common.errors import UserError, hold_interrupt, is_bug, print_error, print_interrupt, run_script
from common.files import check_output_folder
from dataset.pairs import METADATA_NAME, find_pairs
from dataset_wav_pairs import CACHE_NAME
from train_simple_worker import train_worker


def main() -> int:
    config = parse_settings(TrainConfig, __doc__)
    if torch.distributed.is_torchelastic_launched() and not config.check_only:
        record(run_under_torchrun)(config)  # torchrun prints the first failure's traceback last
        if __name__ == "__main__":
            leave_at_once()
        return 0
    on_cuda = pick_device(config.device).type == "cuda"
    num_processes = config.num_processes or (torch.cuda.device_count() if on_cuda else 1)
    check_before_start(config, num_processes)
    if config.check_only:
        print(f"ready: {num_processes} x {pick_device(config.device).type}, {config.dataset_dir}")
        print(f"checkpoints: {config.checkpoint_dir}")
        print(f"embeddings: {config.cache_dir or Path(config.dataset_dir, CACHE_NAME)}")
    elif num_processes == 1:
        train_worker(config)
    else:
        return start_processes(config, num_processes)
    return 0


def check_before_start(config: TrainConfig, processes_on_node: int) -> None:
    """Raise UserError for every problem that can be found before any long work."""
    device = pick_device(config.device)
    if device.type == "cuda" and processes_on_node > torch.cuda.device_count():
        raise UserError(
            f"--num_processes {processes_on_node}: only {torch.cuda.device_count()} GPUs are visible; "
            "use at most that many, or --device cpu"
        )
    if device.type == "mps" and processes_on_node > 1:
        raise UserError(
            f"--num_processes {processes_on_node}: only one process can use Apple's GPU; use --device cpu for more"
        )
    dataset = Path(config.dataset_dir)
    if (dataset / ".staging").is_dir() and not (dataset / METADATA_NAME).exists():
        raise UserError(f"{dataset}: incomplete; run create_dataset_pairs_wav.py again to finish it")
    for split in ("train", "val"):
        find_pairs(dataset / split)
    check_output_folder("--checkpoint_dir", config.checkpoint_dir)
    check_output_folder("--cache_dir", config.cache_dir, is_written=False)
    if config.encodec_weights != "untrained":
        find_weights(config.encodec_weights)


# ------------------------------------------------------------------ several processes


def start_processes(config: TrainConfig, num_processes: int) -> int:
    """Train with several processes on this machine and return the exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hide warnings with a C++ stack, on Ctrl-C for example
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # hide "Terminating process ..."
    started = None
    try:
        with hold_interrupt():  # otherwise Ctrl-C makes each process that is importing torch print a traceback
            started = torch.multiprocessing.spawn(start_one, (config, num_processes), num_processes, join=False)
        while not started.join(grace_period=5):
            pass
    except torch.multiprocessing.ProcessExitedException as error:  # the process has printed the reason
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    except KeyboardInterrupt as interrupt:  # a terminal sends Ctrl-C to all processes
        for process in started.processes if started else []:
            process.join(timeout=5)
            process.terminate()
        if not started or started.processes[0].exitcode != 130:  # the first process did not print it
            print_interrupt(interrupt)
        return 130
    return 0


def start_one(rank: int, config: TrainConfig, num_processes: int) -> None:
    run_process(config, rank, rank, num_processes, num_processes)
    leave_at_once()


def run_under_torchrun(config: TrainConfig) -> None:
    """Train as one of the processes that torchrun started. Its environment variables say which one."""
    if config.num_processes is not None:
        raise UserError("--num_processes: cannot be used with torchrun; use its --nproc_per_node instead")
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    local_rank, rank, world_size, on_node = (int(os.environ[name]) for name in names)
    if local_rank == 0:
        check_before_start(config, on_node)
    run_process(config, local_rank, rank, world_size, on_node)


def run_process(config: TrainConfig, local_rank: int, rank: int, world_size: int, on_node: int) -> None:
    """Train as one of several processes. An error that the user can fix ends it with one line and status 1."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    tqdm.set_lock(threading.RLock())  # the default is a semaphore between processes, which outlives a killed process
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see start_processes
        train_worker(config, local_rank, rank, world_size, on_node)
    except (UserError, OSError) as error:
        if is_bug(error):
            raise
        # All processes often fail for the same reason. The first prints it, and the launcher then ends the others.
        time.sleep(10 if rank > 0 else 0)
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        if rank == 0:
            print_interrupt(interrupt)
        leave_at_once(130)
    except RuntimeError as error:
        # Another process has ended and closed the connection. Its error is the reason, and the launcher ends this one.
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            time.sleep(30)
        raise


def leave_at_once(status: int = 0) -> None:
    """End this process at once, because torch's threads sometimes abort a process while the interpreter shuts down."""
    if sys.stdout:
        sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run_script(main)
