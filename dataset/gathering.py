"""Choose the pairs of a dataset from a list of audio files: cut tracks, compare them, and cut more if needed.

Used by create_dataset_pairs_wav.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.progress import Progress
from common.workers import Workers
from dataset.previous_splits import PreviousSplits
from dataset.recordings import compare_tracks
from dataset.segmentation import PRINTS_NAME, SegmentationSettings, lost_track, probe_track, stage_track
from dataset.selection import TRAIN_ONLY, Pair, Track, choose_validation_songs, plan, split_in_time, usable_pairs
from dataset.stems import songs_of_stems


@dataclass
class Selection:
    """The pairs of a dataset, and what happened to each audio file."""

    train: list[Pair] = field(default_factory=list)
    val: list[Pair] = field(default_factory=list)
    tracks: dict[str, Track] = field(default_factory=dict)  # by source: all tracks that were read
    skipped: dict[str, str] = field(default_factory=dict)  # source: reason
    not_needed: dict[str, str] = field(default_factory=dict)  # sources beyond max_pairs: their earlier split or ""
    sharing: set[str] = field(default_factory=set)  # sources that share audio with others
    lengths_s: dict[str, float] = field(default_factory=dict)  # by source, from the headers; 0 if unknown
    songs: dict[str, str] = field(default_factory=dict)  # the song of each source that is a stem
    not_independent: list[str] = field(default_factory=list)  # sources in val that share audio or a song with train

    @property
    def used(self) -> list[str]:
        return list(dict.fromkeys(pair.track.source for pair in self.train + self.val))


def select_pairs(
    sources: list[str],
    settings: SegmentationSettings,
    max_pairs: int,
    val_pairs: int,
    earlier: PreviousSplits,
    workers: Workers,
) -> Selection:
    """Choose the pairs of a dataset and stage their segments.

    sources: the audio files. New ones are chosen for validation in this order.
    earlier: the splits of an earlier dataset, which its tracks keep. workers: the processes that read the files.

    The plan is based on the lengths in the headers. If a header is wrong, or a recording occurs twice, further rounds
    take more pairs from the other tracks.
    """
    read = workers.map(functools.partial(probe_track, settings), sources, lambda *_: (0.0, 0))
    headers = dict(zip(sources, Progress().over(read, len(sources), "headers read"), strict=True))
    lengths_s = {source: seconds for source, (seconds, _) in headers.items()}
    # How many pairs each track has according to its header.
    promised = {source: max(1, int(seconds / settings.segment_duration) - 1) for source, seconds in lengths_s.items()}
    selection, pairs_of, links = Selection(lengths_s=lengths_s, songs=songs_of_stems(sources)), {}, []
    tracks = selection.tracks
    splits = known = earlier.known(sources, tracks)  # by their paths, because nothing has been read yet
    while True:
        capacities = {s: _capacity(promised[s], tracks.get(s), pairs_of.get(s, [])) for s in sources}
        counts, val = _plan(capacities, splits, selection.songs, max_pairs, val_pairs)
        needed = {source: _to_stage(tracks.get(source), pairs_of.get(source, []), counts[source]) for source in sources}
        work = [(source, pairs) for source, pairs in needed.items() if pairs]
        if not work:
            break
        staged = workers.map(functools.partial(stage_track, settings), work, lost_track)
        tracks.update((track.source, track) for track in Progress().over(staged, len(work), "tracks cut"))
        known = earlier.known(sources, tracks)
        # Of two copies, use the known one, else the longer one (a download may be incomplete), else the larger file.
        # Lengths are in segments, one more than pairs.
        lengths = {s: len(t.segments) if t.is_whole else promised[s] + 1 for s, t in tracks.items()}
        order = sorted(tracks, key=lambda s: (s not in known, -lengths[s], -headers[s][1]))
        pairs_of, selection.skipped, links = _compare(order, tracks)
        splits = _assign_splits(links, known, pairs_of, selection)

    ready = {source: _staged(tracks[source], pairs_of[source])[:count] for source, count in counts.items() if count}
    if len(ready) == 1:
        selection.train, selection.val = split_in_time(next(iter(ready.values())), max_pairs, val_pairs)
    else:
        selection.train = [pair for source in ready if source not in val for pair in ready[source]]
        selection.val = [pair for source in ready if source in val for pair in ready[source]]
        selection.not_independent = _not_independent(selection, links)
    accounted = {*selection.used, *selection.skipped}
    selection.not_needed = {source: known.get(source, "") for source in sources if source not in accounted}
    return selection


def _plan(
    capacities: dict[str, int], splits: dict[str, str], songs: dict[str, str], max_pairs: int, val_pairs: int
) -> tuple[dict[str, int], set[str]]:
    """How many pairs to take from each source, and which sources are for validation."""
    sources, numbers = list(capacities), list(capacities.values())
    songs_in_order = [songs.get(source, source) for source in sources]
    val = choose_validation_songs(numbers, max_pairs, val_pairs, [*map(splits.get, sources)], songs_in_order)
    counts = dict(zip(sources, plan(numbers, max_pairs, val_pairs, val), strict=True))
    if sum(map(bool, numbers)) == 1:  # split_in_time drops a pair at its cut
        counts = {source: count and max_pairs + 2 for source, count in counts.items()}
    return counts, {sources[i] for i in val}


def _compare(
    order: list[str], tracks: dict[str, Track]
) -> tuple[dict[str, list[Pair]], dict[str, str], list[tuple[str, str]]]:
    """Find the pairs of each track that no earlier track in `order` contains.

    Returns the pairs by source, the reasons of sources without pairs, and (track, track) tuples that share audio.
    """
    repeats, sharing = compare_tracks([_read_prints(tracks[source]) for source in order])
    repeats_of = {order[i]: order[first] for i, first in repeats.items()}
    links = [(order[first], order[second]) for first, second in sharing]
    pairs_of, reasons, owners = {}, {}, {}
    for source in order:
        track = tracks[source]
        if source in repeats_of:
            pairs_of[source], reasons[source] = [], f"same recording as {repeats_of[source]}"
            continue
        pairs_of[source] = usable_pairs(track, owners)
        owners_here = dict.fromkeys(owners[segment.digest] for segment in track.segments if segment.usable)
        others = [owner for owner in owners_here if owner != source]
        links += [(other, source) for other in others]
        if not pairs_of[source]:
            reasons[source] = f"same audio as {others[0]}" if others else track.problem
    return pairs_of, reasons, links


def _assign_splits(
    links: list[tuple[str, str]], known: dict[str, str], pairs_of: dict[str, list[Pair]], selection: Selection
) -> dict[str, str]:
    """Assign the splits of tracks that have an earlier split or share audio with another.

    Tracks that share audio go to training. A track that shares audio with a validation track of an earlier dataset is
    left out: its pairs in `pairs_of` are removed. Stems of one song don't count as sharing, because they stay in one
    split anyway. Returns the splits by source.
    """
    splits, selection.sharing = dict(known), set()
    links = [(a, b) for a, b in links if a not in selection.songs or selection.songs[a] != selection.songs.get(b)]
    for link in sorted(links, key=lambda link: not any(known.get(source) == "val" for source in link)):
        if not all(pairs_of[source] for source in link):
            continue
        in_val = [source for source in link if known.get(source) == "val"]
        for source in link:
            if not in_val:
                splits.setdefault(source, TRAIN_ONLY)
                selection.sharing.add(source)
            elif source not in in_val:
                pairs_of[source] = []
                selection.skipped[source] = f"shares audio with {in_val[0]}, which is in validation"
    return splits


def _not_independent(selection: Selection, links: list[tuple[str, str]]) -> list[str]:
    """The sources in val that share audio with one in train, or are stems of the same song."""
    train, val = ({pair.track.source for pair in pairs} for pairs in (selection.train, selection.val))
    songs = {selection.songs[source] for source in train & selection.songs.keys()}
    shared = {a for link in links for a, b in (link, link[::-1]) if b in train}
    return sorted(source for source in val if source in shared or selection.songs.get(source) in songs)


def _read_prints(track: Track) -> np.ndarray:
    path = Path(track.staged, PRINTS_NAME)
    return np.frombuffer(path.read_bytes() if track.staged and path.exists() else b"", np.uint32)


def _capacity(promised: int, track: Track | None, pairs: list[Pair]) -> int:
    """How many pairs a track has, as far as we know. promised: the number by its header."""
    if track is None:
        return promised
    if track.is_whole or not pairs:
        return len(pairs)
    if len(pairs) < promised:
        return promised
    return 2 * len(pairs) + 1  # it is longer than its header says, so read about twice as much


def _staged(track: Track, pairs: list[Pair]) -> list[Pair]:
    """The pairs of a track whose segments are staged."""
    usable = [pair.index for pair in usable_pairs(track, {})]
    staged = set(usable[: track.staged_pairs])
    return [pair for pair in pairs if pair.index in staged]


def _to_stage(track: Track | None, pairs: list[Pair], count: int) -> int:
    """How many pairs of a track to stage so that `count` are available; 0 if they are staged already."""
    if track is None:
        return count
    missing = count - len(_staged(track, pairs))
    is_complete = track.is_whole and track.staged_pairs == len(usable_pairs(track, {}))
    return track.staged_pairs + missing if missing > 0 and not is_complete else 0
