"""Cut a folder of music into pairs of consecutive 16-second WAVs: step 1 of the pipeline.

    python create_dataset_pairs_wav.py                          # music/ -> dataset_pairs_wav/
    python create_dataset_pairs_wav.py --input_dir ~/Music      # any folder, searched recursively
    sbatch create_dataset_pairs_levante.sh --input_dir ...      # on Levante

Reads every format that libsndfile or FFmpeg reads (WAV, FLAC, MP3, M4A, Ogg, Opus, WMA, ...), averages the channels,
resamples to 24 kHz and pairs each segment with the next one. Pairs come from all tracks as evenly as their lengths
allow. Training and validation never share a track unless there is only one. If it is killed, run it again: it
resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH

from common.arguments import answer_early, file_path, number, parse_settings, seed_setting, setting


@dataclass
class Settings:
    input_dir: str = setting("music", "folder of music, searched recursively", type=file_path)
    output_dir: str = setting("dataset_pairs_wav", "folder for the pairs", type=file_path)
    segment_duration: int = setting(16, "segment length, whole seconds", type=number(int, at_least=1, at_most=600))
    max_pairs: int = setting(2000, "maximum number of pairs, train and val together", type=number(int, at_least=1))
    val_pairs: int | None = setting(
        None, "validation pairs, included in --max_pairs (default: a tenth, at least 1)", type=number(int, at_least=0)
    )
    min_level_db: float = setting(
        -60.0, "skip segments below this RMS level in dBFS (without DC offset)", type=number(float, at_most=0)
    )
    sample_rate: int = setting(24000, "the codec's sample rate in Hz", type=number(int, at_least=4000, at_most=192000))
    seed: int = seed_setting("the choice of validation tracks")
    num_workers: int | None = setting(
        None, "number of processes (default: all available cores)", type=number(int, at_least=1, at_most=1024)
    )
    overwrite: bool = setting(False, "replace a dataset made with other settings, and split its tracks again")


if __name__ == "__main__":
    answer_early(Settings, __doc__)

from common.errors import UserError, printable, run_script
from common.files import check_output_folder, lock_folder
from common.machine import available_cores
from common.progress import Progress
from common.workers import Workers
from dataset.gathering import Selection, select_pairs
from dataset.pairs import METADATA_NAME, Metadata, PairRow, check_is_ours, read_metadata, write_metadata
from dataset.previous_splits import PreviousSplits, not_needed, report_changes
from dataset.report import report_dataset, report_files, totals
from dataset.segmentation import CHANGED, STAGING_NAME, SegmentationSettings, remove_staged, staged_tracks
from dataset.sources import find_sources, hash_of_files, size_and_date

# Settings that define the dataset.
RECORDED = ("segment_duration", "max_pairs", "val_pairs", "min_level_db", "sample_rate", "seed")
PAIR_FILE = re.compile(r"\.?pair_\d{4,}_(input|output)\.wav(\.\d+\.part)?")
RETRY_REASONS = re.compile(f"{re.escape(CHANGED)}|SIGKILL")  # reasons to try a file again in the next run
PREVIOUS_NAME = "previous_metadata.txt"  # in .staging while a dataset is being replaced


def main() -> int:
    create_dataset(parse_settings(Settings, __doc__))
    return 0


def create_dataset(settings: Settings) -> None:
    """Create the dataset. Raises UserError for problems that the user can fix."""
    input_dir, output_dir = Path(settings.input_dir), Path(settings.output_dir)
    _check(settings, input_dir, output_dir)
    sources = find_sources(input_dir, output_dir)
    if sources.own_folders or sources.own_files:
        print(
            f"skipped this project's own output: folders: {sources.own_folders}, other files: {sources.own_files}",
            file=sys.stderr,
        )
    if not sources.files:
        raise UserError(f"--input_dir {input_dir}: contains no audio files; use the folder that contains your music")
    recorded = {name: str(getattr(settings, name)) for name in RECORDED}
    recorded["input_files"] = hash_of_files(input_dir, sources.files)

    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "dataset creation"):
        previous = _previous(output_dir, recorded, settings.overwrite)
        if previous is not None and previous.settings["input_files"] == recorded["input_files"]:
            if _is_complete(output_dir, previous, settings):
                remove_staged(output_dir)
                print(f"{output_dir}: already complete, {len(previous.pairs)} pairs; nothing to do")
                return
        elif previous is not None:
            report_changes(previous, sources.files, output_dir)
        _build(sources.files, recorded, previous, settings)


def _check(settings: Settings, input_dir: Path, output_dir: Path) -> None:
    if settings.val_pairs is None:
        settings.val_pairs = min(max(1, settings.max_pairs // 10), settings.max_pairs - 1)
    if settings.val_pairs >= settings.max_pairs:
        raise UserError(
            f"--val_pairs {settings.val_pairs}: must be less than --max_pairs {settings.max_pairs}, which includes it"
        )
    if not input_dir.is_dir():
        raise UserError(f"--input_dir {input_dir}: no such folder; use the folder that contains your music")
    real_input, real_output = input_dir.resolve(), output_dir.resolve()
    if real_input == real_output:
        raise UserError(f"--output_dir {output_dir}: is also the music folder; choose another")
    if real_output in real_input.parents:
        raise UserError(f"--output_dir {output_dir}: contains the music folder {input_dir}; choose another")
    check_output_folder("--output_dir", output_dir)


def _previous(output_dir: Path, recorded: dict[str, str], overwrite: bool) -> Metadata | None:
    """The metadata of the dataset in the folder; None if there is none, or `overwrite` replaces it.

    Raises UserError for a dataset with other settings, and for files that this project did not write.
    """
    metadata, set_aside = output_dir / METADATA_NAME, output_dir / STAGING_NAME / PREVIOUS_NAME
    check_is_ours(metadata)
    if overwrite:
        set_aside.unlink(missing_ok=True)
        return None
    if metadata.exists():
        set_aside.unlink(missing_ok=True)
    elif set_aside.exists():  # a run was killed while it replaced the dataset
        metadata = set_aside
    elif not staged_tracks(output_dir) and _pair_files(output_dir):
        raise UserError(
            f"{output_dir}: contains pairs without {METADATA_NAME}; add --overwrite or choose another --output_dir"
        )
    else:
        return None
    previous = read_metadata(metadata)
    changed = [
        f"{name} {previous.settings.get(name)} -> {recorded[name]}"
        for name in RECORDED
        if previous.settings.get(name) != recorded[name]
    ]
    if changed:
        raise UserError(
            f"{metadata}: made with different settings ({'; '.join(changed)}); "
            "add --overwrite or choose another --output_dir"
        )
    return previous


def _is_complete(output_dir: Path, metadata: Metadata, settings: Settings) -> bool:
    size = 44 + 2 * settings.segment_duration * settings.sample_rate
    return (output_dir / METADATA_NAME).exists() and all(
        size_and_date(output_dir / name)[0] == size for name in metadata.digests
    )


def _pair_files(output_dir: Path) -> list[Path]:
    """The WAVs in a dataset's folder, including partial ones of a killed run."""
    return [p for split in ("train", "val") for p in output_dir.glob(f"{split}/*") if PAIR_FILE.fullmatch(p.name)]


def _build(sources: list[str], recorded: dict[str, str], previous: Metadata | None, settings: Settings) -> None:
    input_dir, output_dir = Path(settings.input_dir), Path(settings.output_dir)
    staging = output_dir / STAGING_NAME
    staging.mkdir(exist_ok=True)
    for folder in staged_tracks(output_dir):
        if folder.suffix == ".part":
            shutil.rmtree(folder, ignore_errors=True)  # a killed run's worker may still be writing
    # Sorting by a hash means that an added file does not change the order of the others.
    sources.sort(key=lambda source: hashlib.sha256(os.fsencode(f"{settings.seed}/{source}")).digest())
    print(f"{len(sources)} audio files in {input_dir}", flush=True)
    segmentation = SegmentationSettings(
        str(input_dir), str(staging), settings.segment_duration, settings.min_level_db, settings.sample_rate
    )
    earlier = PreviousSplits.from_metadata(previous) if previous else PreviousSplits()
    with Workers(min(settings.num_workers or available_cores(), len(sources))) as workers:
        selection = select_pairs(sources, segmentation, settings.max_pairs, settings.val_pairs, earlier, workers)
    report_files(selection, settings.max_pairs)
    if not selection.train:
        if not (staging / PREVIOUS_NAME).exists():
            remove_staged(output_dir)
        raise UserError(
            f"--input_dir {input_dir}: no usable pair of {settings.segment_duration} s segments in {len(sources)} "
            f"audio files, for the reasons above{_shorter_segments(selection, settings)}"
        )
    # Files that changed meanwhile, or whose reader was killed, are not listed, so that the next run tries them again.
    finished = [source for source in sources if not RETRY_REASONS.search(selection.skipped.get(source, ""))]
    recorded["input_files"] = hash_of_files(input_dir, sorted(finished, key=os.fsencode))
    _write(selection, recorded, settings)
    remove_staged(output_dir)
    os.utime(output_dir / METADATA_NAME)  # removing the staged links changed the WAVs' inodes (dataset/split_index.py)
    report_dataset(selection, settings.output_dir, settings.segment_duration, settings.max_pairs, settings.val_pairs)


def _shorter_segments(selection: Selection, settings: Settings) -> str:
    """A remedy if most files are too short for a pair: half the segment duration, or a quarter, and so on."""
    lengths_s = sorted(filter(None, selection.lengths_s.values()))
    fitting = settings.segment_duration
    while lengths_s and lengths_s[len(lengths_s) // 2] < 2 * fitting and fitting > 1:
        fitting //= 2
    return f"; most are shorter than a pair: add --segment_duration {fitting}" * (fitting < settings.segment_duration)


def _write(selection: Selection, recorded: dict[str, str], settings: Settings) -> None:
    """Give the staged segments their final names and write metadata.txt."""
    output_dir = Path(settings.output_dir)
    chosen = selection.train + selection.val
    rows, files = [], {}
    for k, pair in enumerate(chosen):
        split = "train" if k < len(selection.train) else "val"
        start_s = pair.index * settings.segment_duration
        rows.append(PairRow(f"pair_{k:04d}", split, printable(pair.track.source), start_s))
        for offset, name in enumerate(rows[-1].files):
            files[name] = (pair.track, pair.index + offset)
    for split in ("train", "val"):
        (output_dir / split).mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # the dataset no longer matches it
        os.replace(output_dir / METADATA_NAME, output_dir / STAGING_NAME / PREVIOUS_NAME)
    for path in _pair_files(output_dir):
        if f"{path.parent.name}/{path.name}" not in files:
            path.unlink()
    for name, (track, index) in Progress().over(files.items(), len(files), "WAVs written"):
        _link(track.wav(index), output_dir / name)
    left = {source: not_needed(settings.max_pairs, split) for source, split in selection.not_needed.items()}
    skipped = selection.skipped | left
    write_metadata(
        output_dir / METADATA_NAME,
        recorded,
        totals(selection, settings.segment_duration),
        sorted((printable(source), printable(reason)) for source, reason in skipped.items()),
        rows,
        {name: track.segments[index].digest for name, (track, index) in files.items()},
    )
    (output_dir / STAGING_NAME / PREVIOUS_NAME).unlink(missing_ok=True)


def _link(staged: Path, final: Path) -> None:
    """Give a staged file its final name, by a hard link if the file system has them, else by a copy."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(staged, temporary)
    except OSError:
        shutil.copyfile(staged, temporary)
    os.replace(temporary, final)
    temporary.unlink(missing_ok=True)  # renaming a link over another link of the same file keeps both


if __name__ == "__main__":
    run_script(main)
