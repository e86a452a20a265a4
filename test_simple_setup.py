"""Verify the setup before training: step 2 of the pipeline. One line a check, the last says ready or what to do.

python test_simple_setup.py                                  # on a login node it also fetches the codec's weights
python test_simple_setup.py --encodec_weights untrained      # on a machine that cannot reach them
python -m pytest test_simple_setup.py                        # the same checks, untrained, on the CPU
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import encodec
import numpy
import soundfile
import torch
import torchaudio

from audio.frozen_encodec import FrozenEncodec, load_frozen_encodec, untrained_banner
from common.arguments import file_path
from common.devices import available_cores, pick_device
from common.errors import UserError, run_script
from dataset_wav_pairs import WavPairsDataset
from model_simple_transformer import SimpleTransformer, count_parameters
from training.checkpoint import TrainConfig


@dataclasses.dataclass
class Setup:
    """What is to be checked: where the codec's weights come from, and the device."""

    encodec_weights: str = "untrained"
    device: str = "cpu"
    dataset_dir: str | None = None

    @cached_property
    def codec(self) -> FrozenEncodec:
        return load_frozen_encodec(self.encodec_weights, pick_device(self.device))


def check_versions(setup: Setup) -> str:
    """torch and torchaudio belong together; the rest imports."""
    minor = [module.__version__.split(".")[:2] for module in (torch, torchaudio)]
    assert minor[0] == minor[1], (
        f"torch {torch.__version__} with torchaudio {torchaudio.__version__}: install the pair in requirements.txt"
    )
    return (
        f"python {platform.python_version()}, torch {torch.__version__}, torchaudio {torchaudio.__version__}, "
        f"encodec {encodec.__version__}, soundfile {soundfile.__version__}, numpy {numpy.__version__}"
    )


def check_devices(setup: Setup) -> str:
    """The device computes: 1 + 1 on it is 2."""
    device = pick_device(setup.device)
    assert (torch.ones(1, device=device) + 1).item() == 2
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{device}; {available_cores()} cores; {len(gpus)} CUDA GPUs{': ' + ', '.join(gpus) if gpus else ''}"


def check_encodec(setup: Setup) -> str:
    """24 kHz, 6 kbps, frozen; 16 s become [128, 1200] and 384,000 samples again."""
    codec = setup.codec
    assert codec.sample_rate == 24000 and codec.bandwidth == 6.0 and codec.frame_rate == 75
    assert not codec.training and not any(p.requires_grad for p in codec.parameters()), "the codec is not frozen"
    waveforms = torch.randn(2, 1, 16 * 24000, generator=torch.Generator().manual_seed(0)) * 0.1
    embeddings = codec.encode(waveforms)
    assert embeddings.shape == (2, 128, 1200), f"embeddings {list(embeddings.shape)}, expected [2, 128, 1200]"
    assert embeddings.isfinite().all() and not embeddings.requires_grad
    decoded = codec.decode(embeddings)
    assert decoded.shape == (2, 1, 384000), f"decoded {list(decoded.shape)}, expected [2, 1, 384000]"
    assert decoded.isfinite().all()
    return f"{codec.fingerprint}: 24000 Hz, 6.0 kbps, frozen, [2, 1, 384000] -> [2, 128, 1200] -> [2, 1, 384000]"


def check_model(setup: Setup) -> str:
    """859,520 trainable parameters; the shape is kept."""
    model = SimpleTransformer().to(pick_device(setup.device))
    assert count_parameters(model) == 859_520, f"{count_parameters(model):,} parameters, expected 859,520"
    embeddings = torch.randn(2, 128, 1200, device=pick_device(setup.device))
    assert model(embeddings).shape == embeddings.shape
    return f"{count_parameters(model):,} trainable parameters, [2, 128, 1200] -> [2, 128, 1200]"


def check_loss(setup: Setup) -> str:
    """MSE in encoded space: of an untrained model it is the mean square of the target, and it has a gradient."""
    device = pick_device(setup.device)
    model, target = SimpleTransformer().to(device), torch.randn(2, 128, 75, device=device)
    loss = torch.nn.functional.mse_loss(model(torch.randn_like(target)), target)
    torch.testing.assert_close(loss, target.square().mean())
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    return "MSE in encoded space, finite, with a gradient"


def check_optimizer(setup: Setup) -> str:
    """The document's AdamW, scheduler, clipping and stopping are the defaults of a run."""
    c = TrainConfig()
    assert (c.lr, c.weight_decay, c.batch_size, c.epochs) == (1e-4, 0.01, 16, 200)
    assert (c.patience, c.scheduler_factor, c.scheduler_patience, c.max_grad_norm) == (20, 0.5, 5, 1.0)
    optimizer = torch.optim.AdamW(SimpleTransformer().parameters(), c.lr, weight_decay=c.weight_decay)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    for _ in range(c.scheduler_patience + 2):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == c.lr * c.scheduler_factor
    return "AdamW(lr=1e-4, weight_decay=0.01), ReduceLROnPlateau(0.5, 5), clip at 1.0, batch 16, 200 epochs"


def check_training(setup: Setup) -> str:
    """The model learns one batch by heart."""
    device = pick_device(setup.device)
    torch.manual_seed(0)
    model = SimpleTransformer(dropout=0.0).to(device)
    inputs, targets = torch.randn(2, 2, 128, 60).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(120):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], f"MSE {losses[0]:.3f} -> {losses[-1]:.3f} in 120 steps"
    return f"one batch overfitted: MSE {losses[0]:.2f} -> {losses[-1]:.2f} in 120 steps"


def check_dataset(setup: Setup) -> str:
    """If there is a dataset, all of its headers are right and its first pair encodes."""
    root = Path(setup.dataset_dir or "dataset_pairs_wav")
    if setup.dataset_dir is None and not root.exists():
        return f"none at {root} yet: python create_dataset_pairs_wav.py makes it"
    sizes = {}
    for split in ("train", "val"):
        dataset = WavPairsDataset(root / split, setup.codec, use_cache=False)
        first, second = dataset[0]
        assert first.shape == second.shape == (128, dataset.num_frames)
        sizes[split] = len(dataset)
    return f"{root}: {sizes['train']} train and {sizes['val']} val pairs, every header right"


CHECKS: list[Callable[[Setup], str]] = [
    check_versions,
    check_devices,
    check_encodec,
    check_model,
    check_loss,
    check_optimizer,
    check_training,
    check_dataset,
]


def pytest_generate_tests(metafunc) -> None:
    metafunc.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))


def test_setup(check: Callable[[Setup], str]) -> None:
    check(Setup())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--encodec_weights", type=file_path, default="pretrained", help="pretrained, untrained, or a file or folder")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: %(default)s)")
    add("--dataset_dir", type=file_path, help="a dataset to check (default: dataset_pairs_wav, if it is there)")
    setup = Setup(**vars(parser.parse_args()))
    failed = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            print(f"ok    {name:10s} {check(setup)}", flush=True)
        except (AssertionError, UserError, RuntimeError) as error:
            failed.append(name)
            print(f"FAIL  {name:10s} {error}", flush=True)
    if failed:
        print(f"not ready: mend {', '.join(failed)} (above), then run this again", flush=True)
        return 1
    if not setup.codec.is_pretrained:
        print(untrained_banner(setup.codec), file=sys.stderr)
    print("ready: python train_simple_ddp.py, or sbatch run_train_simple.sh", flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
