"""The log-mel spectrogram behind the interface of a codec: a representation of the same sound without its phase.

It can be trained on and measured like a codec's embeddings, but it cannot be turned back into sound.
"""

from __future__ import annotations

import torch
import torchaudio

from audio.codec import Codec

WINDOW_S = 0.04  # of a frame: neighbouring frames share samples, frames three and more apart do not
FLOOR = 1e-5  # power below which there is silence


class LogMel:
    """As many bands as `codec` has channels, at its hop: log10(1e-5 + mel power), a `Codec` that cannot decode.

    A frame looks back only: its window ends where its hop ends.
    """

    is_pretrained, banner = False, ""

    def __init__(self, codec: Codec):
        self.sample_rate, self.hop_length = codec.sample_rate, codec.hop_length
        self.embedding_dim, self.frame_rate = codec.embedding_dim, codec.frame_rate
        self.device = codec.device
        self.fingerprint = f"log-mel-{self.embedding_dim}-{self.sample_rate}-{self.hop_length}"
        self._window = torch.hann_window(round(WINDOW_S * self.sample_rate), device=self.device)
        self.warmup_frames = -(-len(self._window) // self.hop_length)
        # Zeros behind the window interpolate the spectrum, so that the lowest bands are not empty.
        self._points = 2 * len(self._window)
        self._bands = torchaudio.functional.melscale_fbanks(
            self._points // 2 + 1, 0.0, self.sample_rate / 2, self.embedding_dim, self.sample_rate
        ).to(self.device)

    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms [B, 1, samples] -> log-mel spectrograms [B, C, ceil(samples / hop_length)]."""
        frames = -(-waveforms.shape[2] // self.hop_length)
        after = frames * self.hop_length - waveforms.shape[2]
        before = len(self._window) - self.hop_length
        padded = torch.nn.functional.pad(waveforms[:, 0].to(self.device), (before, after))
        windows = padded.unfold(1, len(self._window), self.hop_length) * self._window  # [B, frames, samples]
        spectrum = torch.fft.rfft(windows, self._points)
        power = spectrum.real.square() + spectrum.imag.square()  # abs() would take a root first
        return torch.log10(FLOOR + power @ self._bands).transpose(1, 2)

    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("a log-mel spectrogram has no phase, so there is no way back to sound")

    def quantize(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The same embeddings: there are no codebooks."""
        return embeddings
