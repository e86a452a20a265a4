"""What dataset creation reports: skipped and damaged files, totals, and a weak validation split."""

from __future__ import annotations

import re
import sys

from common.errors import printable
from dataset.gathering import Selection
from dataset.pairs import METADATA_NAME
from dataset.selection import TRACKS_FOR_A_VERDICT

MAX_LINES = 5  # lines about files with the same problem; beyond that they share one


def totals(selection: Selection, segment_duration: int) -> dict[str, str]:
    """The totals of a dataset, as metadata.txt lists them."""
    chosen = selection.train + selection.val
    written = {(pair.track.source, k): pair.track.segments[k] for pair in chosen for k in (pair.index, pair.index + 1)}
    read = [segment for track in selection.tracks.values() for segment in track.segments]
    files = len(selection.used) + len(selection.skipped) + len(selection.not_needed)
    damaged = {f"note {printable(source)}": printable(problem) for source, problem in _damaged(selection).items()}
    return {
        "pairs": f"{len(chosen)} ({len(selection.train)} train, {len(selection.val)} val)",
        "tracks": f"{len(selection.used)} of {files}",
        "hours": f"{len(written) * segment_duration / 3600:.2f}",
        "quiet_segments": str(sum(bool(segment.digest) and not segment.usable for segment in read)),
        "non_finite_segments": str(sum(not segment.digest for segment in read)),
        "clipped_samples": str(sum(segment.clipped for segment in written.values())),
        "skipped_files": str(len(selection.skipped)),
        "damaged_files": str(len(damaged)),
    } | damaged


def report_files(selection: Selection, max_pairs: int) -> None:
    """Print which files are skipped, damaged, stems or not needed."""
    where = f" ({METADATA_NAME} lists all)" if selection.train else ""
    _print_grouped("skipped", selection.skipped, where)
    _print_grouped("note", _damaged(selection), where)
    if selection.songs:
        songs = len(set(selection.songs.values()))
        print(
            f"{len(selection.songs)} files are named as stems of {songs} songs; all stems of a song go into one split"
        )
    if selection.sharing:
        print(f"{len(selection.sharing)} tracks share audio with another; all of them go into training")
    if selection.not_needed:
        print(f"{len(selection.not_needed)} more tracks are not needed for --max_pairs {max_pairs}")


def report_dataset(
    selection: Selection, output_dir: str, segment_duration: int, max_pairs: int, val_pairs: int
) -> None:
    """Print a summary, and a warning if the validation split is weak."""
    counts = totals(selection, segment_duration)
    print(
        f"{output_dir}: pairs: {counts['pairs']}; {counts['hours']} h from {counts['tracks']} tracks; "
        f"{counts['skipped_files']} files skipped"
    )
    for warning in (_not_independent(selection), _weak_validation(selection, max_pairs, val_pairs)):
        if warning:
            print(f"{output_dir}: {warning}", file=sys.stderr)


def _not_independent(selection: Selection) -> str:
    seen = selection.not_independent
    if not seen:
        return ""
    names = ", ".join(map(printable, seen[:3])) + (", ..." if seen[3:] else "")
    return (
        f"*** VALIDATION IS NOT INDEPENDENT: it has audio or a song in common with training ({names}). "
        "Add other music, or split the tracks again with --overwrite and train from the start"
    )


def _weak_validation(selection: Selection, max_pairs: int, val_pairs: int) -> str:
    """What is wrong with the validation split and how to get a better one; empty if it has enough tracks."""
    tracks = len({pair.track.source for pair in selection.val})
    if val_pairs == 0:
        return f"no validation split (--val_pairs 0, --max_pairs {max_pairs}), but training needs one"
    if not selection.val and len(selection.used) == 1:
        return "too little music for a validation split, but training needs one: add another track"
    if not selection.val:
        return (
            "no validation split, but training needs one: all tracks are stems of one song or were used for training "
            "before. Add another track, or split them again with --overwrite and train from the start"
        )
    if len(selection.used) == 1:
        return (
            f"*** ONLY ONE TRACK: {printable(selection.used[0])} is split in time. Training and validation share it, "
            "so validation means little; add another track"
        )
    if tracks < TRACKS_FOR_A_VERDICT:
        remedy = "increase --val_pairs" if tracks >= val_pairs else "add more music to --input_dir"
        return f"only {tracks} of the {TRACKS_FOR_A_VERDICT} validation tracks that a verdict needs; {remedy}"
    return ""


def _damaged(selection: Selection) -> dict[str, str]:
    """The problems of the files that are used."""
    return {source: problem for source in selection.used if (problem := selection.tracks[source].problem)}


def _print_grouped(what: str, reasons: dict[str, str], where: str) -> None:
    """Print a line for each file on stderr. If more than five have the same kind of problem, print one for them all."""
    groups: dict[str, list[str]] = {}
    for source, reason in sorted(reasons.items()):
        kind = re.sub(r"(?<= as ).*|[\d.]+(?= s\b)|\d+ of \d+| \([^()]*\)$", "...", reason)
        groups.setdefault(kind, []).append(source)
    for sources in groups.values():
        if len(sources) <= MAX_LINES:
            lines = [f"{printable(source)}: {printable(reasons[source])}" for source in sources]
        else:
            first, second, third = map(printable, sources[:3])
            example = f"{first}: {printable(reasons[sources[0]])}"
            lines = [f"{len(sources)} files like {example}; also {second}, {third}, ...{where}"]
        for line in lines:
            print(f"{what} {line}", file=sys.stderr)
