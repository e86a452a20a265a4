"""The measures on sound: Fréchet audio distance, log-mel distance and chroma, after a trip through the codec.

To be compared as sound, a continuation [128, T] is decoded on its own, and its first seconds are encoded again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torchaudio

from audio.frozen_encodec import FrozenEncodec
from evaluation.measures import one_thread

SOUND_S = 6  # of each continuation: much quicker than 16 s, and more frames than a covariance needs
SETTLE_S = 0.2  # in which decoder and encoder, both started from nothing, settle; left out of FAD and MSE
KEPT_CLIPS = 256  # of 0.5 MB each
CHROMA_POINTS = 8192  # at 4096, octaves below C3 have notes without a bin
JACKKNIFE_GROUPS = 10
HALVINGS = 5


# ------------------------------------------------------------------ listening


@dataclass(frozen=True)
class Heard:
    """The first seconds of a clip, decoded to sound in [-1, 1] and encoded again."""

    reencoded: torch.Tensor  # [128, T], without what the codec needs to settle
    log_mel: torch.Tensor  # [64, frames]
    chroma: torch.Tensor  # [12, frames]


class Listener:
    """Takes embeddings through decoder and encoder, and remembers the clips that have a key."""

    def __init__(self, codec: FrozenEncodec):
        self.codec, self.features = codec, SoundFeatures(codec.sample_rate, codec.device)
        self.frames = SOUND_S * codec.frame_rate
        self._kept: dict[str, Heard] = {}

    @torch.no_grad()
    def hear(self, embedding: torch.Tensor, key: str = "") -> Heard:
        """The first seconds of `embedding` [128, T]; a second time the same `key` costs nothing."""
        if key in self._kept:
            return self._kept[key]
        waveform = self.codec.decode(embedding[None, :, : self.frames]).clamp(-1, 1)  # [1, 1, samples]
        reencoded = self.settled(self.codec.encode(waveform)[0].cpu())
        heard = Heard(reencoded, *self.listen(waveform[0]))
        if key:
            self._kept[key] = heard
            if len(self._kept) > KEPT_CLIPS:
                del self._kept[next(iter(self._kept))]
        return heard

    def listen(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel and chroma of the first seconds of [1, samples]."""
        waveform = waveform[:, : SOUND_S * self.codec.sample_rate]
        return self.features.log_mel(waveform)[0].cpu(), self.features.chroma(waveform)[0].cpu()

    def settled(self, embedding: torch.Tensor) -> torch.Tensor:
        """The frames of [128, T] that are compared."""
        return embedding[:, round(SETTLE_S * self.codec.frame_rate) : self.frames]


@dataclass
class SoundRow:
    """One row's sound, pair by pair."""

    moments: dict[str, Moments] = field(default_factory=dict)  # of each track
    reencoded_errors: list[float] = field(default_factory=list)
    mel_distances: list[float] = field(default_factory=list)
    chroma_cosines: list[float] = field(default_factory=list)

    def add(self, track: str, heard: Heard, truth: Heard) -> None:
        """Add one pair: the row's clip, and the true continuation as the dataset has it."""
        self.add_frames(track, heard.reencoded)
        self.reencoded_errors.append(float((heard.reencoded.double() - truth.reencoded.double()).square().mean()))
        self.mel_distances.append(log_mel_distance(heard.log_mel, truth.log_mel))
        self.chroma_cosines.append(chroma_cosine(heard.chroma, truth.chroma))

    def add_frames(self, track: str, embedding: torch.Tensor) -> None:
        moments = Moments.of(embedding)
        self.moments[track] = self.moments[track] + moments if track in self.moments else moments


def sound_columns(row: SoundRow, truth: SoundRow) -> dict[str, object]:
    """What results.json says of a row's sound."""
    cosines = [cosine for cosine in row.chroma_cosines if not math.isnan(cosine)]
    fad, spread, note = fad_over_tracks(row.moments, truth.moments)
    return {
        "mse_reencoded": float(np.mean(row.reencoded_errors)),
        "fad": fad,
        "fad_spread": spread,
        "log_mel_distance": float(np.mean(row.mel_distances)),
        "chroma_cosine": float(np.mean(cosines)) if cosines else None,
        "note": note,
    }


# ------------------------------------------------------------------ Fréchet audio distance


@dataclass(frozen=True)
class Moments:
    """Count, mean [128] and scatter matrix [128, 128] of embedding frames, float64."""

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    @one_thread()
    def of(cls, embedding: torch.Tensor) -> Moments:
        """Of the frames of one clip, [128, T]."""
        frames = embedding.double().T
        mean = frames.mean(dim=0)
        return cls(len(frames), mean, (frames - mean).T @ (frames - mean))

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of frames together, without cancellation (Chan, Golub and LeVeque 1979)."""
        count, shift = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance, as numpy.cov has it."""
        return self.scatter / (self.count - 1)


def pool(moments: dict[str, Moments], tracks: list[str]) -> Moments:
    """The moments of several tracks together."""
    first, *others = (moments[track] for track in tracks)
    return sum(others, first)


@one_thread()
def fad_over_tracks(
    candidate: dict[str, Moments], reference: dict[str, Moments]
) -> tuple[float | None, float | None, str]:
    """Fréchet audio distance (Kilgour et al. 2019), its standard error, and a note where there is none.

    Every embedding frame is a sample, as in fadtk's `encodec-emb` (Gui et al. 2023, arXiv 2311.01616). Frames of one
    track resemble each other, so the bias of a finite sample goes with the tracks, and extrapolating over ever more
    frames of the same tracks (FAD∞) does not take it out. The standard error is a jackknife over (at most ten groups
    of) tracks, left out on both sides.
    """
    tracks = list(reference)
    if (note := too_few_frames(pool(candidate, tracks), pool(reference, tracks))) or len(tracks) < 3:
        return None if note else frechet_distance(pool(candidate, tracks), pool(reference, tracks)), None, note
    groups = [tracks[k::JACKKNIFE_GROUPS] for k in range(min(JACKKNIFE_GROUPS, len(tracks)))]
    without = []
    for group in groups:
        rest = [track for track in tracks if track not in group]
        without.append(frechet_distance(pool(candidate, rest), pool(reference, rest)))
    spread = math.sqrt((len(groups) - 1) * float(np.var(without)))
    return frechet_distance(pool(candidate, tracks), pool(reference, tracks)), spread, ""


@one_thread()
def fad_floor(truth: dict[str, Moments], seed: int) -> float | None:
    """FAD between the true continuations of two halves of the tracks, mean of five seeded halvings.

    How far apart two sets of such music are that differ in nothing but the songs; None for fewer than four tracks.
    """
    tracks, rng, found = np.array(list(truth)), np.random.default_rng(seed), []
    for _ in range(HALVINGS if len(tracks) >= 4 else 0):
        halves = [pool(truth, list(half)) for half in np.array_split(rng.permutation(tracks), 2)]
        if not too_few_frames(*halves):
            found.append(frechet_distance(*halves))
    return float(np.mean(found)) if found else None


def too_few_frames(first: Moments, second: Moments) -> str:
    """Why the distance has no meaning, or "": with fewer frames than channels a covariance is singular."""
    few = min(first.count, second.count)
    return f"{few} frames are too few for a covariance of 128 channels" if few <= len(first.mean) else ""


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), the squared 2-Wasserstein distance of two Gaussians; float64.

    Dowson and Landau 1982. The trace of the product's root is the sum of the singular values of
    C₁^½ C₂^½, whose squares are the eigenvalues of C₁^½ C₂ C₁^½ and so of C₁ C₂; the symmetric roots come
    from eigenvalues. So there is no complex root to repair, nothing to add to a singular covariance, and less rounding.
    """
    roots = []
    for covariance in (first.covariance, second.covariance):
        values, vectors = torch.linalg.eigh(covariance)
        roots.append((vectors * values.clamp_min(0).sqrt()) @ vectors.T)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    apart = (first.mean - second.mean).square().sum()
    return float(apart + first.covariance.trace() + second.covariance.trace() - 2 * overlap)


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
