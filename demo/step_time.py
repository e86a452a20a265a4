"""Time a training step on this machine, to estimate how long training will take.

python demo/step_time.py --dataset_dir dataset_pairs_wav --num_processes 2 --epochs 200
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from common.arguments import dataset_setting, device_setting, number, parse_settings, setting
from common.devices import choose_precision, pick_device
from common.errors import run_script
from common.machine import available_cores
from dataset.pairs import METADATA_NAME, find_pairs, read_metadata
from model_simple_transformer import SimpleTransformer
from training.config import TrainConfig

STEPS = 3


@dataclass
class Settings:
    dataset_dir: str = dataset_setting()
    device: str = device_setting()
    frame_rate: int = setting(75, "the codec's frames per second", type=number(int, at_least=1))
    num_processes: int = setting(1, "number of training processes", type=number(int, at_least=1))
    epochs: int = setting(200, "maximum number of epochs", type=number(int, at_least=1))


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    device, batch = pick_device(settings.device), TrainConfig().batch_size
    seconds = int(read_metadata(Path(settings.dataset_dir, METADATA_NAME)).settings["segment_duration"])
    pairs = len(find_pairs(Path(settings.dataset_dir, "train")))
    if device.type == "cpu":
        torch.set_num_threads(max(1, available_cores() // settings.num_processes))
    model = SimpleTransformer().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    embeddings = torch.randn(batch, len(model.mean), seconds * settings.frame_rate, device=device)
    for step in range(STEPS + 1):
        if step == 1:  # the first step warms up
            started = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=choose_precision("auto", device) == "bf16"):
            predictions = model(embeddings)
        loss = torch.nn.functional.mse_loss(predictions, embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    epoch_min = (time.monotonic() - started) / STEPS * pairs / batch / settings.num_processes / 60
    print(
        f"about {epoch_min:.1f} min per epoch if nothing else is running, {epoch_min * settings.epochs / 60:.1f} h for "
        f"{settings.epochs} epochs; early stopping may end it sooner"
    )
    return 0


if __name__ == "__main__":
    run_script(main)
