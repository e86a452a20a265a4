"""Dataset creation for real: pairs, limits, resuming, what is left out, and what is never touched."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from audio_zoo import DEADLY
from conftest import ROOT, main_of, noise, write_track
from test_segments import whole_resample

import create_dataset_pairs_wav
from audio.segments import write_wav
from common.errors import UserError
from dataset import segmentation
from dataset.pairs import digest_of, read_metadata
from dataset.stems import songs_of_stems

SCRIPT = "create_dataset_pairs_wav.py"


def flags(music: Path, out: Path, *args: object) -> tuple[object, ...]:
    return ("--input_dir", music, "--output_dir", out, "--segment_duration", 1, "--num_workers", 1, *args)


@pytest.fixture
def create(run):
    """Create a dataset of one-second segments, in this process."""
    return lambda music, out, *args, status=0: run(SCRIPT, *flags(music, out, *args), status=status)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything a user sees in a dataset: file names and bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("[!.]*/*"))} | {
        "metadata.txt": (folder / "metadata.txt").read_bytes()
    }


def sources(dataset: Path, split: str) -> list[str]:
    return [row.source for row in read_metadata(dataset / "metadata.txt").pairs if row.split == split]


# ------------------------------------------------------------------ what is made


def test_pairs_are_the_whole_tracks_samples(tmp_path, rng, run):
    """16 s at 44.1 kHz stereo, against the whole track resampled in one piece."""
    audio = noise(rng, int(50.5 * 44100), 2)
    soundfile.write(tmp_path / "song.wav", audio, 44100, subtype="FLOAT")
    result = run(SCRIPT, "--input_dir", tmp_path, "--output_dir", tmp_path / "out", "--num_workers", 1)
    assert "*** ONLY ONE TRACK: song.wav" not in result.stderr  # two pairs, which share a segment: no split at all
    assert "too little music for a validation split" in result.stderr
    expected = np.rint(whole_resample(audio, 44100) * 32768).clip(-32768, 32767).astype(np.int16)
    rows = read_metadata(tmp_path / "out" / "metadata.txt").pairs
    assert len(rows) == 2
    for row in rows:
        for offset, name in enumerate(row.files):
            info = soundfile.info(tmp_path / "out" / name)
            assert (info.samplerate, info.channels, info.subtype, info.frames) == (24000, 1, "PCM_16", 384000)
            start = (row.start_s + 16 * offset) * 24000
            got = soundfile.read(tmp_path / "out" / name, dtype="int16")[0]
            np.testing.assert_array_equal(got, expected[start : start + 384000])


def test_layout_numbering_and_digests(small_dataset):
    metadata = read_metadata(small_dataset / "metadata.txt")
    assert [row.name for row in metadata.pairs] == [f"pair_{k:04d}" for k in range(len(metadata.pairs))]
    assert [row.split for row in metadata.pairs] == sorted(row.split for row in metadata.pairs)
    for split in ("train", "val"):
        files = sorted(p.name for p in (small_dataset / split).iterdir())
        assert files == sorted(f.split("/")[1] for row in metadata.pairs if row.split == split for f in row.files)
    assert not set(sources(small_dataset, "train")) & set(sources(small_dataset, "val"))
    assert not (small_dataset / ".staging").exists()
    assert list(metadata.digests) == [name for row in metadata.pairs for name in row.files]
    written = (small_dataset / "metadata.txt").stat().st_mtime_ns
    for name, digest in metadata.digests.items():
        assert digest == digest_of(soundfile.read(small_dataset / name, dtype="int16")[0])
        assert (small_dataset / name).stat().st_mtime_ns <= written
    chained = [(a, b) for a, b in itertools.pairwise(metadata.pairs) if a.source == b.source and a.split == b.split]
    assert chained and all(second.start_s == first.start_s + 1 for first, second in chained), "no consecutive run"
    for first, second in chained:
        assert os.path.samefile(small_dataset / first.files[1], small_dataset / second.files[0])


def test_any_number_of_workers_makes_the_same(tmp_path, small_music, create):
    for workers in (1, 3):
        create(small_music, tmp_path / str(workers), "--num_workers", workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_no_track_fills_the_dataset_alone(tmp_path, create):
    """Six tracks, one of them long enough for all pairs: each gives its part, and --max_pairs is enough to say."""
    for number, seconds in enumerate([70, 12, 12, 12, 12, 3]):
        write_track(tmp_path / "m" / f"{number}.wav", seconds, seed=number)
    result = create(tmp_path / "m", tmp_path / "d", "--max_pairs", 50)
    assert "only 2 of the 10 validation tracks that a verdict needs; add more music to --input_dir" in result.stderr
    train, val = sources(tmp_path / "d", "train"), sources(tmp_path / "d", "val")
    assert not set(train) & set(val) and len(set(train + val)) == 6 and len(val) == 5
    counts = {name: train.count(name) for name in set(train)}
    assert all(count >= 11 or name == "5.wav" for name, count in counts.items())
    write_track(tmp_path / "one" / "a.wav", 12, seed=9)
    assert "*** ONLY ONE TRACK: a.wav" in create(tmp_path / "one", tmp_path / "e", "--max_pairs", 8).stderr
    said = create(tmp_path / "m", tmp_path / "f", "--max_pairs", 8, "--val_pairs", 0).stderr
    assert "no validation split (--val_pairs 0" in said and list((tmp_path / "f/val").iterdir()) == []


# ------------------------------------------------------------------ once more


def test_a_rerun_changes_nothing_and_a_missing_file_is_made_again(tmp_path, small_music, create):
    create(small_music, tmp_path / "d")
    before, whole = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*.wav")}, contents(tmp_path / "d")
    assert "already complete" in create(small_music, tmp_path / "d").stdout
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*.wav")}
    (tmp_path / "d/train/pair_0001_output.wav").unlink()
    create(small_music, tmp_path / "d")
    assert contents(tmp_path / "d") == whole


def test_other_settings_are_refused_unless_overwritten(tmp_path, small_music, create, fails):
    create(small_music, tmp_path / "d")
    fails(SCRIPT, *flags(small_music, tmp_path / "d", "--max_pairs", 5), says="max_pairs 2000 -> 5")
    create(small_music, tmp_path / "d", "--max_pairs", 5, "--overwrite")
    assert len(read_metadata(tmp_path / "d/metadata.txt").pairs) == 5
    assert len(list((tmp_path / "d").glob("*/*.wav"))) == 10, "pairs of the old dataset are left"


def test_added_music_needs_no_flag_and_moves_no_track(tmp_path, create, fails):
    for number in range(5):
        write_track(tmp_path / "m" / f"{number}.wav", 6.2, seed=number)
    create(tmp_path / "m", tmp_path / "d")
    splits = {source: split for split in ("train", "val") for source in sources(tmp_path / "d", split)}
    digests = set(read_metadata(tmp_path / "d/metadata.txt").digests.values())
    for number in range(5, 9):
        write_track(tmp_path / "m" / f"{number}.wav", 6.2, seed=number)
    result = create(tmp_path / "m", tmp_path / "d")
    assert "added since: 5.wav, 6.wav, 7.wav, 8.wav\n" in result.stdout
    now = {source: split for split in ("train", "val") for source in sources(tmp_path / "d", split)}
    assert splits.items() <= now.items() and len(now) == 9
    assert digests <= set(read_metadata(tmp_path / "d/metadata.txt").digests.values()), "old embeddings are of no use"
    assert "already complete" in create(tmp_path / "m", tmp_path / "d").stdout
    shutil.move(tmp_path / "m", tmp_path / "elsewhere")
    write_track(tmp_path / "m" / "other.wav", 6, seed=99)
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path / "d"), says="a dataset of other music")


@pytest.mark.parametrize("happens", ["renamed", "moved", "re-encoded"])
def test_music_keeps_its_split_whatever_its_name_is_now(tmp_path, create, happens):
    """A model may have been trained on it."""
    for number in range(9):
        write_track(tmp_path / "m" / f"{number}.wav", 4.2, seed=number)
    create(tmp_path / "m", tmp_path / "d")
    before = {digest: name[:3] for name, digest in read_metadata(tmp_path / "d/metadata.txt").digests.items()}
    splits = {row.source[0]: row.split for row in read_metadata(tmp_path / "d/metadata.txt").pairs}
    (tmp_path / "m/An album").mkdir()
    for number in range(9 if happens == "moved" else 8):
        path = tmp_path / "m" / f"{number}.wav"
        if happens == "re-encoded":
            soundfile.write(path.with_suffix(".ogg"), soundfile.read(path)[0], 24000)
            path.unlink()
        else:
            path.rename(path.parent / (("An album/" if happens == "moved" else "song ") + path.name))
    assert "removed since: 0.wav, " in create(tmp_path / "m", tmp_path / "d").stdout
    metadata = read_metadata(tmp_path / "d/metadata.txt")
    if happens == "re-encoded":
        assert splits == {row.source[0]: row.split for row in metadata.pairs}
    else:
        assert before == {digest: name[:3] for name, digest in metadata.digests.items()}


def test_a_song_replaced_by_one_of_the_same_length_is_noticed(tmp_path, small_music, create):
    shutil.copytree(small_music, tmp_path / "m")
    create(tmp_path / "m", tmp_path / "d")
    path = next((tmp_path / "m").glob("*.wav"))
    audio, rate = soundfile.read(path)
    date = path.stat().st_mtime
    soundfile.write(path, audio[::-1], rate)
    os.utime(path, (date + 2, date + 2))
    assert "some audio files have changed since" in create(tmp_path / "m", tmp_path / "d").stdout


def test_tracks_with_a_part_in_common_are_all_for_training(tmp_path, create, rng):
    """A minute of one song stands in another; beside a validation track of an earlier dataset it is left out."""
    for number in range(6):
        write_track(tmp_path / "m" / f"{number}.wav", 100, seed=number)
    songs = [soundfile.read(tmp_path / "m" / f"{number}.wav")[0] for number in range(6)]
    other = noise(rng, 100 * 24000)[:, 0]
    soundfile.write(tmp_path / "m/6.wav", np.concatenate([other, 0.7 * songs[2][500_000:1_940_000]]), 24000)
    for seed in range(4):
        result = create(tmp_path / "m", tmp_path / f"d{seed}", "--seed", seed)
        assert "2 tracks share audio with another; all of them go into training" in result.stdout
        assert not {"2.wav", "6.wav"} & set(sources(tmp_path / f"d{seed}", "val"))
    used = sources(tmp_path / "d0", "val")[0]
    part = songs[int(used[0])][500_000:1_940_000]
    soundfile.write(tmp_path / "m/7.wav", np.concatenate([0.7 * part, noise(rng, 100 * 24000)[:, 0]]), 24000)
    assert f"skipped 7.wav: shares audio with {used}" in create(tmp_path / "m", tmp_path / "d0", "--seed", 0).stderr
    for path in (tmp_path / "m").glob("[!26]*"):
        path.unlink()
    anew = create(tmp_path / "m", tmp_path / "d5", "--seed", 0)
    assert "*** VALIDATION IS NOT INDEPENDENT" in anew.stderr and sources(tmp_path / "d5", "val")


def test_what_was_trained_on_never_becomes_validation(tmp_path, create):
    """Whatever goes: its validation tracks, its name to another, its place among --max_pairs."""
    music, dataset = tmp_path / "m", tmp_path / "d"
    for number in range(8):
        write_track(music / f"{number}.wav", 4.2, seed=number)
    create(music, dataset, "--max_pairs", 24, "--val_pairs", 6)
    trained, val = ({d for n, d in read_metadata(dataset / "metadata.txt").digests.items() if n.startswith(split)}
                    for split in ("train", "val"))  # fmt: skip

    def val_after_a_run() -> set[str]:
        result = create(music, dataset, "--max_pairs", 24, "--val_pairs", 6)
        digests = read_metadata(dataset / "metadata.txt").digests
        assert not trained & {digest for name, digest in digests.items() if name.startswith("val")}, result.stdout
        return {digest for name, digest in digests.items() if name.startswith("val")}

    one, other = (music / sources(dataset, split)[0] for split in ("train", "val"))
    one.rename(music / "x.wav"), other.rename(one), (music / "x.wav").rename(other)
    assert val_after_a_run() == val
    for number in range(30, 50):  # now there are too many tracks for all to be used
        write_track(music / f"{number}.wav", 4.2, seed=number)
    val_after_a_run()
    (music / "moved").mkdir()
    for path in music.glob("*.wav"):
        path.rename(music / "moved" / path.name)
    val_after_a_run()
    for name in set(sources(dataset, "val")):
        (music / name).unlink()
    for path in (music / "moved").glob("[3-9]?.wav"):
        path.unlink()
    assert val_after_a_run() == set()
    write_track(music / "new.wav", 4.2, seed=99)
    assert val_after_a_run() and set(sources(dataset, "val")) == {"new.wav"}


def test_a_change_that_is_undone_after_a_kill_leaves_the_dataset_as_it_was(tmp_path, create, monkeypatch):
    for number in range(5):
        write_track(tmp_path / "m" / f"{number}.wav", 4.2, seed=number)
    create(tmp_path / "m", tmp_path / "d")
    before = contents(tmp_path / "d")
    added, killed = write_track(tmp_path / "m" / "5.wav", 4.2, seed=5), mock.Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setattr(create_dataset_pairs_wav, "write_metadata", killed)
        create(tmp_path / "m", tmp_path / "d", status=130)
    added.unlink()
    said = create(tmp_path / "m", tmp_path / "d", "--max_pairs", 9, status=1).stderr
    assert "made with other settings" in said
    create(tmp_path / "m", tmp_path / "d")
    assert contents(tmp_path / "d") == before


def test_a_broken_copy_does_not_stand_for_the_whole_one(tmp_path, create):
    """Its header promises as much; of two whole copies the larger file is used."""
    for number in range(3):
        write_track(tmp_path / "m" / f"{number}.wav", 30, seed=number)
    whole = (tmp_path / "m/1.wav").read_bytes()
    (tmp_path / "m/a broken copy.wav").write_bytes(whole[: len(whole) * 2 // 3])
    soundfile.write(tmp_path / "m/a small copy.flac", soundfile.read(tmp_path / "m/1.wav")[0], 24000)
    create(tmp_path / "m", tmp_path / "d")
    copies = ("a broken copy.wav", "a small copy.flac")
    assert dict(read_metadata(tmp_path / "d/metadata.txt").skipped) == dict.fromkeys(copies, "same recording as 1.wav")


def test_a_run_that_is_killed_while_it_replaces_a_dataset_knows_the_splits(tmp_path, create, monkeypatch):
    for number in range(5):
        write_track(tmp_path / "m" / f"{number}.wav", 4.2, seed=number)
    create(tmp_path / "m", tmp_path / "d")
    splits = {source: split for split in ("train", "val") for source in sources(tmp_path / "d", split)}
    write_track(tmp_path / "m" / "5.wav", 4.2, seed=5)
    shutil.copytree(tmp_path / "d", tmp_path / "undisturbed")
    create(tmp_path / "m", tmp_path / "undisturbed")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(create_dataset_pairs_wav, "write_metadata", killed)
        create(tmp_path / "m", tmp_path / "d", status=130)
    assert not (tmp_path / "d/metadata.txt").exists()
    create(tmp_path / "m", tmp_path / "d")
    assert contents(tmp_path / "d") == contents(tmp_path / "undisturbed")
    now = {source: split for split in ("train", "val") for source in sources(tmp_path / "d", split)}
    assert splits.items() <= now.items()


# ------------------------------------------------------------------ what is left out


def test_quiet_and_broken_music_is_named_counted_and_left_out(tmp_path, create):
    music = tmp_path / "m"
    write_track(music / "good.wav", 4.5, seed=1)
    write_track(music / "also good.flac", 4.5, seed=2)
    audio = noise(np.random.default_rng(3), 6 * 24000)
    audio[24000:72000] *= 1e-4  # its second and third second
    soundfile.write(music / "half quiet.wav", audio, 24000, subtype="FLOAT")
    audio = noise(np.random.default_rng(4), 4 * 24000)
    audio[100] = np.nan
    soundfile.write(music / "nan.wav", audio, 24000, subtype="FLOAT")
    audio = noise(np.random.default_rng(6), 4 * 24000)
    soundfile.write(music / "opposite.wav", np.concatenate([audio, -audio], axis=1), 24000, subtype="FLOAT")
    soundfile.write(music / "silent.wav", np.zeros(96000), 24000)
    write_track(music / "short.wav", 1.9, seed=5)
    (music / "text.mp3").write_text("not a song")
    (music / "empty.wav").touch()
    (music / "cover.jpg").write_bytes(b"\xff\xd8")
    (music / "list.m3u").write_text("good.wav")
    os.mkfifo(music / "pipe.wav")
    (music / "good again.wav").write_bytes((music / "good.wav").read_bytes())
    result = create(music, tmp_path / "d")
    metadata = read_metadata(tmp_path / "d/metadata.txt")
    skipped = dict(metadata.skipped)
    reasons = {"silent.wav": "no two consecutive segments are loud enough", "text.mp3": "not readable as audio",
               "short.wav": "shorter than the 2 s of a pair (1.9 s)", "empty.wav": "empty file",
               "pipe.wav": "not a regular file", "opposite.wav": "its channels cancel"}  # fmt: skip
    duplicate = ({"good.wav", "good again.wav"} & set(skipped)).pop()
    assert set(skipped) == {*reasons, duplicate} and "same audio as" in skipped[duplicate]
    for name, reason in reasons.items():
        assert reason in skipped[name] and f"skipped {name}: {skipped[name]}" in result.stderr
    starts = {(r.source, r.start_s) for r in metadata.pairs}
    assert {s for n, s in starts if n == "half quiet.wav"} == {3, 4}
    assert {s for n, s in starts if n == "nan.wav"} == {1, 2}
    assert "note nan.wav: segments with NaN or samples beyond 100 times full scale, left out: 1" in result.stderr
    assert metadata.settings["skipped_files"] == "7" and metadata.settings["non_finite_segments"] == "1"
    assert "cover.jpg" not in result.stderr and "list.m3u" not in result.stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_that_ends_the_process_that_reads_it_is_named_and_skipped(tmp_path, create, workers):
    for number in range(5):
        write_track(tmp_path / "m" / f"{number}.wav", 4.2, seed=number)
    create(tmp_path / "m", tmp_path / "without")
    (tmp_path / "m/deadly.adx").write_bytes(DEADLY)
    result = create(tmp_path / "m", tmp_path / "d", "--num_workers", workers)
    metadata = read_metadata(tmp_path / "d/metadata.txt")
    assert [name for name, _ in metadata.skipped] == ["deadly.adx"]
    assert sum("deadly.adx" in line for line in result.stderr.splitlines()) == 1
    assert metadata.digests == read_metadata(tmp_path / "without/metadata.txt").digests
    assert not (tmp_path / "d/.staging").exists()


@pytest.mark.parametrize("happens", ["grows", "shrinks", "vanishes"])
def test_a_file_that_changes_while_it_is_read_is_skipped(tmp_path, monkeypatch, happens):
    path, real = write_track(tmp_path / "song.wav", 30, seed=1), segmentation._write

    def meanwhile(*args: object) -> None:
        real(*args)
        if happens == "vanishes":
            path.unlink(missing_ok=True)
        elif path.stat().st_size > 1_200_000:
            os.truncate(path, path.stat().st_size + (100 if happens == "grows" else -400_000))

    monkeypatch.setattr(segmentation, "_write", meanwhile)
    cut = segmentation.SegmentationSettings(str(tmp_path), str(tmp_path / ".staging"), 1, -60)
    track = segmentation.stage_track(cut, ("song.wav", 100))
    assert not track.segments and "changed while it was read" in track.problem
    monkeypatch.setattr(segmentation, "_write", real)
    write_track(path, 3, seed=1)
    assert len(segmentation.stage_track(cut, ("song.wav", 100)).segments) == 3, "the completed file is read again"


def test_a_file_that_changed_while_it_was_read_is_taken_by_the_next_run(tmp_path, create):
    """A new hard link or other permissions change neither its size nor its date."""
    for number in range(3):
        write_track(tmp_path / "m" / f"{number}.wav", 60 if number == 1 else 4.2, seed=number)
    is_over = threading.Event()

    def keep_changing() -> None:
        for mode in itertools.cycle((0o600, 0o644)):
            (tmp_path / "m/1.wav").chmod(mode)
            if is_over.wait(0.002):
                return

    thread = threading.Thread(target=keep_changing)
    thread.start()
    said = create(tmp_path / "m", tmp_path / "d").stderr
    is_over.set()
    thread.join()
    assert "skipped 1.wav: changed while it was read; run this again when it is complete\n" in said
    create(tmp_path / "m", tmp_path / "d")
    assert "1.wav" in sources(tmp_path / "d", "train") + sources(tmp_path / "d", "val")
    assert "already complete" in create(tmp_path / "m", tmp_path / "d").stdout


def test_files_with_the_same_problem_share_a_line(tmp_path, create):
    for number in range(4):
        write_track(tmp_path / "m" / f"{number}.wav", 4.2, seed=number)
    for number in range(10, 17):
        write_track(tmp_path / "m" / f"{number}.wav", 1.1 + number / 100, seed=number)
        whole = write_track(tmp_path / "m" / f"cut {number}.wav", 6, seed=100 + number)
        whole.write_bytes(whole.read_bytes()[: -1000 * number])
    said = create(tmp_path / "m", tmp_path / "d").stderr.splitlines()
    line = "skipped 7 files like 10.wav: shorter than the 2 s of a pair (1.2 s); also 11.wav, 12.wav, ..."
    assert f"{line} (metadata.txt lists all)" in said
    assert len([line for line in said if line.startswith("note 7 files like cut 10.wav: cut off at ")]) == 1
    metadata = read_metadata(tmp_path / "d/metadata.txt")
    assert len(metadata.skipped) == 7 and sum(key.startswith("note cut 1") for key in metadata.settings) == 7


def test_clips_too_short_for_a_pair_name_the_remedy(tmp_path, run):
    """As in GTZAN and FMA, whose clips are 30 s long."""
    for number in range(5):
        write_track(tmp_path / "m" / f"{number}.wav", 30 if number else 3, seed=number)
    args = ("--input_dir", tmp_path / "m", "--output_dir", tmp_path / "d", "--num_workers", 1)
    said = run(SCRIPT, *args, status=1).stderr
    assert said.splitlines()[-1].endswith("; most are shorter than a pair: add --segment_duration 8")
    run(SCRIPT, *args, "--segment_duration", 8)
    assert len(read_metadata(tmp_path / "d/metadata.txt").pairs) == 8


STEMS = ("mixture", "drums", "bass", "vocals", "other")


@pytest.mark.parametrize(
    "layout", ["{song}/{stem}.wav", "{song} - {stem}.wav", "{song}_STEMS/{song}_STEM_{number:02}.wav"]
)
def test_the_stems_of_a_song_are_in_one_split(tmp_path, create, seed, layout):
    for song in range(12):
        for number, stem in enumerate(STEMS):
            name = layout.format(song=f"Song {song}", stem=stem, number=number)
            write_track(tmp_path / "m" / name, 4.2, seed=10 * song + number)
    write_track(tmp_path / "m" / "Song 3.wav", 4.2, seed=1000)  # the mix
    result = create(tmp_path / "m", tmp_path / "d", "--seed", seed)
    assert "61 files are named as stems of 12 songs; all stems of a song go into one split" in result.stdout
    train, val = ({name.replace("_", "/")[:7] for name in sources(tmp_path / "d", split)} for split in ("train", "val"))
    assert len(train | val) >= 12 and len(val) >= 4
    songs = [{name[:7].rstrip(" ./-_") for name in names} for names in (train, val)]
    assert not songs[0] & songs[1], f"seed {seed}"
    assert "NOT INDEPENDENT" not in result.stderr


def test_names_of_stems():
    assert songs_of_stems(["a/drums.wav", "a/Bass 2.flac", "b/bass.wav", "Mix 1.mp3", "Mix 2.mp3", "a.ogg"]) == {
        "a/drums.wav": "a", "a/Bass 2.flac": "a", "a.ogg": "a"
    }  # fmt: skip
    assert songs_of_stems(["x/Song (no_vocals).wav", "y/song (Vocals).wav", "y/Sing (Vocals).wav"]).keys() == {
        "x/Song (no_vocals).wav", "y/song (Vocals).wav"
    }  # fmt: skip
    assert songs_of_stems(["contrabass.wav", "drumsolo.wav", "remix.wav", "The Bass.mp3", "Bass.mp3"]) == {}


@pytest.mark.parametrize("copy", ["later.wav", "small.mp3"])
def test_the_same_recording_is_used_once(tmp_path, create, rng, copy):
    """A copy that was trimmed by 3 s and made an MP3 has no identical sample, but is recognized."""
    for number in range(3):
        write_track(tmp_path / "m" / f"{number}.wav", 30, seed=number)
    audio = soundfile.read(tmp_path / "m/1.wav")[0]
    soundfile.write(tmp_path / "m" / copy, 0.7 * audio[int(3.1 * 24000) :], 24000)
    result = create(tmp_path / "m", tmp_path / "d")
    assert dict(read_metadata(tmp_path / "d/metadata.txt").skipped) == {copy: "same recording as 1.wav"}
    assert f"skipped {copy}: same recording as 1.wav" in result.stderr


def test_its_own_output_is_no_music(tmp_path, create):
    """The whole folder of a pipeline that has run gives the same pairs as its music alone."""
    for number in range(4):
        write_track(tmp_path / "alone" / f"{number}.wav", 4.2, seed=number)
    shutil.copytree(tmp_path / "alone", tmp_path / "work")
    (tmp_path / "work/results_simple").mkdir()
    (tmp_path / "work/results_simple/results.json").write_text(json.dumps({"format": "jingle_d results 1"}))
    write_track(tmp_path / "work/results_simple/example_01_joined.wav", 9, seed=11)
    (tmp_path / "work/continuations").mkdir()
    pcm16 = (noise(np.random.default_rng(12), 96000)[:, 0] * 32767).astype(np.int16)
    write_wav(tmp_path / "work/continuations/song_joined.wav", pcm16, 24000, "Jingle_D continuation")
    create(tmp_path / "alone", tmp_path / "work/another dataset", "--max_pairs", 8)
    create(tmp_path / "alone", tmp_path / "d")
    for _ in range(2):
        result = create(tmp_path / "work", tmp_path / "work/dataset_pairs_wav")
        assert "skipped this project's own output: folders: 2, other files: 1" in result.stderr
    assert "already complete" in result.stdout
    assert contents(tmp_path / "work/dataset_pairs_wav") == contents(tmp_path / "d")


def test_input_and_output_must_not_mix(tmp_path, fails):
    write_track(tmp_path / "m" / "a.wav", 4, seed=1)
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path / "m"), says="is also the music folder")
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path), says="contains the music folder")
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "a.wav"]


def test_nothing_usable_is_an_error(tmp_path, create, fails):
    (tmp_path / "m").mkdir()
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path / "d"), says="no audio files")
    write_track(tmp_path / "m" / "short.wav", 1.5, seed=0)
    result = create(tmp_path / "m", tmp_path / "d", status=1)
    assert "no usable pair" in result.stderr and "short.wav: shorter than the 2 s of a pair (1.5 s)" in result.stderr
    assert not (tmp_path / "d" / "metadata.txt").exists()


# ------------------------------------------------------------------ what is not touched


def test_metadata_of_an_earlier_version_or_damaged_is_refused(tmp_path, small_dataset):
    text = (small_dataset / "metadata.txt").read_text()
    path = tmp_path / "metadata.txt"
    earlier = text[: text.index("segment\tdigest")]
    for content, says in ((earlier, "earlier version"), (text.replace("\ttrain\t", "\t../..\t", 1), ": damaged; "),
                          ("my notes", "was not written by this project")):  # fmt: skip
        path.write_text(content)
        with pytest.raises(UserError, match=says):
            read_metadata(path)


def test_the_users_own_files_are_left_alone(tmp_path, small_music, create):
    own = [tmp_path / "d/train" / name for name in ("my_pair_0001_input.wav", "pair_0000_input.wav.bak", "notes.txt")]
    own += [tmp_path / "d/.staging" / name for name in ("notes.txt", "mine/a.wav", "mine.part/b.wav")]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    create(small_music, tmp_path / "d")
    create(small_music, tmp_path / "d", "--overwrite", "--seed", 7)
    assert "already complete" in create(small_music, tmp_path / "d", "--seed", 7).stdout
    assert all(path.read_text() == "mine" for path in own)
    assert {p.name for p in (tmp_path / "d/.staging").iterdir()} == {"notes.txt", "mine", "mine.part"}


def test_what_is_not_ours_is_not_replaced(tmp_path, small_music, fails):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/metadata.txt").write_text("my notes")
    for extra in ((), ("--overwrite",)):
        fails(SCRIPT, *flags(small_music, tmp_path / "d", *extra), says="metadata.txt: was not written by this project")
    assert (tmp_path / "d/metadata.txt").read_text() == "my notes"
    (tmp_path / "d/metadata.txt").unlink()
    (tmp_path / "d/val").mkdir()
    (tmp_path / "d/val/pair_0000_input.wav").write_text("older")
    fails(SCRIPT, *flags(small_music, tmp_path / "d"), says="contains pairs without metadata.txt")


def test_a_failed_overwrite_keeps_the_dataset(tmp_path, small_music, create):
    create(small_music, tmp_path / "d")
    before = contents(tmp_path / "d")
    result = create(small_music, tmp_path / "d", "--segment_duration", 60, "--overwrite", status=1)
    assert "no usable pair" in result.stderr
    assert contents(tmp_path / "d") == before and not (tmp_path / "d/.staging").exists()


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line(tmp_path, small_music, seed):
    """At any moment after the start of the first worker, which takes its time to begin."""
    command = [sys.executable, ROOT / SCRIPT, *flags(small_music, tmp_path / "d", "--num_workers", 2)]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert "audio files" in process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 1.2))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == f"{SCRIPT}: interrupted\n" and process.returncode == 130


def test_it_runs_from_anywhere(tmp_path, small_music, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_of(SCRIPT, *flags(small_music, "d")) == 0 and (tmp_path / "d/metadata.txt").exists()
