"""A literal version of the original experiment: what run_benchmarks.py and gpu.py compare with.

EnCodec's own encoder encodes every batch again in every epoch. The transformer is torch's `nn.TransformerEncoder` with
dropout everywhere, in float32. Nothing is slowed down on purpose.
"""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from audio.frozen_encodec import load_frozen_encodec
from benchmarks.measure import take_step
from dataset.pairs import find_pairs
from model_simple_transformer import positions


class WavPairs(Dataset):
    """Waveforms of pairs: float32 ([1, samples], [1, samples])."""

    def __init__(self, split_dir: Path):
        self.split_dir, self.names = split_dir, find_pairs(split_dir)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.read(f"{self.names[index]}_input.wav"), self.read(f"{self.names[index]}_output.wav")

    def read(self, name: str) -> torch.Tensor:
        return torch.from_numpy(soundfile.read(self.split_dir / name, dtype="float32")[0])[None]


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
        return self.head(
            self.encoder(self.dropout(self.norm(x) + positions(x.shape[1], x.shape[2], x.device)))
        ).transpose(1, 2)


class LiteralTraining:
    """The training loop in one process, with the encoder of the untrained codec."""

    def __init__(self, dataset_dir: Path, device: str = "cpu", num_workers: int = 0):
        """num_workers: processes that read WAVs."""
        self.device = device
        # Loaded on the CPU, because loading on a GPU would turn off TF32, which is torch's default for convolutions.
        self.encoder = load_frozen_encodec("untrained").model.encoder.to(device)
        torch.manual_seed(42)
        self.model = LiteralTransformer().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, weight_decay=0.01)
        self.train = DataLoader(WavPairs(dataset_dir / "train"), 16, shuffle=True, num_workers=num_workers)
        self.val = DataLoader(WavPairs(dataset_dir / "val"), 16)

    @torch.no_grad()
    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms [B, 1, samples] -> embeddings [B, 128, T]."""
        return self.encoder(waveforms.to(self.device))

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One training step on waveforms [B, 1, samples]."""
        self.model.train()
        take_step(self.model, self.optimizer, self.encode(inputs), self.encode(targets))

    def epoch(self) -> None:
        for inputs, targets in self.train:
            self.step(inputs, targets)

    @torch.no_grad()
    def validate(self) -> float:
        """Validation MSE in encoded space."""
        self.model.eval()
        total = 0.0
        for inputs, targets in self.val:
            error = nn.functional.mse_loss(self.model(self.encode(inputs)), self.encode(targets))
            total += error.item() * len(inputs)
        return total / len(self.val.dataset)
