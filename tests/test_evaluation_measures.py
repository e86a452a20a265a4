"""The measures on embeddings, log-mel spectrograms and chroma."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import measures, sound
from evaluation.measures import TrackErrors, compare
from evaluation.results import gather_evidence
from evaluation.verdict import COMPARED

# ------------------------------------------------------------------ in encoded space


@given(frames=st.integers(1, 400), frame_rate=st.integers(1, 75), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_split_of_the_error_adds_up_to_it(frames, frame_rate, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 128, frames, generator=generator).unbind()
    found = compare(prediction, target, torch.zeros(128, 1), frame_rate)
    total = float((prediction.double() - target.double()).square().sum())
    for part in ("seconds", "bands"):
        assert found[part].sum() == pytest.approx(total, rel=1e-6), part
    assert len(found["seconds"]) == len(measures.elements_per_second(frames, 128, frame_rate))
    assert measures.elements_per_second(frames, 128, frame_rate).sum() == frames * 128


@pytest.mark.parametrize(("hertz", "band"), [(0, 0), (0.125, 1), (0.25, 2), (1, 3), (5, 4), (30, 5)])
def test_a_wave_of_errors_is_in_its_band(hertz, band):
    error = torch.cos(2 * math.pi * hertz * torch.arange(600) / 75)[None].double().repeat(128, 1)  # 8 s
    found = measures.error_by_band(error, 75)
    assert int(found.argmax()) == band
    assert found[band] > 0.999 * found.sum()
    assert len(found) == len(measures.BANDS)


def track_errors(predictions: dict, targets: torch.Tensor, tracks: list[str]) -> TrackErrors:
    """The errors of predictions [pairs, 128, T] for each row. The training mean is 0."""
    errors = {}
    for row, predicted in (predictions | {"training_mean": torch.zeros_like(targets)}).items():
        parts = [compare(p, y, torch.zeros(128, 1), 75) for p, y in zip(predicted, targets, strict=True)]
        errors[row] = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    return TrackErrors(errors, tracks)


def test_the_slope_measures_overconfidence(seed):
    generator = torch.Generator().manual_seed(seed)
    known, unknown = torch.randn(2, 6, 128, 75, generator=generator)
    tracks = list("aabbcc")
    found = track_errors({"right": known, "bold": 2 * known, "noise": unknown.flip(0)}, known + unknown, tracks)
    assert found.slope("right") == pytest.approx(1, abs=0.05)
    assert found.slope("bold") == pytest.approx(0.5, abs=0.03)
    assert found.slope("noise") == pytest.approx(0, abs=0.05)
    assert found.slope("training_mean") is None


def test_every_track_counts_once(seed):
    """One long, loud track is predicted perfectly, and nine tracks are not predicted at all."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(59, 128, 75, generator=generator)
    targets[:50] *= 10
    predicted = torch.zeros_like(targets)
    predicted[:50] = targets[:50]
    tracks = ["giant"] * 50 + [f"track {k}" for k in range(9)]
    found = track_errors({"model": predicted}, targets, tracks)
    assert found.pooled_skill("model") > 0.99
    assert found.skill("model").value == pytest.approx(0.1)
    seconds, shares = found.skill("model", "seconds"), found.share("bands")
    assert seconds.value == pytest.approx([0.1])
    assert shares.sum() == pytest.approx(1)
    # The verdict also asks for a lower error over all pairs together, where the giant counts most.
    rows = {"model": targets * torch.tensor([-1.0] * 50 + [1] * 9)[:, None, None]}
    rows |= dict.fromkeys(COMPARED, torch.zeros_like(targets))
    evidence = gather_evidence(track_errors(rows, targets, tracks), 0)
    assert evidence.skill.value == pytest.approx(0.6) and not evidence.lower_error["training_mean"]


def test_quiet_tracks_count_for_less_in_every_measure(seed):
    """Five of twelve tracks are quiet, and the model predicts only each clip's average."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(12, 128, 300, generator=generator) + torch.randn(12, 128, 1, generator=generator)
    targets[:5] *= 0.01
    average = targets.mean(dim=2, keepdim=True).expand_as(targets)
    rows = {"model": average, "half": average / 2, "training_mean": torch.zeros_like(targets)}
    found = track_errors(rows, targets, list("abcdefghijkl"))
    skill, bands = found.skill("model"), found.skill("model", "bands")
    assert bands.value[0] * found.share("bands")[0] == pytest.approx(float(skill.value), abs=1e-3)
    for part in ("bands", "seconds"):
        assert found.share(part).sum() == pytest.approx(1)
        weighted = np.nansum(found.skill("half", part).value * found.share(part))
        assert weighted == pytest.approx(float(found.skill("half").value)), part
    np.testing.assert_allclose(found.lead("model", "training_mean"), skill)
    assert found.lead("model", "half").value == pytest.approx(skill.value - found.skill("half").value)


def test_a_track_that_equals_the_mean_gives_no_infinity():
    targets = torch.randn(12, 128, 75)
    targets[0] = 0
    found = track_errors({"model": torch.zeros_like(targets)}, targets, list("abcdefghijkl"))
    assert np.isfinite(found.skill("model")).all()


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


def test_chroma_finds_every_semitone_from_c2_up(features):
    for note in range(36, 109):
        frequency = 440 * 2 ** ((note - 69) / 12)
        assert int(features.chroma(tone(frequency, 0.5))[0].sum(dim=1).argmax()) == note % 12, note


def test_chroma_cosine_is_1_an_octave_away_and_0_a_tritone_away(features):
    low, high, tritone = (features.chroma(tone(frequency))[0] for frequency in (440, 880, 622.25))
    assert sound.chroma_cosine(low, high) > 0.98
    assert sound.chroma_cosine(low, tritone) < 0.05
    assert sound.chroma_cosine(3 * low, low) == pytest.approx(1)
