"""Cut a folder of music into consecutive 16-second WAV pairs: step 1 of the pipeline.

    python create_dataset_pairs_wav.py                          # music/ -> dataset_pairs_wav/
    python create_dataset_pairs_wav.py --input_dir ~/Music      # any folder, searched recursively
    sbatch create_dataset_pairs_levante.sh --input_dir ...      # on Levante

Reads whatever libsndfile reads (WAV, FLAC, MP3, Ogg, Opus, AIFF, ...), averages the channels, resamples
to 24 kHz and pairs each segment with the one after it. Training and validation never share a track.
Every file appears complete or not at all; a run that was cut goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from audio.segments import find_audio_files
from common.arguments import file_path, number
from common.errors import UserError, printable, run_script
from common.files import check_output_folder, lock_folder
from common.machine import available_cores
from dataset.cutting import STAGING_NAME, remove_staged, stage_tracks, staged_tracks
from dataset.pairs import (
    METADATA_NAME,
    Pair,
    PairRow,
    Track,
    check_is_ours,
    read_metadata,
    reason_skipped,
    split_pairs,
    usable_pairs,
    write_metadata,
)

PAIR_FILE = re.compile(r"\.?pair_\d{4,}_(input|output)\.wav(\.\d+\.part)?")


@dataclass
class Collection:
    """The tracks cut so far, the usable pairs of each, and the split of these pairs."""

    tracks: list[Track] = field(default_factory=list)
    pairs: list[list[Pair]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # source, reason
    train: list[Pair] = field(default_factory=list)
    val: list[Pair] = field(default_factory=list)


def collect(sources: list[str], input_dir: Path, staging: Path, args: argparse.Namespace) -> Collection:
    """Stage tracks in their order until both splits are full or the music is used up."""
    collection, owners, found = Collection(), {}, 0
    sizes = {source: _size(input_dir / source) for source in sources}
    on_terminal = sys.stderr.isatty()
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="cutting", disable=not on_terminal) as bar:
        for done, track in enumerate(stage_tracks(sources, input_dir, staging, args), 1):
            pairs = usable_pairs(track, owners)
            found += len(pairs)
            collection.tracks.append(track)
            collection.pairs.append(pairs)
            if not pairs:
                collection.skipped.append((track.source, reason_skipped(track, owners)))
                why = printable(collection.skipped[-1][1])
                tqdm.write(f"skipped {printable(track.source)}: {why}", file=sys.stderr)
            elif track.problem:
                problem = track.problem.removeprefix("damaged: ")
                tqdm.write(f"damaged {printable(track.source)}: {problem}; the rest is used", file=sys.stderr)
            bar.update(sizes[track.source])
            bar.set_postfix(tracks=f"{done}/{len(sources)}", pairs=found)
            if not on_terminal and done % 100 == 0:
                print(f"{done}/{len(sources)} tracks, {found} pairs", flush=True)
            if found >= args.max_pairs or done == len(sources):
                collection.train, collection.val = split_pairs(collection.pairs, args.max_pairs, args.val_pairs)
                if len(collection.train) + len(collection.val) == args.max_pairs:
                    break
    return collection


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _link(staged: Path, final: Path) -> None:
    """Give a staged file its final name: a link where the file system has them, a copy otherwise."""
    beside = final.with_name(f".{final.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    try:
        os.link(staged, beside)
    except OSError:
        shutil.copyfile(staged, beside)
    os.replace(beside, final)
    beside.unlink(missing_ok=True)  # renaming one link of a file over another leaves both


def _remove_stale(output_dir: Path, names: set[str]) -> None:
    """Remove the pair files (and only those) that are not among `names`, "train/pair_0000_input.wav"."""
    for path in _pair_files(output_dir):
        if f"{path.parent.name}/{path.name}" not in names:
            path.unlink()


def _pair_files(output_dir: Path) -> list[Path]:
    """The pairs in a dataset's folder, and what a killed run left of them."""
    return [p for split in ("train", "val") for p in output_dir.glob(f"{split}/*") if PAIR_FILE.fullmatch(p.name)]


def create_dataset(args: argparse.Namespace) -> None:
    """Do the whole work for parsed arguments; raises UserError for what the user can mend."""
    input_dir, output_dir = Path(args.input_dir), Path(args.output_dir)
    if args.val_pairs >= args.max_pairs:
        raise UserError(
            f"--val_pairs {args.val_pairs}: must be below --max_pairs {args.max_pairs}, of which it is a part"
        )
    if not 1000 <= args.sample_rate <= 1_000_000:
        raise UserError(f"--sample_rate {args.sample_rate}: must be 1000 to 1000000 Hz; EnCodec needs 24000")
    if args.segment_duration > 600:
        raise UserError(f"--segment_duration {args.segment_duration}: must be at most 600 seconds")
    if not input_dir.is_dir():
        raise UserError(f"--input_dir {input_dir}: no such folder; name the folder that holds your music")
    if args.min_level_db > 0:
        raise UserError(f"--min_level_db {args.min_level_db}: nothing is that loud; must be at most 0")
    check_output_folder("--output_dir", output_dir)
    sources = find_audio_files(input_dir, leave_out=output_dir)
    if not sources:
        raise UserError(f"--input_dir {input_dir}: no audio files in it or below it")
    settings = {
        name: str(getattr(args, name))
        for name in ("segment_duration", "sample_rate", "max_pairs", "val_pairs", "min_level_db", "seed")
    }
    listing = repr([(source, _size(input_dir / source)) for source in sources])
    settings["input_files"] = (
        f"{len(sources)} ({hashlib.sha256(listing.encode('utf-8', 'surrogateescape')).hexdigest()[:16]})"
    )

    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "dataset creation"):
        metadata = output_dir / METADATA_NAME
        check_is_ours(metadata)
        if not args.overwrite and not metadata.exists() and not staged_tracks(output_dir) and _pair_files(output_dir):
            raise UserError(
                f"{output_dir}: holds pairs without {METADATA_NAME}; add --overwrite or choose another --output_dir"
            )
        if metadata.exists() and not args.overwrite:
            known = read_metadata(metadata)
            changed = [
                f"{key} {known.settings.get(key)} -> {value}"
                for key, value in settings.items()
                if known.settings.get(key) != value
            ]
            if changed:
                raise UserError(
                    f"{metadata}: made with other settings ({'; '.join(changed)}); "
                    "add --overwrite or choose another --output_dir"
                )
            if _is_complete(output_dir, known.pairs, args):
                remove_staged(output_dir)
                print(f"{output_dir}: already complete, {len(known.pairs)} pairs; nothing to do")
                return
        _build(sources, input_dir, output_dir, settings, args)


def _is_complete(output_dir: Path, pairs: list[PairRow], args: argparse.Namespace) -> bool:
    size = 44 + 2 * args.segment_duration * args.sample_rate
    return all(_size(output_dir / name) == size for pair in pairs for name in pair.files)


def _build(
    sources: list[str], input_dir: Path, output_dir: Path, settings: dict[str, str], args: argparse.Namespace
) -> None:
    staging = output_dir / STAGING_NAME
    staging.mkdir(exist_ok=True)
    for folder in staged_tracks(output_dir):
        if folder.suffix == ".part":
            shutil.rmtree(folder, ignore_errors=True)  # a killed run's worker may still be at it
    random.Random(args.seed).shuffle(sources)
    print(f"{len(sources)} audio files in {input_dir}; {min(args.num_workers, len(sources))} processes", flush=True)
    made = collect(sources, input_dir, staging, args)
    chosen = made.train + made.val
    if not chosen:
        remove_staged(output_dir)
        first = "; ".join(f"{printable(source)}: {reason}" for source, reason in made.skipped[:3])
        raise UserError(
            f"--input_dir {input_dir}: {len(sources)} audio files, but no usable pair of "
            f"{args.segment_duration} s segments ({first})"
        )

    rows = [
        PairRow(
            f"pair_{number:04d}",
            "train" if number < len(made.train) else "val",
            printable(pair.track.source),
            pair.index * args.segment_duration,
        )
        for number, pair in enumerate(chosen)
    ]
    for split in ("train", "val"):
        (output_dir / split).mkdir(exist_ok=True)
    (output_dir / METADATA_NAME).unlink(missing_ok=True)  # from here on the dataset is not what it says
    _remove_stale(output_dir, {name for row in rows for name in row.files})
    for row, pair in zip(tqdm(rows, unit="pair", desc="writing", disable=not sys.stderr.isatty()), chosen, strict=True):
        for offset, name in enumerate(row.files):
            _link(pair.track.wav(pair.index + offset), output_dir / name)
    totals = _totals(made, sources, args)
    digests = {
        name: pair.track.segments[pair.index + offset].digest
        for row, pair in zip(rows, chosen, strict=True)
        for offset, name in enumerate(row.files)
    }
    skipped = [(printable(s), printable(why)) for s, why in made.skipped]
    write_metadata(output_dir / METADATA_NAME, settings, totals, skipped, rows, digests)
    remove_staged(output_dir)
    print(
        f"{output_dir}: {totals['pairs']} pairs, {totals['hours']} h, from {totals['tracks']} tracks; "
        f"{totals['skipped_files']} files skipped"
    )
    if not made.val:
        print(
            f"{output_dir}: too little music for a validation split, and training needs one: add another track",
            file=sys.stderr,
        )


def _totals(made: Collection, sources: list[str], args: argparse.Namespace) -> dict[str, str]:
    chosen = made.train + made.val
    used = {pair.track.source for pair in chosen}
    written = {(pair.track.source, k): pair.track.segments[k] for pair in chosen for k in (pair.index, pair.index + 1)}
    heard = [segment for track in made.tracks for segment in track.segments]
    return {
        "pairs": f"{len(chosen)} ({len(made.train)} train, {len(made.val)} val)",
        "tracks": f"{len(used)} of {len(sources)}",
        "hours": f"{len(written) * args.segment_duration / 3600:.2f}",
        "quiet_segments": str(sum(bool(s.digest) and not s.usable for s in heard)),
        "non_finite_segments": str(sum(not s.digest for s in heard)),
        "clipped_samples": str(sum(segment.clipped for segment in written.values())),
        "skipped_files": str(len(made.skipped)),
        "damaged_files": str(sum(bool(track.problem) and track.source in used for track in made.tracks)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--input_dir",
        type=file_path,
        default="music",
        help="folder of music, searched recursively (default: %(default)s)",
    )
    add("--output_dir", type=file_path, default="dataset_pairs_wav", help="where the pairs go (default: %(default)s)")
    add("--segment_duration", type=number(int, at_least=1), default=16, help="whole seconds (default: %(default)s)")
    add("--sample_rate", type=number(int, at_least=1), default=24000, help="Hz (default: %(default)s)")
    add("--max_pairs", type=number(int, at_least=1), default=2000, help="train and val together (default: %(default)s)")
    add(
        "--val_pairs",
        type=number(int, at_least=0, below=2**63),
        default=200,
        help="of these, for validation (default: %(default)s)",
    )
    add(
        "--min_level_db",
        type=number(float),
        default=-60.0,
        help="a segment with less RMS about its mean, in dBFS, is left out (default: %(default)s)",
    )
    add(
        "--seed",
        type=number(int, at_least=0, below=2**63),
        default=42,
        help="order of the tracks (default: %(default)s)",
    )
    add(
        "--num_workers",
        type=number(int, at_least=1, at_most=1024),
        default=available_cores(),
        help="processes (default: all cores given, here %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace a dataset made with other settings")
    create_dataset(parser.parse_args())
    return 0


if __name__ == "__main__":
    run_script(main)
