"""The log-mel spectrogram with the interface of a codec: a representation without phase.

It can be trained on and evaluated like a codec's embeddings, but not decoded to sound. Used for the horizon.
"""

from __future__ import annotations

import torch
import torchaudio

from audio.codec import Codec

WINDOW_S = 0.04  # window of a frame. Neighboring frames overlap; frames three or more apart do not.
FLOOR = 1e-5  # power that counts as silence


class LogMel:
    """log10(1e-5 + mel power) as a `Codec` that cannot decode, with the channels and the hop length of `codec`.

    It is causal: the window of a frame ends where its hop ends.
    """

    is_pretrained, banner = False, ""

    def __init__(self, codec: Codec):
        self.sample_rate, self.hop_length = codec.sample_rate, codec.hop_length
        self.embedding_dim, self.frame_rate = codec.embedding_dim, codec.frame_rate
        self.device = codec.device
        self.fingerprint = f"log-mel-{self.embedding_dim}-{self.sample_rate}-{self.hop_length}"
        self._window = torch.hann_window(round(WINDOW_S * self.sample_rate), device=self.device)
        self.warmup_frames = -(-len(self._window) // self.hop_length)
        # Zero-padding the window interpolates the spectrum, so that the lowest bands are not empty.
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
        power = spectrum.real.square() + spectrum.imag.square()  # cheaper than abs(), which takes a square root
        return torch.log10(FLOOR + power @ self._bands).transpose(1, 2)

    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("a log-mel spectrogram has no phase, so it cannot be decoded to sound")

    def quantize(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The same embeddings: there are no codebooks."""
        return embeddings
