"""Choose pairs as evenly from the tracks as their lengths allow, with no track in both splits. Used by gathering.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRACKS_FOR_A_VERDICT = 10  # validation tracks that an evaluation needs for a verdict
TRAIN_ONLY = "train_only"  # in place of a split: the track shares audio with another, so it goes to training


@dataclass(frozen=True)
class Segment:
    """The properties of one segment of a track."""

    digest: str  # of the 16-bit samples; "" if they are not finite
    usable: bool  # loud enough and finite
    clipped: int  # samples


@dataclass(frozen=True)
class Track:
    """One audio file: its segments so far, in order, and where the segments of its first pairs are staged."""

    source: str  # path below the input folder
    segments: list[Segment]
    staged_pairs: int = 0  # number of leading usable pairs whose segments are staged
    is_whole: bool = True  # whether it was read to its end
    problem: str = ""  # what is wrong with the file, or why it has no pairs
    staged: str = ""  # folder with NNNNN.wav for each staged segment, and the track's prints

    def wav(self, index: int) -> Path:
        return Path(self.staged) / f"{index:05d}.wav"


@dataclass(frozen=True)
class Pair:
    """Segments `index` and `index + 1` of one track."""

    track: Track
    index: int


def usable_pairs(track: Track, owners: dict[str, str]) -> list[Pair]:
    """The pairs of a track whose two segments are usable and occur in no earlier track.

    `owners` maps the digests seen so far to their tracks. It is updated.
    """
    for segment in track.segments:
        if segment.usable:
            owners.setdefault(segment.digest, track.source)
    good = [segment.usable and owners[segment.digest] == track.source for segment in track.segments]
    return [Pair(track, k) for k in range(len(good) - 1) if good[k] and good[k + 1]]


def spread(capacities: Sequence[int], total: int) -> list[int]:
    """Spread at most `total` pairs as evenly as possible over tracks with these `capacities`."""
    left, level = min(total, sum(capacities)), 0
    counts = [0] * len(capacities)
    while left > 0:
        open_tracks = [i for i, capacity in enumerate(capacities) if capacity > level]
        step = min(min(capacities[i] for i in open_tracks) - level, left // len(open_tracks))
        if step == 0:  # fewer than one each
            open_tracks, step = open_tracks[:left], 1
        for i in open_tracks:
            counts[i] += step
        left, level = left - step * len(open_tracks), level + step
    return counts


def choose_validation_songs(
    capacities: Sequence[int], max_pairs: int, val_pairs: int, known: Sequence[str | None], songs: Sequence[str]
) -> set[int]:
    """Like `choose_validation`, but all tracks of one song go into one split.

    songs: the song of each track. A track still keeps the split it had in an earlier dataset.
    """
    numbers = {song: number for number, song in enumerate(dict.fromkeys(songs))}
    totals, splits = [0] * len(numbers), [None] * len(numbers)
    for song, capacity, split in zip(songs, capacities, known, strict=True):
        totals[numbers[song]] += capacity
        splits[numbers[song]] = max(splits[numbers[song]], split, key=[None, TRAIN_ONLY, "train", "val"].index)
    chosen = choose_validation(totals, max_pairs, val_pairs, splits)
    return {
        track
        for track, (song, split) in enumerate(zip(songs, known, strict=True))
        if numbers[song] in chosen and split != "train" and capacities[track]
    }


def choose_validation(
    capacities: Sequence[int], max_pairs: int, val_pairs: int, known: Sequence[str | None]
) -> set[int]:
    """Choose the validation tracks: at least one if there are two tracks and not all were in training before.

    capacities: the number of pairs of each track. New tracks are chosen in this order.
    known: the split of each track in an earlier dataset, "train" or "val", or None. A track keeps it, because a model
    may have been trained on the track. TRAIN_ONLY marks a track that goes to validation only if there is no other.

    Takes a third of the tracks, but at most ten, or the share val_pairs / max_pairs if that is more. Takes more tracks
    if these have too few pairs. A track with more than half of all pairs is chosen last.
    """
    usable = [i for i, capacity in enumerate(capacities) if capacity]
    if val_pairs == 0 or len(usable) < 2:
        return set()
    part, total = val_pairs / max_pairs, sum(capacities)
    third = min(TRACKS_FOR_A_VERDICT, len(usable) // 3)
    tracks = min(val_pairs, max(1, third, round(len(usable) * part)))
    pairs = min(val_pairs, round(total * part))
    val = {i for i in usable if known[i] == "val"}
    new = [i for i in usable if known[i] is None]
    if not val and not new:
        new = [i for i in usable if known[i] == TRAIN_ONLY]
    for i in sorted(new, key=lambda i: capacities[i] > total / 2):
        if len(val) >= tracks and sum(_val_capacities(capacities, val_pairs, val)) >= pairs:
            break
        val.add(i)
    if len(val) == len(usable):  # training needs one: the largest, and a new one if there is any
        val.remove(max(val, key=lambda i: (known[i] != "val", capacities[i])))
    return val


def _val_capacities(capacities: Sequence[int], val_pairs: int, val: set[int]) -> list[int]:
    """How many pairs each validation track may give: at most its share, so that none outweighs the others."""
    share = -(-val_pairs // max(1, len(val)))
    return [min(capacity, share) if i in val else 0 for i, capacity in enumerate(capacities)]


def plan(capacities: Sequence[int], max_pairs: int, val_pairs: int, val: set[int]) -> list[int]:
    """How many pairs each track gives. `val`: the validation tracks."""
    counts = spread([0 if i in val else capacity for i, capacity in enumerate(capacities)], max_pairs - val_pairs)
    val_counts = spread(_val_capacities(capacities, val_pairs, val), val_pairs)
    return [a + b for a, b in zip(counts, val_counts, strict=True)]


def split_in_time(pairs: list[Pair], max_pairs: int, val_pairs: int) -> tuple[list[Pair], list[Pair]]:
    """(train, val) of a single track: its end is for validation, and pairs across the cut are dropped."""
    share = round(min(len(pairs), max_pairs) * val_pairs / max_pairs)
    wanted = min(val_pairs, max(1, share))
    pairs = pairs[: max_pairs + 2]
    if wanted and len(pairs) > 1:
        val = pairs[len(pairs) - wanted :]
        train = [pair for pair in pairs if pair.index + 1 < val[0].index]
        if train:
            return train[: max_pairs - val_pairs], val
    return pairs[: max_pairs - val_pairs], []
