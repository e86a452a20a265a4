"""The selection of pairs and splits, for any music, right or wrong headers, and any limits."""

import itertools
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import gathering
from dataset.gathering import Selection, select_pairs
from dataset.previous_splits import PreviousSplits
from dataset.segmentation import SegmentationSettings
from dataset.selection import TRAIN_ONLY, Segment, Track, choose_validation, plan, spread, usable_pairs

CUT = SegmentationSettings("music", "staging", segment_duration=1, min_level_db=-60)
COUNTS = st.lists(st.integers(0, 40), max_size=40)


@given(COUNTS, st.integers(0, 500))
def test_a_spread_is_as_even_as_possible(capacities, total):
    counts = spread(capacities, total)
    assert sum(counts) == min(total, sum(capacities))
    for count, capacity in zip(counts, capacities, strict=True):
        assert count == capacity or (count < capacity and count >= max(counts) - 1)


@given(COUNTS, st.integers(2, 60), st.data())
@settings(max_examples=300)
def test_the_validation_tracks(capacities, max_pairs, data):
    val_pairs = data.draw(st.integers(0, max_pairs - 1))
    known = [data.draw(st.sampled_from([None, None, TRAIN_ONLY, "train", "val"])) for _ in capacities]
    val = choose_validation(capacities, max_pairs, val_pairs, known)
    usable = [i for i, capacity in enumerate(capacities) if capacity]
    new = [i for i in usable if known[i] is None]
    free = [i for i in usable if known[i] != "train"]
    assert bool(val) == (val_pairs > 0 and len(usable) > 1 and bool(free)) and val < set(usable) | {-1}
    assert not any(known[i] == "train" for i in val), "a model may have been trained on it"
    if new or any(known[i] == "val" for i in usable):
        assert not any(known[i] == TRAIN_ONLY for i in val), "it has audio in common with training"
    if len(usable) >= 30 and val_pairs >= 10 and len(new) == len(usable):
        assert len(val) >= 10
    counts = plan(capacities, max_pairs, val_pairs, val)
    share = -(-val_pairs // max(1, len(val)))
    in_val = sum(counts[i] for i in val)
    assert in_val == min(val_pairs, sum(min(share, capacities[i]) for i in val))
    assert all(counts[i] <= share for i in val)
    assert sum(counts) - in_val == min(max_pairs - val_pairs, sum(c for i, c in enumerate(capacities) if i not in val))


class ThisProcess:
    """Used in place of `Workers`: everything runs in this process."""

    def map(self, function, items, on_death):
        return map(function, items)


class Music:
    """Tracks of usable and unusable segments without audio; their headers may be wrong."""

    def __init__(self, tracks: list[list[bool]], promised: list[int]):
        self.names = [f"{i}.wav" for i in range(len(tracks))]
        self.tracks, self.promised = dict(zip(self.names, tracks, strict=True)), promised

    def probe_track(self, cut: SegmentationSettings, source: str) -> tuple[float, int]:
        return self.promised[self.names.index(source)], 1

    def stage_track(self, cut: SegmentationSettings, work: tuple[str, int]) -> Track:
        source, pairs = work
        good = self.tracks[source]
        segments = [Segment(f"{source} {k}", usable, 0) for k, usable in enumerate(good)]
        usable = usable_pairs(Track(source, segments), {})
        end = len(segments) if len(usable) <= pairs else usable[pairs].index + 1
        is_whole = end == len(segments)
        return Track(source, segments[:end], min(pairs, len(usable)), is_whole, "" if usable else "quiet")

    def select(self, max_pairs: int, val_pairs: int, known: dict[str, str] | None = None) -> Selection:
        earlier = PreviousSplits({name.removesuffix(".wav"): split for name, split in (known or {}).items()})
        with (
            mock.patch.object(gathering, "stage_track", self.stage_track),
            mock.patch.object(gathering, "probe_track", self.probe_track),
        ):
            return select_pairs(self.names, CUT, max_pairs, val_pairs, earlier, ThisProcess())


@given(st.lists(st.lists(st.booleans() | st.just(True), max_size=30), min_size=1, max_size=12), st.data())
@settings(max_examples=300, deadline=None)
def test_no_track_and_no_second_is_in_both_splits(tracks, data):
    promised = [data.draw(st.sampled_from([len(track), 0, 40])) for track in tracks]
    max_pairs = data.draw(st.integers(2, 60))
    val_pairs = data.draw(st.integers(0, max_pairs - 1))
    music = Music(tracks, promised)
    selection = music.select(max_pairs, val_pairs)
    train, val = selection.train, selection.val
    assert len(train) <= max_pairs - val_pairs and len(val) <= val_pairs
    seconds = [{(p.track.source, k) for p in part for k in (p.index, p.index + 1)} for part in (train, val)]
    assert not seconds[0] & seconds[1], "audio in both splits"
    for pair in train + val:
        assert tracks[music.names.index(pair.track.source)][pair.index : pair.index + 2] == [True, True]
    pairs = {name: sum(a and b for a, b in itertools.pairwise(t)) for name, t in music.tracks.items()}
    usable = [name for name, count in pairs.items() if count]
    assert bool(train) == bool(usable)
    if len(usable) > 1:
        assert not {p.track.source for p in train} & {p.track.source for p in val}, "a track in both splits"
        assert bool(val) == bool(val_pairs)
        # As even as the music allows: a track gives fewer pairs than another only if it has no more.
        in_val = {pair.track.source for pair in val}
        counts = {name: sum(p.track.source == name for p in train) for name in usable if name not in in_val}
        assert all(count == pairs[name] or count >= max(counts.values()) - 1 for name, count in counts.items())
    fates = [*selection.skipped, *selection.not_needed, *selection.used]
    assert sorted(fates) == sorted(music.names) and not any(pairs[name] for name in selection.skipped)


@pytest.mark.parametrize("promised", [[2, 2, 2], [0, 0, 0], [500, 500, 500]])
def test_wrong_headers_cost_a_second_read_but_no_pair(promised):
    music = Music([[True] * 30, [True] * 6, [True] * 21], promised)
    everything = music.select(1000, 100)
    assert len(everything.train) + len(everything.val) == 29 + 5 + 20
    some = music.select(20, 5)
    assert (len(some.train), len(some.val)) == (15, 5)


def test_a_single_track_is_split_in_time():
    selection = Music([[True] * 31], [31]).select(2000, 200)
    assert [p.index for p in selection.train] == list(range(26)) and [p.index for p in selection.val] == [27, 28, 29]
