"""The measures on sound, log-mel distance and chroma, between a decoded continuation and the true one.

To be compared, a continuation [C, T] is decoded on its own, and its first seconds count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torchaudio

from audio.codec import Codec

SOUND_S = 6  # of each continuation: much quicker than 16 s, and enough to tell the rows apart
KEPT_CLIPS = 256  # of 0.2 MB each
CHROMA_POINTS = 8192  # at 4096, octaves below C3 have notes without a bin


@dataclass(frozen=True)
class DecodedClip:
    """What is compared of the first seconds of a sound."""

    log_mel: torch.Tensor  # [64, frames]
    chroma: torch.Tensor  # [12, frames]


class SoundMetrics:
    """Decodes continuations, and remembers the clips that have a key."""

    def __init__(self, codec: Codec):
        self.codec, self.features = codec, SoundFeatures(codec.sample_rate, codec.device)
        self._kept: dict[str, DecodedClip] = {}

    @torch.no_grad()
    def decode(self, embedding: torch.Tensor, key: str = "") -> DecodedClip:
        """The first seconds of `embedding` [C, T], decoded. The same `key` is decoded only once."""
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


@dataclass
class SoundRow:
    """The sound of one row of the table, pair by pair."""

    mel_distances: list[float] = field(default_factory=list)
    chroma_cosines: list[float] = field(default_factory=list)

    def add(self, clip: DecodedClip, truth: DecodedClip) -> None:
        """Add one pair: the row's clip, and the true continuation as the dataset has it."""
        self.mel_distances.append(log_mel_distance(clip.log_mel, truth.log_mel))
        self.chroma_cosines.append(chroma_cosine(clip.chroma, truth.chroma))


def sound_columns(row: SoundRow) -> dict[str, object]:
    """What results.json says of a row's sound."""
    cosines = [cosine for cosine in row.chroma_cosines if not math.isnan(cosine)]
    return {
        "log_mel_distance": float(np.mean(row.mel_distances)),
        "chroma_cosine": float(np.mean(cosines)) if cosines else None,
    }


# ------------------------------------------------------------------ log-mel and chroma


class SoundFeatures:
    """What the distances between two sounds are taken on: log-mel spectrogram and chroma."""

    def __init__(self, sample_rate: int, device: torch.device):
        self._mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft=1024, hop_length=256, f_min=64.0, n_mels=64, center=False
        ).to(device)
        self._window = torch.hann_window(CHROMA_POINTS, device=device)
        self._pitch_classes = pitch_classes(sample_rate).to(device)
        self._device = device

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """log10(1e-5 + mel power), [B, samples] -> [B, 64, samples // 256].

        n_fft = window 1024, hop 256, 64 mels from 64 Hz, the ends reflected: audiocraft's MelSpectrogramL1Loss.
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
    """[12, 4097]: 1 where a bin's frequency is nearest to a semitone of the class, between C2 and C8."""
    frequencies = torch.arange(CHROMA_POINTS // 2 + 1, dtype=torch.float64) * sample_rate / CHROMA_POINTS
    notes = torch.round(69 + 12 * torch.log2(frequencies.clamp_min(1e-3) / 440)).long()  # MIDI: A4 is 69
    matrix = torch.nn.functional.one_hot(notes % 12, 12).T.float()
    return matrix * ((notes >= 36) & (notes <= 108))


def log_mel_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """mean |difference| of two log-mel spectrograms [64, frames]; 0.3 is a factor of 2 in power."""
    return float((first.double() - second.double()).abs().mean())


def chroma_cosine(chroma: torch.Tensor, true: torch.Tensor) -> float:
    """Cosine between two chroma vectors, mean over the frames in which the true one sounds; [12, frames] each.

    1 for the same notes in the same proportion; chroma has no negative entries, so unrelated music is far above 0
    (the row of another track says where). nan if the truth is silent throughout.
    """
    sounding = true.double().sum(dim=0) > 1e-6
    cosines = torch.nn.functional.cosine_similarity(chroma.double(), true.double(), dim=0, eps=1e-12)[sounding]
    return float(cosines.mean()) if len(cosines) else math.nan
