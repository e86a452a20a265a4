"""Verify the setup before training: step 2 of the pipeline.

It prints one line per check. The last line says "ready" or what to fix.

    python test_simple_setup.py                                  # also downloads the codec's weights
    python test_simple_setup.py --encodec_weights demo           # where they cannot be downloaded
    python -m pytest test_simple_setup.py                        # the same checks, untrained, on the CPU
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import encodec
import numpy
import soundfile
import torch
import torchaudio

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH

from audio.frozen_encodec import FrozenEncodec, load_frozen_encodec
from common.arguments import device_setting, file_path, parse_settings, setting, weights_setting
from common.devices import pick_device
from common.errors import UserError, run_script
from common.machine import available_cores
from dataset_wav_pairs import WavPairsDataset
from model_simple_transformer import SimpleTransformer, count_parameters
from training.config import TrainConfig
from training.log import split_warning


@dataclass
class Setup:
    """What to check."""

    encodec_weights: str = weights_setting()
    device: str = device_setting()
    dataset_dir: str | None = setting(
        None, "a dataset to check (default: dataset_pairs_wav, if it exists)", type=file_path
    )

    @cached_property
    def codec(self) -> FrozenEncodec:
        return load_frozen_encodec(self.encodec_weights, pick_device(self.device))


class CheckError(Exception):
    """A check failed. The message is one line."""


def require(condition: object, otherwise: str) -> None:
    """Like `assert`, but it also works under python -O."""
    if not condition:
        raise CheckError(otherwise)


def check_versions(setup: Setup) -> str:
    """torch and torchaudio work together: a second of 48 kHz becomes a second of 24 kHz."""
    resampled = torchaudio.functional.resample(torch.ones(48000), 48000, 24000)
    require(len(resampled) == 24000, f"torchaudio {torchaudio.__version__} resamples wrongly; reinstall it with torch")
    return (
        f"python {platform.python_version()}, torch {torch.__version__}, torchaudio {torchaudio.__version__}, "
        f"encodec {encodec.__version__}, soundfile {soundfile.__version__}, numpy {numpy.__version__}"
    )


def check_devices(setup: Setup) -> str:
    """The device computes 1 + 1 = 2."""
    device = pick_device(setup.device)
    require((torch.ones(1, device=device) + 1).item() == 2, f"{device}: 1 + 1 is not 2")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{device}; {available_cores()} cores; {len(gpus)} CUDA GPUs{': ' + ', '.join(gpus) if gpus else ''}"


def check_encodec(setup: Setup) -> str:
    """The codec runs at 24 kHz and 6 kbps and is frozen. 16 s become [128, 1200] and decode to 384,000 samples."""
    codec = setup.codec
    is_right = (codec.sample_rate, codec.bandwidth, codec.frame_rate) == (24000, 6.0, 75)
    require(is_right, f"{codec.sample_rate} Hz, {codec.bandwidth} kbps, {codec.frame_rate} frames per second")
    is_frozen = not codec.training and not any(p.requires_grad for p in codec.parameters())
    require(is_frozen, "the codec is not frozen")
    embeddings = codec.encode(noise(2, 16))
    require(embeddings.shape == (2, 128, 1200), f"embeddings {list(embeddings.shape)}, expected [2, 128, 1200]")
    decoded = codec.decode(embeddings)
    require(decoded.shape == (2, 1, 384000), f"decoded {list(decoded.shape)}, expected [2, 1, 384000]")
    require(embeddings.isfinite().all() and decoded.isfinite().all(), "the codec's output is not finite")
    return f"{codec.fingerprint}: 24000 Hz, 6.0 kbps, frozen, [2, 1, 384000] -> [2, 128, 1200] -> [2, 1, 384000]"


def check_context(setup: Setup) -> str:
    """How much encoding a segment with one second of context differs from encoding the whole signal."""
    codec, both = setup.codec, noise(1, 8)
    half, hop, warmup = round(4 * codec.frame_rate), codec.hop_length, codec.warmup_frames
    whole = codec.encode(both)[:, :, half:]
    deviation = whole.std()
    behind = codec.encode(both[:, :, (half - warmup) * hop :])[:, :, warmup:]
    alone = codec.encode(both[:, :, half * hop :])
    error, without = (((x - whole).abs().max() / deviation).item() for x in (behind, alone))
    return (
        f"segments encoded with one second of context differ by {error:.1g} standard deviations from the whole "
        f"(without: {without:.2g})"
    )


def check_model(setup: Setup) -> str:
    """The model has 859,520 trainable parameters and keeps the shape."""
    model = SimpleTransformer().to(pick_device(setup.device))
    require(count_parameters(model) == 859_520, f"{count_parameters(model):,} parameters, expected 859,520")
    embeddings = torch.randn(2, 128, 1200, device=pick_device(setup.device))
    require(model(embeddings).shape == embeddings.shape, "the model changes the shape")
    return f"{count_parameters(model):,} trainable parameters, [2, 128, 1200] -> [2, 128, 1200]"


def check_loss(setup: Setup) -> str:
    """The loss is the MSE in encoded space. Before statistics are set, it is the target's mean square."""
    device = pick_device(setup.device)
    model, target = SimpleTransformer().to(device), torch.randn(2, 128, 75, device=device)
    loss = torch.nn.functional.mse_loss(model(torch.randn_like(target)), target)
    require(torch.isclose(loss, target.square().mean()), f"MSE {loss.item()}, expected {target.square().mean().item()}")
    loss.backward()
    require(any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), "the loss has no gradient")
    return "MSE in encoded space, finite, with a gradient"


def check_optimizer(setup: Setup) -> str:
    """The defaults are the original experiment's AdamW, scheduler, clipping and early stopping."""
    c = TrainConfig()
    defaults = (c.lr, c.weight_decay, c.batch_size, c.epochs, c.patience)
    defaults += (c.scheduler_factor, c.scheduler_patience, c.max_grad_norm)
    require(defaults == (1e-4, 0.01, 16, 200, 20, 0.5, 5, 1.0), f"the defaults are {defaults}")
    optimizer = torch.optim.AdamW(SimpleTransformer().parameters(), c.lr, weight_decay=c.weight_decay)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    for _ in range(c.scheduler_patience + 2):
        scheduler.step(1.0)
    require(optimizer.param_groups[0]["lr"] == c.lr * c.scheduler_factor, "the scheduler does not reduce lr")
    return "AdamW(lr=1e-4, weight_decay=0.01), ReduceLROnPlateau(0.5, 5), clip at 1.0, batch 16, 200 epochs"


def check_training(setup: Setup) -> str:
    """The model can overfit one batch."""
    device = pick_device(setup.device)
    torch.manual_seed(0)
    model = SimpleTransformer(dropout=0.0).to(device)
    inputs, targets = torch.randn(2, 2, 128, 60).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(120):
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    require(losses[-1] < 0.3 * losses[0], f"MSE {losses[0]:.3f} -> {losses[-1]:.3f} in 120 steps")
    return f"one batch overfitted: MSE {losses[0]:.2f} -> {losses[-1]:.2f} in 120 steps"


def check_dataset(setup: Setup) -> str:
    """If there is a dataset, its first pairs can be encoded. Also warns about a weak validation split."""
    root = Path(setup.dataset_dir or "dataset_pairs_wav")
    if setup.dataset_dir is None and not root.exists():
        return f"none in {root} yet; create it with python create_dataset_pairs_wav.py"
    train, val = (WavPairsDataset(root / split, setup.codec, use_cache=False) for split in ("train", "val"))
    for split in (train, val):
        first, second = split[0]
        require(
            first.shape == second.shape == (setup.codec.embedding_dim, split.num_frames),
            f"embeddings {list(first.shape)}",
        )
    warning = split_warning(train.segments.tracks, val.segments.tracks)
    return "; ".join(filter(None, [f"{root}: {len(train)} train and {len(val)} val pairs", warning]))


def noise(batch: int, seconds: int) -> torch.Tensor:
    """Waveforms [batch, 1, samples] at 24 kHz."""
    return torch.randn(batch, 1, seconds * 24000, generator=torch.Generator().manual_seed(0)) * 0.1


CHECKS: list[Callable[[Setup], str]] = [
    check_versions,
    check_devices,
    check_encodec,
    check_context,
    check_model,
    check_loss,
    check_optimizer,
    check_training,
    check_dataset,
]


def pytest_generate_tests(metafunc) -> None:
    metafunc.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))


def test_setup(check: Callable[[Setup], str]) -> None:
    check(Setup(encodec_weights="untrained", device="cpu"))


def main() -> int:
    setup = parse_settings(Setup, __doc__)
    failed = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        print(f"{name:10s} ", end="", flush=True)
        try:
            print(f"ok    {check(setup)}", flush=True)
        except (CheckError, UserError, RuntimeError, OSError) as error:
            failed.append(name)
            print(f"FAIL  {error}", flush=True)
    if failed:
        print(f"not ready: fix {', '.join(failed)} (above), then run this again", flush=True)
        return 1
    if setup.codec.banner:
        print(setup.codec.banner, flush=True)
    print("ready for create_dataset_pairs_wav.py and train_simple_ddp.py, with the same --encodec_weights", flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
