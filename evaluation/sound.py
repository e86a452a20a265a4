"""Measures on sound: log-mel distance and chroma cosine between a decoded continuation and the true one.

Each continuation [C, T] is decoded on its own, and only its first seconds are compared. Used by comparison.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio

from audio.codec import Codec

SOUND_S = 6  # of each continuation: much faster than 16 s, and enough to distinguish the rows
KEPT_CLIPS = 256  # of 0.2 MB each
CHROMA_POINTS = 8192  # with 4096, some notes below C3 have no bin


@dataclass(frozen=True)
class DecodedClip:
    """What is compared of the first seconds of a sound."""

    log_mel: torch.Tensor  # [64, frames]
    chroma: torch.Tensor  # [12, frames]


class SoundMetrics:
    """Decodes continuations. Clips with a key are decoded only once."""

    def __init__(self, codec: Codec):
        self.codec, self.features = codec, SoundFeatures(codec.sample_rate, codec.device)
        self._kept: dict[str, DecodedClip] = {}

    @torch.no_grad()
    def decode(self, embedding: torch.Tensor, key: str = "") -> DecodedClip:
        """The first seconds of `embedding` [C, T], decoded."""
        if key in self._kept:
            return self._kept[key]
        frames = round(SOUND_S * self.codec.frame_rate)
        clip = self.measure(self.codec.decode(embedding[None, :, :frames]).clamp(-1, 1)[0])
        if key:
            self._kept[key] = clip
            if len(self._kept) > KEPT_CLIPS:
                del self._kept[next(iter(self._kept))]
        return clip

    def measure(self, waveform: torch.Tensor) -> DecodedClip:
        """The first seconds of [1, samples]."""
        waveform = waveform[:, : SOUND_S * self.codec.sample_rate]
        return DecodedClip(self.features.log_mel(waveform)[0].cpu(), self.features.chroma(waveform)[0].cpu())


SoundRow = list[tuple[float, float]]  # log-mel distance and chroma cosine of each pair


def compare_sound(clip: DecodedClip, truth: DecodedClip) -> tuple[float, float]:
    """Log-mel distance and chroma cosine. A decoded clip may be up to a frame longer than the truth."""
    pairs = zip((clip.log_mel, clip.chroma), (truth.log_mel, truth.chroma), strict=True)
    (mel, true_mel), (chroma, true_chroma) = ([x[:, : y.shape[1]], y[:, : x.shape[1]]] for x, y in pairs)
    return log_mel_distance(mel, true_mel), chroma_cosine(chroma, true_chroma)


def sound_columns(row: SoundRow) -> dict[str, float | None]:
    """The columns of a row in results.json."""
    distances, cosines = np.array(row).T
    sounding = cosines[~np.isnan(cosines)]
    return {
        "log_mel_distance": float(distances.mean()),
        "chroma_cosine": float(sounding.mean()) if len(sounding) else None,
    }


# ------------------------------------------------------------------ log-mel and chroma


class SoundFeatures:
    """Log-mel spectrograms and chroma."""

    def __init__(self, sample_rate: int, device: torch.device):
        self._mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft=1024, hop_length=256, f_min=64.0, n_mels=64, center=False
        ).to(device)
        self._window = torch.hann_window(CHROMA_POINTS, device=device)
        self._pitch_classes = pitch_classes(sample_rate).to(device)
        self._device = device

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """log10(1e-5 + mel power), [B, samples] -> [B, 64, samples // 256].

        Window 1024, hop 256, 64 mels from 64 Hz, reflected ends: as in audiocraft's MelSpectrogramL1Loss.
        """
        padded = torch.nn.functional.pad(waveforms.to(self._device).unsqueeze(1), (384, 384), "reflect")
        return torch.log10(1e-5 + self._mel(padded.squeeze(1)))

    def chroma(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Power in each of the 12 pitch classes (C first), [B, samples] -> [B, 12, 1 + samples // 2048].

        Fujishima 1999: each bin of an 8192-point spectrum between C2 and C8 counts for the nearest semitone.
        """
        hop, window = CHROMA_POINTS // 4, self._window
        spectrum = torch.stft(
            waveforms.to(self._device), CHROMA_POINTS, hop, window=window, pad_mode="constant", return_complex=True
        )
        return self._pitch_classes @ spectrum.abs().square()


def pitch_classes(sample_rate: int) -> torch.Tensor:
    """[12, 4097]: 1 if a bin between C2 and C8 is nearest to a semitone of the pitch class, else 0."""
    frequencies = torch.arange(CHROMA_POINTS // 2 + 1, dtype=torch.float64) * sample_rate / CHROMA_POINTS
    notes = torch.round(69 + 12 * torch.log2(frequencies.clamp_min(1e-3) / 440)).long()  # MIDI: A4 is 69
    matrix = torch.nn.functional.one_hot(notes % 12, 12).T.float()
    return matrix * ((notes >= 36) & (notes <= 108))


def log_mel_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean |difference| of two log-mel spectrograms [64, frames]. 0.3 is a factor of 2 in power."""
    return float((first.double() - second.double()).abs().mean())


def chroma_cosine(chroma: torch.Tensor, true: torch.Tensor) -> float:
    """Cosine between two chroma vectors, averaged over the frames in which the truth is not silent; [12, frames] each.

    1 means the same notes in the same proportions. Chroma is never negative, so unrelated music is far above 0. The
    row of another track shows how far. nan if the truth is silent throughout.
    """
    sounding = true.double().sum(dim=0) > 1e-6
    cosines = torch.nn.functional.cosine_similarity(chroma.double(), true.double(), dim=0, eps=1e-12)[sounding]
    return float(cosines.mean()) if len(cosines) else math.nan
