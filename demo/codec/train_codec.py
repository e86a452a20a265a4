"""Train a small EnCodec on synthesized music only: the codec for `--encodec_weights demo`.

    python demo/codec/train_codec.py --device cpu    # 25 minutes on one core of a busy machine

The model is EnCodec's encoder and decoder with a quarter of the filters. It learns to reproduce audio from embeddings
[128], 75 per second. It starts as a resampler, so that audio passes through from the first step. Then the encoder is
frozen, and its embeddings are scaled so that distances equal errors in the waveform. Codebooks for 6 kbit/s are fitted
to them. Finally the decoder trains alone, with half of its inputs quantized.

Writes codec-XXXXXXXX.th to the output folder. XXXXXXXX is the start of its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from encodec.model import EncodecModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from audio.codec_model import HOP_LENGTH, build_model, half_precision
from common.arguments import device_setting, file_path, number, parse_settings, seed_setting, setting
from common.devices import pick_device
from common.errors import run_script
from common.files import atomic_write
from demo.codec.codebooks import are_fitted, fit_codebooks, quantize, scale_by_audibility
from demo.codec.resampler_start import start_as_resampler
from demo.codec.varied_music import track

NUM_FILTERS, NUM_CODEBOOKS = 8, 8
TRACK_S = 10
CLIP_SAMPLES = 38 * HOP_LENGTH  # half a second
WINDOWS = (128, 512, 2048)  # window lengths of the loss's spectra, samples
FIRST_VAL_TRACK = 10**9  # validation tracks are numbered from here
METRIC_TRACKS = 60  # enough to measure how the decoder responds to embeddings


@dataclass(frozen=True)
class Settings:
    output_dir: str = setting("demo/codec/output", "folder for the weights", type=file_path)
    joint_steps: int = setting(1100, "training steps of encoder and decoder together", type=number(int, at_least=1))
    decoder_steps: int = setting(2400, "training steps of the decoder alone after that", type=number(int, at_least=1))
    batch_size: int = setting(8, "clips of half a second per step", type=number(int, at_least=2))
    lr: float = setting(2e-4, "highest learning rate", type=number(float, above=0))
    num_tracks: int = setting(360, "training tracks of 10 s", type=number(int, at_least=1))
    val_tracks: int = setting(12, "validation tracks of 10 s", type=number(int, at_least=1))
    codebook_frames: int = setting(400_000, "frames to fit the codebooks to", type=number(int, at_least=1))
    report_every: int = setting(100, "steps between reports", type=number(int, at_least=1))
    device: str = device_setting()
    seed: int = seed_setting("the music and the training")

    @property
    def steps(self) -> int:
        return self.joint_steps + self.decoder_steps


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    folder, device = Path(settings.output_dir), pick_device(settings.device)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"synthesizing {settings.num_tracks + settings.val_tracks} tracks of {TRACK_S} s", flush=True)
    tracks = torch.from_numpy(np.stack([track(settings.seed, k, TRACK_S) for k in range(settings.num_tracks)]))
    val_music = [track(settings.seed, FIRST_VAL_TRACK + k, TRACK_S) for k in range(settings.val_tracks)]
    val_music = torch.from_numpy(np.stack(val_music)).to(device)
    torch.manual_seed(settings.seed)
    model = build_model(NUM_FILTERS, NUM_CODEBOOKS)
    start_as_resampler(model)
    model.to(device).train()
    train(model, settings, tracks, val_music)
    print(f"wrote {export(model, folder)}: {report(model, val_music)}")
    return 0


# ------------------------------------------------------------------ training


def train(model: EncodecModel, settings: Settings, tracks: torch.Tensor, val_music: torch.Tensor) -> None:
    """Train encoder and decoder, fit the codebooks, then train the decoder alone.

    tracks, val_music: training and validation music, [tracks, samples].
    """
    parameters = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.8, 0.95))
    started, losses = time.monotonic(), []
    for step in range(settings.steps):
        if step == settings.joint_steps:
            scale_by_audibility(model, tracks[:METRIC_TRACKS], settings.seed)
            # Add mixes of two tracks, because real music is denser than a few synthesized instruments.
            music = torch.cat([tracks, (tracks + tracks.roll(1, dims=0)) / 2])
            left = fit_codebooks(model, music, settings.seed, settings.codebook_frames)
            print(f"codebooks fitted: the residual has {left:.1%} of the embeddings' power", flush=True)
        losses.append(train_step(model, optimizer, step, settings, tracks))
        done = step + 1
        if done % settings.report_every == 0 or done == settings.steps:
            per_second = done / (time.monotonic() - started)
            print(
                f"step {done}/{settings.steps}: loss {np.mean(losses):.3f}, {report(model, val_music)}, "
                f"{per_second:.2f} steps/s, {(settings.steps - done) / per_second / 60:.0f} min left",
                flush=True,
            )
            losses = []


def train_step(
    model: EncodecModel, optimizer: torch.optim.Optimizer, step: int, settings: Settings, tracks: torch.Tensor
) -> float:
    """Train one step and return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    decoder_only = step >= settings.joint_steps
    clips = draw_clips(np.random.default_rng([settings.seed, 1, step]), tracks, settings.batch_size)
    clips = clips.to(next(model.parameters()).device)
    with torch.set_grad_enabled(not decoder_only):
        embeddings = model.encoder(clips)
    if decoder_only:
        continuous, others = embeddings.chunk(2)
        embeddings = torch.cat([continuous, quantize(model, others)])
    value = loss(clips, model.decoder(embeddings), embeddings)
    optimizer.zero_grad()
    value.backward()
    # The logarithms in the loss cause gradient peaks. Clipping at 1 keeps little more than the direction.
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    return value.item()


def learning_rate(step: int, settings: Settings) -> float:
    """In each of the two phases: 100 steps of warm-up, then a half-cosine decay to 2%."""
    decoder_only = step >= settings.joint_steps
    done, steps = step, settings.joint_steps
    if decoder_only:
        done, steps = step - settings.joint_steps, settings.decoder_steps
    return settings.lr * min(1, (done + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * done / steps)) / 2)


def draw_clips(rng: np.random.Generator, tracks: torch.Tensor, count: int) -> torch.Tensor:
    """Clips [count, 1, CLIP_SAMPLES] from random positions in the tracks."""
    which = rng.integers(len(tracks), size=count)
    starts = rng.integers(tracks.shape[1] - CLIP_SAMPLES, size=count)
    return torch.stack([tracks[k, s : s + CLIP_SAMPLES] for k, s in zip(which, starts, strict=True)])[:, None]


def loss(truth: torch.Tensor, decoded: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """The error of `decoded` against `truth`, both [B, 1, samples], in spectra of three resolutions and in samples.

    Terms: the relative L1 distance of magnitude spectra, which weights loud parts; the L1 distance of their logarithms,
    which includes quiet parts; the log of the waveform's relative error; and a small penalty on the power of the
    embeddings [B, 128, frames], which would otherwise drift.
    """
    truth, decoded = truth.squeeze(1), decoded.squeeze(1)
    total = 1e-3 * embeddings.square().mean()
    for window in WINDOWS:
        hann = torch.hann_window(window, device=truth.device)
        spectra = torch.stft(torch.cat([truth, decoded]), window, window // 4, window=hann, return_complex=True)
        wanted, got = spectra.abs().chunk(2)
        total = total + (wanted - got).abs().sum() / wanted.sum().clamp_min(1e-3)
        total = total + ((wanted + 1e-3).log10() - (got + 1e-3).log10()).abs().mean()
    error, power = (truth - decoded).square().sum(dim=1), truth.square().sum(dim=1)
    return total + ((error + 1e-4) / (power + 1e-3)).log10().mean()


# ------------------------------------------------------------------ reports and files


@torch.no_grad()
def report(model: EncodecModel, val_music: torch.Tensor) -> str:
    """A phrase with the mean signal-to-noise ratio over the validation tracks."""
    ratios = {"continuous": [], "6 kbit/s": []}
    for one in val_music:
        embeddings = model.encoder(one[None, None])
        ratios["continuous"].append(signal_to_noise_db(one, model.decoder(embeddings)))
        if are_fitted(model):
            ratios["6 kbit/s"].append(signal_to_noise_db(one, model.decoder(quantize(model, embeddings))))
    return "validation SNR " + " and ".join(f"{np.mean(v):.2f} dB {name}" for name, v in ratios.items() if v)


def signal_to_noise_db(truth: torch.Tensor, decoded: torch.Tensor) -> float:
    error = (truth - decoded.flatten()[: len(truth)]).square().sum()
    return float(10 * torch.log10(truth.square().sum() / error))


def export(model: EncodecModel, folder: Path) -> Path:
    """Write the weights in half precision, with the first 8 digits of their SHA-256 in the name."""
    content = io.BytesIO()
    torch.save(half_precision(model), content)
    path = folder / f"codec-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.th"
    atomic_write(path, content.getvalue())
    return path


if __name__ == "__main__":
    run_script(main)
