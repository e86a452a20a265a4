"""The measures: in encoded space, the Fréchet distance, log-mel and chroma."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import measures, sound
from evaluation.measures import TrackErrors, compare
from evaluation.sound import Moments, fad_floor, fad_over_tracks, frechet_distance

# ------------------------------------------------------------------ in encoded space


@given(frames=st.integers(1, 400), frame_rate=st.integers(1, 75), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_split_of_the_error_adds_up_to_it(frames, frame_rate, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 128, frames, generator=generator).unbind()
    basis = torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
    found = compare(prediction, target, torch.zeros(128, 1), basis, frame_rate)
    total = float((prediction.double() - target.double()).square().sum())
    for part in ("seconds", "bands", "components"):
        assert found[part].sum() == pytest.approx(total, rel=1e-6), part
    assert len(found["seconds"]) == len(measures.elements_per_second(frames, 128, frame_rate))
    assert measures.elements_per_second(frames, 128, frame_rate).sum() == frames * 128
    assert 0 < found["onset"][0] <= total * (1 + 1e-9)


@pytest.mark.parametrize(
    ("hertz", "band"), [(0, 0), (0.125, 1), (0.25, 2), (0.5, 2), (1, 3), (3, 3), (5, 4), (12, 5), (30, 5)]
)
def test_a_wave_of_errors_is_in_its_band(hertz, band):
    error = torch.cos(2 * math.pi * hertz * torch.arange(600) / 75)[None].double().repeat(128, 1)  # 8 s
    found = measures.error_by_band(error, 75)
    assert int(found.argmax()) == band
    assert found[band] > 0.999 * found.sum()
    assert len(found) == len(measures.BANDS)


def test_an_error_along_the_strongest_component_is_in_the_first_group():
    basis = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64))[0]
    for column, group in ((0, 0), (7, 0), (8, 1), (31, 1), (32, 2), (127, 2)):
        found = measures.error_by_component(basis[:, [column]] * torch.ones(1, 9), basis)
        assert found[group] == pytest.approx(9)


def test_deviation_is_linear_and_blind_to_the_mean():
    embedding, nothing = torch.randn(128, 50), (torch.zeros(128, 50), torch.zeros(128, 1), torch.eye(128), 75)
    once = compare(embedding, *nothing)["deviation"]
    np.testing.assert_allclose(compare(3 * embedding + torch.randn(128, 1), *nothing)["deviation"], 3 * once, rtol=1e-6)


def track_errors(predictions: dict, targets: torch.Tensor, tracks: list[str]) -> TrackErrors:
    """Of predictions [pairs, 128, T] for each row, around a mean of 0."""
    errors = {}
    for row, predicted in (predictions | {"training_mean": torch.zeros_like(targets)}).items():
        parts = [
            compare(p, y, torch.zeros(128, 1), torch.eye(128), 75) for p, y in zip(predicted, targets, strict=True)
        ]
        errors[row] = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    return TrackErrors(errors, tracks)


def test_slope_says_how_bold_a_prediction_is(seed):
    generator = torch.Generator().manual_seed(seed)
    known, unknown = torch.randn(2, 6, 128, 75, generator=generator)
    tracks = list("aabbcc")
    found = track_errors({"right": known, "bold": 2 * known, "noise": unknown.flip(0)}, known + unknown, tracks)
    assert found.slope("right") == pytest.approx(1, abs=0.05)
    assert found.slope("bold") == pytest.approx(0.5, abs=0.03)
    assert found.slope("noise") == pytest.approx(0, abs=0.05)
    assert found.slope("training_mean") is None


def test_every_track_counts_once(seed):
    """One giant and loud track that is predicted perfectly, against nine that are not predicted at all."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(59, 128, 75, generator=generator)
    targets[:50] *= 10
    predicted = torch.zeros_like(targets)
    predicted[:50] = targets[:50]
    found = track_errors({"model": predicted}, targets, ["giant"] * 50 + [f"track {k}" for k in range(9)])
    assert found.pooled_skill("model") > 0.99
    assert found.skill("model").value == pytest.approx(0.1)
    assert measures.effective_tracks(found.scale) < 1.1
    seconds, shares = found.skill("model", "seconds"), found.share("bands")
    assert seconds.value == pytest.approx([0.1])
    assert shares.sum() == pytest.approx(1)


def test_skills_of_bands_weighted_by_their_shares_are_the_skill(seed):
    generator = torch.Generator().manual_seed(seed)
    targets, noise = torch.randn(2, 8, 128, 300, generator=generator)
    found = track_errors({"model": 0.6 * targets + 0.2 * noise}, targets, list("aabbccdd"))
    for part in ("bands", "components", "seconds"):
        weighted = np.nansum(found.skill("model", part).value * found.share(part))
        assert weighted == pytest.approx(float(found.skill("model").value)), part


def test_a_track_that_is_the_mean_itself_makes_no_infinity():
    targets = torch.randn(12, 128, 75)
    targets[0] = 0
    found = track_errors({"model": torch.zeros_like(targets)}, targets, list("abcdefghijkl"))
    assert np.isfinite(found.skill("model")).all()


# ------------------------------------------------------------------ Fréchet distance


def moments(mean: np.ndarray, covariance: np.ndarray, count: int = 1001) -> Moments:
    return Moments(count, torch.from_numpy(mean), torch.from_numpy(covariance) * (count - 1))


def random_covariance(rng, dim, rank):
    root = rng.normal(size=(dim, rank))
    return root @ root.T / rank


def test_distance_of_known_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 128)), rng.uniform(0.1, 4, (2, 128))
    basis = np.linalg.qr(rng.normal(size=(128, 128)))[0]
    first, second = ((basis * d**2) @ basis.T for d in deviations)  # they commute: (s1 - s2)² along each axis
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(moments(means[0], first), moments(means[1], second)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_that_of_scipys_sqrtm(seed):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, 32))
    first, second = random_covariance(rng, 32, 64), random_covariance(rng, 32, 64)
    root = scipy.linalg.sqrtm(first @ second)
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(first + second - 2 * root.real)
    one, other = moments(means[0], first), moments(means[1], second)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rank", [1, 7, 128])
def test_distance_of_a_set_to_itself_is_zero_even_if_singular(rank):
    covariance = random_covariance(np.random.default_rng(rank), 128, rank)
    same = moments(np.ones(128), covariance)
    assert abs(frechet_distance(same, same)) < 1e-9 * np.trace(covariance)


def test_moments_are_those_of_all_frames():
    embeddings = torch.randn(7, 128, 50) + 100  # far from 0, where naive sums cancel
    found = sum((Moments.of(e) for e in embeddings[1:]), Moments.of(embeddings[0]))
    frames = embeddings.transpose(1, 2).reshape(-1, 128).double().numpy()
    np.testing.assert_allclose(found.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(frames, rowvar=False), rtol=1e-9, atol=1e-12)


def songs(count: int, seed: int, frames: int = 300) -> dict[str, Moments]:
    """Tracks that differ from each other more than their own frames do."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"track {k}": Moments.of(
            torch.randn(128, frames, generator=generator) + torch.randn(128, 1, generator=generator)
        )
        for k in range(count)
    }


def test_fad_has_a_spread_over_tracks_and_a_floor():
    truth = songs(12, 1)
    fad, spread, note = fad_over_tracks(truth, truth)
    assert abs(fad) < 1e-9 and abs(spread) < 1e-9 and note == ""
    fad, spread, _ = fad_over_tracks(dict(zip(truth, songs(12, 2).values(), strict=True)), truth)
    floor = fad_floor(truth, 0)
    assert fad > 5 * spread > 0
    assert floor > fad  # half the tracks each: the same music, farther apart
    assert fad_floor(truth, 0) == floor
    assert fad_floor(songs(3, 1), 0) is None


def test_too_few_frames_are_a_note():
    fad, spread, note = fad_over_tracks(songs(2, 1, frames=64), songs(2, 2, frames=64))
    assert (fad, spread) == (None, None)
    assert "128 frames are too few for a covariance" in note
    fad, spread, note = fad_over_tracks(songs(2, 1), songs(2, 2))
    assert fad > 0 and spread is None and note == ""


# ------------------------------------------------------------------ log-mel and chroma


@pytest.fixture(scope="module")
def features():
    return sound.SoundFeatures(24000, torch.device("cpu"))


def tone(frequency, seconds=2.0):
    return torch.sin(2 * math.pi * frequency * torch.arange(int(24000 * seconds)) / 24000)[None]


def test_doubling_the_amplitude_is_a_known_log_mel_distance(features):
    noise = torch.randn(1, 48000, generator=torch.Generator().manual_seed(0))
    first, second = features.log_mel(noise)[0], features.log_mel(2 * noise)[0]
    assert first.shape == (64, 187)
    assert sound.log_mel_distance(first, second) == pytest.approx(math.log10(4), rel=1e-4)
    assert sound.log_mel_distance(first, first) == 0
    silence = features.log_mel(torch.zeros(1, 48000))
    torch.testing.assert_close(silence, torch.full_like(silence, -5.0))


@pytest.mark.parametrize("note", range(36, 109))
def test_chroma_finds_every_semitone(features, note):
    """From C2 up: with half the points there were notes without a bin."""
    matrix = sound.pitch_classes(24000)
    frequencies = torch.arange(matrix.shape[1]) * 24000 / sound.CHROMA_POINTS
    own = (69 + 12 * torch.log2(frequencies.clamp_min(1e-3) / 440)).round() == note
    assert own.any()
    assert (matrix[note % 12] == 1)[own].all()
    frequency = 440 * 2 ** ((note - 69) / 12)
    assert int(features.chroma(tone(frequency))[0].sum(dim=1).argmax()) == note % 12


def test_chroma_cosine_is_1_an_octave_away_and_0_a_tritone_away(features):
    low, high, tritone = (features.chroma(tone(frequency))[0] for frequency in (440, 880, 622.25))
    assert sound.chroma_cosine(low, high) > 0.98
    assert sound.chroma_cosine(low, tritone) < 0.05
    assert sound.chroma_cosine(3 * low, low) == pytest.approx(1)


def test_chroma_of_silence_is_left_out(features):
    tones, silence = features.chroma(tone(440))[0], torch.zeros(12, 24)
    assert math.isnan(sound.chroma_cosine(tones, silence))
    half = torch.cat([torch.zeros(12, 10), tones[:, 10:]], dim=1)
    assert sound.chroma_cosine(tones, half) == pytest.approx(1)
    assert sound.chroma_cosine(silence, tones) == 0
