"""The measures of evaluate_continuation.py, each with its formula and its source.

Nothing to run. Errors are summed in float64; covariances, square roots and distances are float64 throughout.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
import torchaudio

RESAMPLES = 20_000
# With 4 tracks the tail that `interval_tail` asks for (0.01%) is rarer than the rarest resample, the same track
# four times (4^-4 = 0.4%): the "interval" would be the range of the four. With 5 it is not (0.1% against 5^-5 = 0.03%).
MIN_TRACKS = 5
COLLAPSED_BELOW = 0.1  # deviation ratio

FAD_INF_SIZES = 15
FAD_INF_MIN_FRAMES = 500  # as fadtk; its default of 25 sizes gains nothing here
FAD_INF_MAX_FRAMES = 40_000  # 128 x 129 / 2 covariances are well determined long before


# ------------------------------------------------------------------ in encoded space


def squared_error_per_second(predictions: torch.Tensor, targets: torch.Tensor, frame_rate: int) -> torch.Tensor:
    """Sum of squared differences in each second: two [B, 128, T] -> float64 [B, ceil(T / frame_rate)]."""
    per_frame = (predictions.double() - targets.double()).square().sum(dim=1)  # [B, T]
    seconds = -(-per_frame.shape[1] // frame_rate)
    padded = torch.nn.functional.pad(per_frame, (0, seconds * frame_rate - per_frame.shape[1]))
    return padded.view(-1, seconds, frame_rate).sum(dim=2)


def elements_per_second(frames: int, channels: int, frame_rate: int) -> np.ndarray:
    """How many elements of an embedding [channels, frames] lie in each second: float64 [seconds]."""
    starts = np.arange(0, frames, frame_rate)
    return np.minimum(frame_rate, frames - starts).astype(np.float64) * channels


def deviation(embeddings: torch.Tensor) -> torch.Tensor:
    """Standard deviation over time, mean of channels: [B, 128, T] -> float64 [B].

    The deviation ratio is the sum of this over the predictions divided by the sum over the targets, as in the
    training's log: 1 moves as much as the music does, 0 has collapsed to a constant.
    """
    return embeddings.double().std(dim=2).mean(dim=1)


# ------------------------------------------------------------------ intervals over tracks


def bootstrap_ratio(
    numerators: np.ndarray, denominators: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """95% interval of sum(numerators) / sum(denominators) over tracks, or None for fewer than MIN_TRACKS.

    numerators, denominators: [tracks, ...], one row a track; the ends have the shape of a row. Pairs of one track are
    not independent, so whole tracks are drawn with replacement (cluster bootstrap: Field and Welsh 2007),
    numerator and denominator together.

    The ends are percentiles, taken as far out as `interval_tail` says. Measured on normal errors, such intervals hold
    the truth 95% of the time from ten tracks on, 92% for five of unequal length.
    """
    tracks = len(numerators)
    if tracks < MIN_TRACKS:
        return None
    rng = np.random.default_rng(seed)
    flat = [np.asarray(values, np.float64).reshape(tracks, -1) for values in (numerators, denominators)]
    ratios = []
    for _ in range(0, RESAMPLES, 2000):  # 2000 at a time bound the memory
        weights = rng.multinomial(tracks, np.full(tracks, 1 / tracks), size=2000).astype(np.float64)
        ratios.append((weights @ flat[0]) / np.maximum(weights @ flat[1], 1e-300))
    tail = interval_tail(tracks)
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail], axis=0)
    shape = np.shape(numerators)[1:]
    return low.reshape(shape), high.reshape(shape)


def interval_tail(count: int, level: float = 0.95) -> float:
    """The share of resamples to leave out at each end for an interval at `level` from `count` clusters.

    Plain percentiles are too narrow for few clusters: the bootstrap's deviation is sqrt((n - 1) / n) of the
    standard error, and the normal's quantile stands where Student's belongs. Hesterberg's expanded percentile
    interval (2015, "What Teachers Should Know About the Bootstrap", section 3.3) mends both:
    tail = Phi(-sqrt(n / (n - 1)) * t(n - 1)).
    """
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_t_quantile(level, count - 1))


def student_t_quantile(level: float, df: int) -> float:
    """The t for which P(|T| <= t) = level with `df` degrees of freedom, by bisection."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_mass(middle, df) < level else (low, middle)
    return high


def _student_t_mass(t: float, df: int) -> float:
    """P(|T| <= t): the finite series of Abramowitz and Stegun 1964, 26.7.3 (odd df) and 26.7.4 (even df)."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    if df % 2:
        term, total = cosine, 0.0
        for k in range(3, df + 1, 2):
            total += term
            term *= cosine * cosine * (k - 1) / k
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for k in range(2, df + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return sine * total


# ------------------------------------------------------------------ Fréchet audio distance


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes with one thread: matrices of 128 rows gain nothing from more, and lose much where other
    programs want the cores (a square root took 30 times as long on two busy ones).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class FrameSet:
    """Mean and covariance of embedding frames, clip by clip, and a seeded sample of the frames for FAD-infinity.

    clips: how many will come; each gives the same number of frames to the sample, at most FAD_INF_MAX_FRAMES in all.
    """

    def __init__(self, clips: int, seed: int):
        self.count, self.clips, self.seed = 0, 0, seed
        self._quota = -(-FAD_INF_MAX_FRAMES // clips)
        self.mean = self._scatter = torch.zeros(0)  # float64 [128] and [128, 128] from the first clip on
        self._samples: list[torch.Tensor] = []

    @one_thread()
    def add(self, embedding: torch.Tensor) -> None:
        """Add the frames of one clip, [128, T]."""
        frames = embedding.detach().cpu().double().T
        mean = frames.mean(dim=0)
        scatter = (frames - mean).T @ (frames - mean)
        if self.count == 0:
            self.mean, self._scatter = mean, scatter
        else:  # Chan, Golub and LeVeque 1979: two sets' scatter matrices combined without cancellation
            total = self.count + len(frames)
            shift = mean - self.mean
            self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * len(frames) / total)
            self.mean = self.mean + shift * (len(frames) / total)
        self.count += len(frames)
        chosen = np.random.default_rng([self.seed, self.clips]).permutation(len(frames))[: self._quota]
        self._samples.append(frames[np.sort(chosen)].float())
        self.clips += 1

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance, as numpy.cov has it."""
        return self._scatter / (self.count - 1)

    @property
    def has_covariance(self) -> bool:
        """More frames than channels: with fewer the covariance is singular whatever the sound is like."""
        return self.count > len(self.mean) > 0

    @property
    def sample(self) -> torch.Tensor:
        """float32 [frames, 128]"""
        return torch.cat(self._samples)


@dataclass(frozen=True)
class FadResult:
    """None where there were too few frames; `note` says so."""

    fad: float | None = None
    fad_inf: float | None = None
    r2: float | None = None
    frames: int = 0
    note: str = ""


@one_thread()
def fad_score(reference: FrameSet, candidate: FrameSet) -> FadResult:
    """Fréchet audio distance of `candidate` to `reference` (Kilgour et al. 2019), and FAD-infinity.

    Every embedding frame is a sample, as in fadtk's `encodec-emb` (Gui et al. 2023, arXiv 2311.01616).
    FAD-infinity takes out the bias of a finite sample (Chong and Forsyth 2020 for images; Gui et al. for audio):
    the FAD of n frames is fitted by a straight line in 1 / n for 15 sizes n from 500 to all, and read off at
    1 / n = 0; R² says how straight. The frames are drawn without replacement: with it (as fadtk draws them) the line
    leads back to the FAD of all frames and corrects nothing.
    """
    few = min(reference.count, candidate.count)
    if not (reference.has_covariance and candidate.has_covariance):
        return FadResult(frames=candidate.count, note=f"{few} frames are too few for a covariance of 128 channels")
    fad = frechet_distance(reference.mean, reference.covariance, candidate.mean, candidate.covariance)
    frames = candidate.sample
    if len(frames) < 2 * FAD_INF_MIN_FRAMES:
        note = f"{len(frames)} frames are too few to extrapolate from (at least {2 * FAD_INF_MIN_FRAMES})"
        return FadResult(fad, frames=candidate.count, note=note)
    rng = np.random.default_rng(candidate.seed)
    sizes = np.linspace(FAD_INF_MIN_FRAMES, len(frames), FAD_INF_SIZES).astype(int)
    distances = []
    for size in sizes:
        drawn = frames[rng.permutation(len(frames))[:size]].double()
        distances.append(frechet_distance(reference.mean, reference.covariance, drawn.mean(dim=0), torch.cov(drawn.T)))
    inverse = 1 / sizes
    slope, intercept = np.polyfit(inverse, distances, 1)
    residual = np.sum(np.square(distances - (slope * inverse + intercept)))
    spread = np.sum(np.square(distances - np.mean(distances)))
    r2 = float(1 - residual / spread) if spread > 0 else None
    return FadResult(fad, float(intercept), r2, candidate.count)


def frechet_distance(mean1: torch.Tensor, cov1: torch.Tensor, mean2: torch.Tensor, cov2: torch.Tensor) -> float:
    """|mean1 - mean2|² + tr(cov1 + cov2 - 2 (cov1 cov2)^½), squared 2-Wasserstein distance of two Gaussians; float64.

    Dowson and Landau 1982. The trace of the product's root is the sum of the singular values of
    cov1^½ cov2^½, whose squares are the eigenvalues of cov1^½ cov2 cov1^½ and so of cov1 cov2; the symmetric roots come
    from eigenvalues. So there is no complex root to repair, nothing to add to a singular covariance, and less rounding.
    """
    roots = []
    for cov in (cov1, cov2):
        values, vectors = torch.linalg.eigh(cov)
        roots.append((vectors * values.clamp_min(0).sqrt()) @ vectors.T)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap)


# ------------------------------------------------------------------ on the sound


class SoundFeatures:
    """What the distances between two sounds are taken on: log-mel spectrogram and chroma."""

    def __init__(self, sample_rate: int, device: torch.device):
        self._mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft=1024, hop_length=256, f_min=64.0, n_mels=64, center=False
        ).to(device)
        self._window = torch.hann_window(4096, device=device)
        self._pitch_classes = pitch_classes(sample_rate, 4096).to(device)
        self._device = device

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """log10(1e-5 + mel power), [B, samples] -> [B, 64, samples // 256].

        n_fft = window 1024, hop 256, 64 mels from 64 Hz, the ends reflected: audiocraft's MelSpectrogramL1Loss.
        """
        padded = torch.nn.functional.pad(waveforms.to(self._device).unsqueeze(1), (384, 384), "reflect")
        return torch.log10(1e-5 + self._mel(padded.squeeze(1)))

    def chroma(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Power in each of the 12 pitch classes (C first), [B, samples] -> [B, 12, 1 + samples // 1024].

        Fujishima 1999: each bin of a 4096-point spectrum between C2 and C8 counts for the nearest semitone.
        """
        spectrum = torch.stft(
            waveforms.to(self._device), 4096, 1024, window=self._window, pad_mode="constant", return_complex=True
        )
        return self._pitch_classes @ spectrum.abs().square()


def pitch_classes(sample_rate: int, n_fft: int) -> torch.Tensor:
    """[12, n_fft // 2 + 1]: 1 where a bin's frequency is nearest to a semitone of the class, between C2 and C8."""
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
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


# ------------------------------------------------------------------ the verdict

VERDICT_RULE = (
    "Skill is 1 − MSE ÷ MSE of the training mean. Better if the whole 95% interval of the skill (bootstrap over "
    "tracks) is above 0, worse if all of it is below 0, else not distinguishable; undecided with fewer than "
    f"{MIN_TRACKS} tracks. Baselines with a lower MSE than the model's are named. "
    f"Collapsed if the deviation ratio is below {COLLAPSED_BELOW}, else alive."
)


def verdict(
    skill: float,
    interval: tuple[float, float] | None,
    deviation_ratio: float,
    tracks: int,
    beaten_by: tuple[str, ...] = (),
) -> dict[str, str | bool]:
    """`outcome` (better, worse, not_distinguishable, undecided), `alive`, and the sentence that says so.

    beaten_by: what has a lower MSE than the model, in words.
    """
    error = f"its error is {abs(skill):.1%} {'below' if skill >= 0 else 'above'} the training mean's"
    if interval is None:
        outcome = "undecided"
        few = f"{tracks} validation track{'s give' if tracks != 1 else ' gives'} no meaningful interval"
        sentence = f"Undecided: {few}; on these pairs {error}"
    else:
        low, high = interval
        outcome = "better" if low > 0 else "worse" if high < 0 else "not_distinguishable"
        opening = {
            "better": "Better than predicting the average",
            "worse": "Worse than predicting the average",
            "not_distinguishable": "Not distinguishable from predicting the average",
        }[outcome]
        sentence = f"{opening}: {error} (95% interval of the skill {low:+.1%} to {high:+.1%} over {tracks} tracks)"
    alive = bool(deviation_ratio >= COLLAPSED_BELOW)
    state = "alive" if alive else "collapsed"
    sentence += f"; {state}: its predictions vary over time {deviation_ratio:.2f} times as much as the music does."
    if beaten_by:
        sentence += f" But {' and '.join(beaten_by)} {'has' if len(beaten_by) == 1 else 'have'} a lower error."
    return {"outcome": outcome, "alive": alive, "sentence": sentence, "rule": VERDICT_RULE}
