"""How many segments a track gives, where they begin, and that pairs follow one another: any rate or length."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio.segments import stream_segments
from dataset.pairs import Segment, Track, usable_pairs


class Samples:
    """A track whose samples are their own numbers, 1 and upwards, handed out as a file does: in order, once."""

    def __init__(self, frames: int, rate: int, channels: int):
        self.good_frames, self.samplerate, self.channels, self.given = frames, rate, channels, 0
        self.problem = ""

    def read(self, wanted: int, dtype: str, always_2d: bool) -> np.ndarray:
        count = min(wanted, self.good_frames - self.given)
        numbers = np.arange(self.given + 1, self.given + count + 1, dtype=dtype)
        self.given += count
        return np.repeat(numbers[:, None], self.channels, axis=1)


@given(
    st.integers(0, 5), st.integers(-3, 3), st.integers(1, 4), st.sampled_from([1000, 4000, 24000]), st.integers(1, 3)
)
@settings(max_examples=100, deadline=None)
def test_no_sample_twice_and_none_lost_but_the_tail(segments, more, seconds, rate, channels):
    """Around every whole number of segments, at the track's own rate: there each sample can be told from the rest."""
    frames = max(0, segments * seconds * rate + more)
    got = list(stream_segments(Samples(frames, rate, channels), seconds, rate))
    assert len(got) == frames // (seconds * rate)
    assert all(len(segment) == seconds * rate for segment in got)
    numbers = np.concatenate([np.zeros(0, np.float32), *got])
    np.testing.assert_array_equal(numbers, np.arange(1, len(numbers) + 1))
    assert frames - len(numbers) < seconds * rate, "more than a tail is lost"


@given(st.integers(0, 3), st.integers(-2, 2), st.integers(1, 2), st.integers(40, 400))
@settings(max_examples=40, deadline=None)
def test_as_many_segments_at_any_rate(segments, more, seconds, rate):
    """What is in them is compared with the whole track, resampled in one piece, in test_audio_segments.py."""
    rate *= 25  # small tables for the resampler, and yet few whole ratios
    frames = max(0, segments * seconds * rate + more)
    got = list(stream_segments(Samples(frames, rate, 1), seconds, 1000))
    assert len(got) == frames // (seconds * rate)
    assert all(len(segment) == seconds * 1000 for segment in got)


@given(st.lists(st.booleans(), max_size=30))
@settings(max_examples=200, deadline=None)
def test_pairs_are_consecutive_and_complete(usable):
    """Segment k with segment k + 1, for every k whose two segments are usable: no other, and none left out."""
    track = Track("x", [Segment(str(k), good, 0) for k, good in enumerate(usable)])
    indices = [pair.index for pair in usable_pairs(track, {})]
    assert indices == [k for k, (a, b) in enumerate(itertools.pairwise(usable)) if a and b]
    if all(usable):
        assert len(indices) == max(0, len(usable) - 1)


@pytest.mark.parametrize(
    "frames, pairs", [(0, 0), (1, 0), (16 * 24000 - 1, 0), (16 * 24000, 0), (32 * 24000 - 1, 0), (32 * 24000, 1),
                      (32 * 24000 + 1, 1), (48 * 24000, 2)])  # fmt: skip
def test_pairs_of_16_seconds(frames, pairs):
    segments = list(stream_segments(Samples(frames, 24000, 2), 16, 24000))
    assert max(0, len(segments) - 1) == pairs
