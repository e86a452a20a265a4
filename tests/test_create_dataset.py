"""Dataset creation: pairs, split, limits, resuming, bad files."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, noise, one_line_error, run_script, write_track
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from dataset.pairs import Pair, Segment, Track, digest_of, read_metadata, split_pairs, usable_pairs

SCRIPT = "create_dataset_pairs_wav.py"


def create(music: Path, out: Path, *args: object, **kwargs):
    return run_script(SCRIPT, "--input_dir", music, "--output_dir", out, "--segment_duration", 1, *args, **kwargs)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything a user sees in a dataset: file names and bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("[!.]*/*"))} | {
        "metadata.txt": (folder / "metadata.txt").read_bytes()
    }


# ------------------------------------------------------------------ the split


def tracks_with(pair_counts: list[int]) -> list[list[Pair]]:
    tracks = [Track(f"t{i}", [Segment(f"{i}/{k}", True, 0) for k in range(n + 1)]) for i, n in enumerate(pair_counts)]
    owners: dict[str, str] = {}
    return [usable_pairs(track, owners) for track in tracks]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 60), st.floats(0, 0.9))
@settings(max_examples=400, deadline=None)
def test_split_properties(pair_counts, max_pairs, share):
    val_pairs = int(share * max_pairs)
    train, val = split_pairs(tracks_with(pair_counts), max_pairs, val_pairs)
    assert len(train) <= max_pairs - val_pairs and len(val) <= val_pairs
    everything = [(p.track.source, p.index) for p in train + val]
    assert len(everything) == len(set(everything))
    seconds = [{(p.track.source, k) for p in part for k in (p.index, p.index + 1)} for part in (train, val)]
    assert not seconds[0] & seconds[1], "audio in both splits"
    usable = [n for n in pair_counts if n]
    if len(usable) > 1:
        assert not {p.track.source for p in train} & {p.track.source for p in val}, "a track in both splits"
        assert train, "training got nothing"
        if val_pairs and sum(usable) <= min(max_pairs - val_pairs, val_pairs):
            assert val and len(train) + len(val) == sum(usable), "pairs were lost without need"


@pytest.mark.parametrize(
    "pair_counts, expected",
    [([], (0, 0)), ([0], (0, 0)), ([1], (1, 0)), ([2], (2, 0)), ([3], (1, 1)), ([30], (26, 3)), ([1, 1], (1, 1)),
     ([6, 2, 1], (8, 1)), ([3000], (1800, 200)), ([3000, 3000], (1800, 200)), ([674, 674, 674], (1348, 200)),
     ([10] * 300, (1800, 200)), ([1] * 5000, (1800, 200))],
)  # fmt: skip
def test_split_counts(pair_counts, expected):
    train, val = split_pairs(tracks_with(pair_counts), 2000, 200)
    assert (len(train), len(val)) == expected


def test_a_song_that_is_there_twice_is_used_once():
    song = [Segment(c, True, 0) for c in "abcd"]
    owners: dict[str, str] = {}
    pairs = [usable_pairs(track, owners) for track in (Track("x", song), Track("y", song), Track("short", song[:3]))]
    assert [len(p) for p in pairs] == [3, 0, 0]


def test_an_unusable_segment_takes_both_its_pairs_out():
    segments = [Segment(str(k), k != 2, 0) for k in range(6)]
    assert [p.index for p in usable_pairs(Track("x", segments), {})] == [0, 3, 4]


# ------------------------------------------------------------------ the files


def test_pairs_are_the_whole_tracks_samples(tmp_path, rng):
    """16 s at 44.1 kHz stereo, through the script, against torchaudio on the whole track."""
    from test_audio_segments import whole_resample

    audio = noise(rng, int(50.5 * 44100), 2)
    soundfile.write(tmp_path / "song.wav", audio, 44100, subtype="FLOAT")
    run_script(SCRIPT, "--input_dir", tmp_path, "--output_dir", tmp_path / "out")
    expected = np.rint(whole_resample(audio, 44100) * 32768).clip(-32768, 32767).astype(np.int16)
    rows = read_metadata(tmp_path / "out" / "metadata.txt").pairs
    assert len(rows) == 2  # which share a segment, so that both are in one split
    for row in rows:
        for offset, name in enumerate(row.files):
            info = soundfile.info(tmp_path / "out" / name)
            assert (info.samplerate, info.channels, info.subtype, info.frames) == (24000, 1, "PCM_16", 384000)
            start = (row.start_s + 16 * offset) * 24000
            got = soundfile.read(tmp_path / "out" / name, dtype="int16")[0]
            np.testing.assert_array_equal(got, expected[start : start + 384000])


def test_layout_and_numbering(small_dataset):
    metadata = read_metadata(small_dataset / "metadata.txt")
    names = [row.name for row in metadata.pairs]
    assert names == [f"pair_{n:04d}" for n in range(22)]
    assert [row.split for row in metadata.pairs] == ["train"] * 19 + ["val"] * 3
    for split in ("train", "val"):
        on_disk = {p.name for p in (small_dataset / split).iterdir()}
        assert on_disk == {Path(f).name for row in metadata.pairs if row.split == split for f in row.files}
    assert not {r.source for r in metadata.pairs if r.split == "train"} & {
        r.source for r in metadata.pairs if r.split == "val"
    }
    assert not (small_dataset / ".staging").exists()


def test_shared_segments_are_hard_links(small_dataset):
    rows = read_metadata(small_dataset / "metadata.txt").pairs
    chained = [(a, b) for a, b in itertools.pairwise(rows) if a.source == b.source and b.start_s == a.start_s + 1]
    assert chained
    for first, second in chained:
        assert os.path.samefile(small_dataset / first.files[1], small_dataset / second.files[0])


def test_any_number_of_workers_makes_the_same(tmp_path, small_music):
    for workers in (1, 3):
        create(small_music, tmp_path / str(workers), "--num_workers", workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_finished_work_is_recognised(tmp_path, small_music):
    create(small_music, tmp_path / "d")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*.wav")}
    result = create(small_music, tmp_path / "d")
    assert "already complete" in result.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*.wav")}


def test_a_missing_file_is_made_again(tmp_path, small_music):
    create(small_music, tmp_path / "d")
    before = contents(tmp_path / "d")
    (tmp_path / "d/train/pair_0001_output.wav").unlink()
    create(small_music, tmp_path / "d")
    assert contents(tmp_path / "d") == before


def test_other_settings_are_refused_unless_overwritten(tmp_path, small_music):
    create(small_music, tmp_path / "d")
    args = ("--input_dir", small_music, "--output_dir", tmp_path / "d", "--segment_duration", 1, "--max_pairs", 5)
    args += ("--val_pairs", 1)
    one_line_error(SCRIPT, *args, says="max_pairs 2000 -> 5")
    run_script(SCRIPT, *args, "--overwrite")
    assert len(read_metadata(tmp_path / "d/metadata.txt").pairs) == 5
    assert len(list((tmp_path / "d").glob("*/*.wav"))) == 10, "pairs of the old dataset are left"


def test_more_music_than_asked_for_stops_early(tmp_path):
    for number in range(12):
        write_track(tmp_path / "m" / f"{number}.wav", 4.5, seed=number)
    create(tmp_path / "m", tmp_path / "d", "--max_pairs", 10, "--val_pairs", 2)
    rows = read_metadata(tmp_path / "d/metadata.txt").pairs
    assert [r.split for r in rows] == ["train"] * 8 + ["val"] * 2


def test_quiet_and_broken_music_is_named_counted_and_left_out(tmp_path):
    music = tmp_path / "m"
    write_track(music / "good.wav", 4.5, seed=1)
    write_track(music / "also good.flac", 4.5, seed=2)
    audio = noise(np.random.default_rng(3), 6 * 24000)
    audio[24000:72000] *= 1e-4  # its second and third second
    soundfile.write(music / "half quiet.wav", audio, 24000, subtype="FLOAT")
    audio = noise(np.random.default_rng(4), 4 * 24000)
    audio[100] = np.nan
    soundfile.write(music / "nan.wav", audio, 24000, subtype="FLOAT")
    soundfile.write(music / "silent.wav", np.zeros(96000), 24000)
    write_track(music / "short.wav", 1.9, seed=5)
    (music / "text.mp3").write_text("not a song")
    (music / "empty.wav").touch()
    os.mkfifo(music / "pipe.wav")
    (music / "good again.wav").write_bytes((music / "good.wav").read_bytes())
    result = create(music, tmp_path / "d")
    metadata = read_metadata(tmp_path / "d/metadata.txt")
    skipped = dict(metadata.skipped)
    reasons = {"silent.wav": "loud", "short.wav": "shorter", "text.mp3": "not readable", "empty.wav": "empty"}
    reasons |= {"pipe.wav": "not a regular"}
    duplicate = ({"good.wav", "good again.wav"} & set(skipped)).pop()
    assert set(skipped) == {*reasons, duplicate} and "same audio as" in skipped[duplicate]
    for name, reason in reasons.items():
        assert reason in skipped[name] and name in result.stderr
    starts = {(r.source, r.start_s) for r in metadata.pairs}
    assert {s for n, s in starts if n == "half quiet.wav"} == {3, 4}
    assert {s for n, s in starts if n == "nan.wav"} == {1, 2}
    assert metadata.settings["skipped_files"] == "6" and metadata.settings["non_finite_segments"] == "1"
    assert metadata.settings["quiet_segments"] == "6"


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "m").mkdir()
    args = ("--input_dir", tmp_path / "m", "--output_dir", tmp_path / "d", "--segment_duration", 1)
    one_line_error(SCRIPT, *args, says="no audio files")
    write_track(tmp_path / "m" / "short.wav", 1.5, seed=0)
    result = run_script(SCRIPT, *args, status=1)
    assert "no usable pair" in result.stderr and "short.wav" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "d" / "metadata.txt").exists()


def test_metadata_holds_each_wavs_digest(small_dataset):
    metadata = read_metadata(small_dataset / "metadata.txt")
    assert list(metadata.digests) == [name for row in metadata.pairs for name in row.files]
    written = (small_dataset / "metadata.txt").stat().st_mtime_ns
    for name, digest in metadata.digests.items():
        assert digest == digest_of(soundfile.read(small_dataset / name, dtype="int16")[0])
        assert (small_dataset / name).stat().st_mtime_ns <= written


def test_metadata_of_an_earlier_version_or_damaged_is_refused(tmp_path, small_dataset):
    text = (small_dataset / "metadata.txt").read_text()
    path = tmp_path / "metadata.txt"
    earlier = text[: text.index("segment\tdigest")]
    for content, says in ((earlier, "earlier version"), (text.replace("\ttrain\t", "\t../..\t", 1), "is damaged"),
                          ("my notes", "is not this project's")):  # fmt: skip
        path.write_text(content)
        with pytest.raises(UserError, match=says):
            read_metadata(path)


def test_the_users_own_files_are_left_alone(tmp_path, small_music):
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


def test_what_is_not_ours_is_not_replaced(tmp_path, small_music):
    args = ("--input_dir", small_music, "--output_dir", tmp_path, "--segment_duration", 1)
    (tmp_path / "metadata.txt").write_text("my notes")
    for extra in ((), ("--overwrite",)):
        one_line_error(SCRIPT, *args, *extra, says="metadata.txt: is not this project's")
    assert (tmp_path / "metadata.txt").read_text() == "my notes"
    (tmp_path / "metadata.txt").unlink()
    (tmp_path / "val").mkdir()
    (tmp_path / "val/pair_0000_input.wav").write_text("older")
    one_line_error(SCRIPT, *args, says="holds pairs without metadata.txt")


def test_a_failed_overwrite_keeps_the_dataset(tmp_path, small_music):
    create(small_music, tmp_path / "d")
    before = contents(tmp_path / "d")
    args = ("--input_dir", small_music, "--output_dir", tmp_path / "d", "--segment_duration", 60, "--overwrite")
    assert "no usable pair" in run_script(SCRIPT, *args, status=1).stderr
    assert contents(tmp_path / "d") == before and not (tmp_path / "d/.staging").exists()


def test_its_own_output_is_no_music(tmp_path):
    write_track(tmp_path / "song.wav", 4.2, seed=1)
    for _ in range(2):
        result = run_script(SCRIPT, "--segment_duration", 1, "--input_dir", ".", "--output_dir", "d", cwd=tmp_path)
    assert "already complete" in result.stdout


def test_ctrl_c_ends_it_in_one_line(tmp_path, small_music, seed):
    """At any moment after the start of the first worker, which takes its time to begin."""
    command = [sys.executable, ROOT / SCRIPT, "--input_dir", small_music, "--output_dir", tmp_path / "d"]
    command += ["--segment_duration", "1", "--num_workers", "2"]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert "audio files" in process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 1.2))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == f"{SCRIPT}: interrupted\n" and process.returncode == 130


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    from audio.segments import AudioError, find_audio_files, open_audio

    write_track(tmp_path / "m/closed/a.wav", 3, seed=1)
    (tmp_path / "m/closed").chmod(0)
    assert find_audio_files(tmp_path / "m") == ["closed"]
    with pytest.raises(AudioError, match="may not be read"):
        open_audio(tmp_path / "m/closed", 24000)
