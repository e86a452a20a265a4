"""Dataset creation: the pairs it writes, what a second run does, and what it never touches."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import ROOT, noise, write_track
from datasets import SCRIPT, contents, flags, metadata_of, sources, write_tracks
from test_segments import whole_resample

from common.errors import UserError
from dataset.pairs import digest_of, read_metadata


def test_pairs_are_the_whole_tracks_samples(tmp_path, rng, run):
    """Compares 16 s segments of 44.1 kHz stereo with the whole track resampled in one piece."""
    audio = noise(rng, int(50.5 * 44100), 2)
    soundfile.write(tmp_path / "song.wav", audio, 44100, subtype="FLOAT")
    result = run(SCRIPT, "--input_dir", tmp_path, "--output_dir", tmp_path / "out", "--num_workers", 1)
    assert "too little music for a validation split" in result.stderr
    expected = np.rint(whole_resample(audio, 44100) * 32768).clip(-32768, 32767).astype(np.int16)
    rows = metadata_of(tmp_path / "out").pairs
    assert len(rows) == 2
    for row in rows:
        for offset, name in enumerate(row.files):
            info = soundfile.info(tmp_path / "out" / name)
            assert (info.samplerate, info.channels, info.subtype, info.frames) == (24000, 1, "PCM_16", 384000)
            start = (row.start_s + 16 * offset) * 24000
            got = soundfile.read(tmp_path / "out" / name, dtype="int16")[0]
            np.testing.assert_array_equal(got, expected[start : start + 384000])


def test_layout_numbering_and_digests(small_dataset):
    metadata = metadata_of(small_dataset)
    rows = metadata.pairs
    assert [row.name for row in rows] == [f"pair_{number:04d}" for number in range(22)]
    assert [row.split for row in rows] == ["train"] * 19 + ["val"] * 3
    assert list(metadata.digests) == [name for row in rows for name in row.files]
    assert sorted(metadata.digests) == sorted(f"{p.parent.name}/{p.name}" for p in small_dataset.glob("*/*.wav"))
    for name, digest in metadata.digests.items():
        assert digest == digest_of(soundfile.read(small_dataset / name, dtype="int16")[0])
    assert not set(sources(small_dataset, "train")) & set(sources(small_dataset, "val"))
    for first, second in itertools.pairwise(rows):
        if (first.source, first.split) == (second.source, second.split):
            assert second.start_s == first.start_s + 1
            assert os.path.samefile(small_dataset / first.files[1], small_dataset / second.files[0])
    assert not (small_dataset / ".staging").exists()


def test_any_number_of_workers_gives_the_same_dataset(tmp_path, small_music, create):
    for workers in (1, 3):
        said = create(small_music, tmp_path / str(workers), "--num_workers", workers).stderr
        assert "of the 10 validation tracks that a verdict needs; add more music to --input_dir" in said
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_dataset_without_an_independent_validation_split_is_announced(tmp_path, create):
    write_tracks(tmp_path / "m", range(1), 12)
    assert "*** ONLY ONE TRACK: 0.wav" in create(tmp_path / "m", tmp_path / "d", "--max_pairs", 8).stderr
    said = create(tmp_path / "m", tmp_path / "e", "--max_pairs", 8, "--val_pairs", 0).stderr
    assert "no validation split (--val_pairs 0" in said and list((tmp_path / "e/val").iterdir()) == []


# ------------------------------------------------------------------ a second run


def test_a_rerun_changes_nothing_and_makes_a_missing_file_again(tmp_path, small_music, create):
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
    assert len(metadata_of(tmp_path / "d").pairs) == 5
    assert len(list((tmp_path / "d").glob("*/*.wav"))) == 10, "pairs of the old dataset are left"


def test_a_replaced_song_is_noticed(tmp_path, create):
    """Even if its length stays the same."""
    write_tracks(tmp_path / "m", range(3))
    create(tmp_path / "m", tmp_path / "d")
    path = tmp_path / "m/1.wav"
    date = path.stat().st_mtime
    write_track(path, 4.2, seed=99)
    os.utime(path, (date + 2, date + 2))
    assert "some audio files have changed since" in create(tmp_path / "m", tmp_path / "d").stdout


def test_a_failed_overwrite_keeps_the_dataset(tmp_path, small_music, create):
    create(small_music, tmp_path / "d")
    before = contents(tmp_path / "d")
    result = create(small_music, tmp_path / "d", "--segment_duration", 60, "--overwrite", status=1)
    assert "no usable pair" in result.stderr
    assert contents(tmp_path / "d") == before and not (tmp_path / "d/.staging").exists()


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line(tmp_path, seed):
    """At any moment after the first worker has started. The music is long enough that the run is not yet done."""
    track = write_track(tmp_path / "m/0.wav", 400, seed=1)
    for number in range(1, 12):
        shutil.copy(track, tmp_path / f"m/{number}.wav")
    command = [sys.executable, ROOT / SCRIPT, *flags(tmp_path / "m", tmp_path / "d", "--num_workers", 2)]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert "audio files" in process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 1.2))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == f"{SCRIPT}: interrupted\n" and process.returncode == 130


# ------------------------------------------------------------------ what it never touches


def test_a_metadata_file_of_an_earlier_version_or_damaged_is_refused(tmp_path, small_dataset):
    text = (small_dataset / "metadata.txt").read_text()
    contents_and_reasons = {
        text[: text.index("segment\tdigest")]: "earlier version",
        text.replace("\ttrain\t", "\t../..\t", 1): ": damaged; ",
    }
    for content, reason in contents_and_reasons.items():
        (tmp_path / "metadata.txt").write_text(content)
        with pytest.raises(UserError, match=reason):
            read_metadata(tmp_path / "metadata.txt")


def test_the_users_own_files_are_left_alone(tmp_path, small_music, create):
    own = [tmp_path / "d/train" / name for name in ("my_pair_0001_input.wav", "pair_0000_input.wav.bak", "notes.txt")]
    own += [tmp_path / "d/.staging" / name for name in ("notes.txt", "mine/a.wav", "mine.part/b.wav")]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    create(small_music, tmp_path / "d")
    create(small_music, tmp_path / "d", "--overwrite", "--seed", 7)
    assert all(path.read_text() == "mine" for path in own)
    assert {p.name for p in (tmp_path / "d/.staging").iterdir()} == {"notes.txt", "mine", "mine.part"}


def test_files_of_others_are_not_replaced(tmp_path, small_music, fails):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/metadata.txt").write_text("my notes")
    for extra in ((), ("--overwrite",)):
        fails(SCRIPT, *flags(small_music, tmp_path / "d", *extra), says="metadata.txt: was not written by this project")
    assert (tmp_path / "d/metadata.txt").read_text() == "my notes"
    (tmp_path / "d/metadata.txt").unlink()
    (tmp_path / "d/val").mkdir()
    (tmp_path / "d/val/pair_0000_input.wav").write_text("older")
    fails(SCRIPT, *flags(small_music, tmp_path / "d"), says="contains pairs without metadata.txt")


def test_input_and_output_must_not_mix(tmp_path, fails):
    write_tracks(tmp_path / "m", range(1))
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path / "m"), says="is also the music folder")
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path), says="contains the music folder")
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "0.wav"]
