"""A literal version of the original experiment: what run_benchmarks.py and gpu.py compare with.

EnCodec's own encoder encodes every batch again in every epoch. The transformer is torch's `nn.TransformerEncoder` with
dropout everywhere, in float32. Nothing is slowed down on purpose.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path

import encodec.model
import soundfile
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class WavPairs(Dataset):
    """Waveforms of pairs: float32 ([1, samples], [1, samples])."""

    def __init__(self, split_dir: Path):
        self.inputs = sorted(split_dir.glob("*_input.wav"))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.inputs[index]
        both = (path, path.with_name(path.name.replace("_input", "_output")))
        first, second = (torch.from_numpy(soundfile.read(p, dtype="float32")[0])[None] for p in both)
        return first, second


class LiteralTransformer(nn.Module):
    """The same 859,520 parameters in torch's own layers, with dropout inside attention."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 8, 512, 0.1, "gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(128)
        self.dropout = nn.Dropout(0.1)
        self.encoder = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(128), enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[B, 128, T] -> [B, 128, T]."""
        x = embeddings.transpose(1, 2)
        steps = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
        rates = torch.exp(torch.arange(0, 128, 2, device=x.device) * (-math.log(10000.0) / 128))
        angles = steps[:, None] * rates
        positions = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        return self.head(self.encoder(self.dropout(self.norm(x) + positions))).transpose(1, 2)


class LiteralTraining:
    """The training loop in one process."""

    def __init__(self, dataset_dir: Path, state: dict[str, torch.Tensor], device: str = "cpu", num_workers: int = 0):
        """state: the weights of the pipeline's codec. num_workers: processes that read WAVs."""
        self.device = device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.codec = encodec.model.EncodecModel.encodec_model_24khz(pretrained=False)
        _load_folded(self.codec, state)
        self.codec.to(device)
        torch.manual_seed(42)
        self.model = LiteralTransformer().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, weight_decay=0.01)
        self.train = DataLoader(WavPairs(dataset_dir / "train"), 16, shuffle=True, num_workers=num_workers)
        self.val = DataLoader(WavPairs(dataset_dir / "val"), 16)

    @torch.no_grad()
    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.codec.encoder(waveforms.to(self.device))

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One training step on embeddings [B, 128, T]."""
        self.model.train()
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def epoch(self) -> float:
        """Train for an epoch and return its seconds."""
        started = time.perf_counter()
        for inputs, targets in self.train:
            self.step(self.encode(inputs), self.encode(targets))
        return time.perf_counter() - started

    @torch.no_grad()
    def validate(self) -> float:
        """Validation MSE in encoded space."""
        self.model.eval()
        total = count = 0.0
        for inputs, targets in self.val:
            encoded = self.encode(targets)
            total += (self.model(self.encode(inputs)) - encoded).double().square().sum().item()
            count += encoded.numel()
        return total / count


def _load_folded(codec: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load weights without weight norm into a codec with it, as the norm and the direction of each."""
    own = codec.state_dict()
    for name in own:
        if name.endswith("weight_g"):
            weight = state[name.removesuffix("_g")]
            own[name] = weight.flatten(1).norm(dim=1).view_as(own[name])
            own[f"{name.removesuffix('_g')}_v"] = weight
        elif not name.endswith("weight_v"):
            own[name] = state[name]
    codec.load_state_dict(own)
