"""What dataset creation leaves out: broken, quiet, short, repeated or changing files, and its own output."""

import itertools
import json
import os
import shutil
import threading

import numpy as np
import soundfile
from audio_zoo import DEADLY
from conftest import noise, write_track
from datasets import SCRIPT, contents, flags, metadata_of, sources, write_tracks

from audio.segments import write_wav


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
    soundfile.write(music / "silent.wav", np.zeros((96000, 2)), 24000)
    write_track(music / "short.wav", 1.9, seed=5)
    (music / "text.mp3").write_text("not a song")
    (music / "empty.wav").touch()
    (music / "cover.jpg").write_bytes(b"\xff\xd8")
    os.mkfifo(music / "pipe.wav")
    (music / "good again.wav").write_bytes((music / "good.wav").read_bytes())
    result = create(music, tmp_path / "d")
    metadata = metadata_of(tmp_path / "d")
    skipped = dict(metadata.skipped)
    reasons = {
        "silent.wav": "no two consecutive segments are loud enough",
        "text.mp3": "not readable as audio",
        "short.wav": "shorter than the 2 s of a pair (1.9 s)",
        "empty.wav": "empty file",
        "pipe.wav": "not a regular file",
        "opposite.wav": "its channels cancel",
    }
    duplicate = ({"good.wav", "good again.wav"} & set(skipped)).pop()
    assert set(skipped) == {*reasons, duplicate} and "same audio as" in skipped[duplicate]
    for name, reason in reasons.items():
        assert reason in skipped[name] and f"skipped {name}: {skipped[name]}" in result.stderr
    starts = {(r.source, r.start_s) for r in metadata.pairs}
    assert {s for n, s in starts if n == "half quiet.wav"} == {3, 4}
    assert {s for n, s in starts if n == "nan.wav"} == {1, 2}
    assert "note nan.wav: left out 1 of 4 segments: NaN or samples beyond 100 times full scale" in result.stderr
    assert metadata.settings["skipped_files"] == "7" and metadata.settings["non_finite_segments"] == "1"
    assert "cover.jpg" not in result.stderr


def test_a_file_that_crashes_its_reader_is_named_and_skipped(tmp_path, create):
    write_tracks(tmp_path / "m", range(5))
    create(tmp_path / "m", tmp_path / "without")
    (tmp_path / "m/deadly.adx").write_bytes(DEADLY)
    result = create(tmp_path / "m", tmp_path / "d", "--num_workers", 2)
    metadata = metadata_of(tmp_path / "d")
    ((name, reason),) = metadata.skipped
    assert name == "deadly.adx" and reason.startswith("crashed the process that read it, twice (SIG")
    assert sum("deadly.adx" in line for line in result.stderr.splitlines()) == 1
    assert metadata.digests == metadata_of(tmp_path / "without").digests


def test_a_file_that_changed_while_it_was_read_is_used_by_the_next_run(tmp_path, create):
    """Here its permissions change, which changes neither its size nor its date."""
    write_tracks(tmp_path / "m", range(2))
    path, is_over = write_track(tmp_path / "m/2.wav", 60, seed=2), threading.Event()

    def keep_changing() -> None:
        for mode in itertools.cycle((0o600, 0o644)):
            path.chmod(mode)
            if is_over.wait(0.002):
                return

    thread = threading.Thread(target=keep_changing)
    thread.start()
    said = create(tmp_path / "m", tmp_path / "d").stderr
    is_over.set()
    thread.join()
    assert "skipped 2.wav: changed while it was read; run this again when it is complete\n" in said
    create(tmp_path / "m", tmp_path / "d")
    assert "2.wav" in sources(tmp_path / "d", "train") + sources(tmp_path / "d", "val")


def test_clips_too_short_for_a_pair_name_the_remedy(tmp_path, run):
    """As in GTZAN and FMA, whose clips are 30 s long."""
    write_tracks(tmp_path / "m", range(3), 30)
    args = ("--input_dir", tmp_path / "m", "--output_dir", tmp_path / "d", "--num_workers", 1)
    said = run(SCRIPT, *args, status=1).stderr
    assert said.splitlines()[-1].endswith("; most are shorter than a pair: add --segment_duration 8")
    run(SCRIPT, *args, "--segment_duration", 8)
    assert len(metadata_of(tmp_path / "d").pairs) == 6


def test_nothing_usable_is_an_error(tmp_path, create, fails):
    (tmp_path / "m").mkdir()
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path / "d"), says="no audio files")
    write_track(tmp_path / "m" / "short.wav", 1.5, seed=0)
    result = create(tmp_path / "m", tmp_path / "d", status=1)
    assert "no usable pair" in result.stderr and "short.wav: shorter than the 2 s of a pair (1.5 s)" in result.stderr
    assert not (tmp_path / "d" / "metadata.txt").exists()


# ------------------------------------------------------------------ the same recording


def test_a_recording_is_used_once(tmp_path, create):
    """Trimmed and re-encoded copies share no sample with it. A larger copy is cut off, but states its full length."""
    write_tracks(tmp_path / "m", range(3), 30)
    audio = soundfile.read(tmp_path / "m/1.wav")[0]
    broken = tmp_path / "m/a broken copy.flac"
    soundfile.write(broken, 0.9 * audio, 24000, subtype="PCM_24")
    os.truncate(broken, int(0.8 * broken.stat().st_size))
    soundfile.write(tmp_path / "m/a small copy.flac", audio, 24000)
    for name in ("later.wav", "small.mp3"):
        soundfile.write(tmp_path / "m" / name, 0.7 * audio[int(3.1 * 24000) :], 24000)
    result = create(tmp_path / "m", tmp_path / "d")
    copies = ("a broken copy.flac", "a small copy.flac", "later.wav", "small.mp3")
    assert dict(metadata_of(tmp_path / "d").skipped) == dict.fromkeys(copies, "same recording as 1.wav")
    assert all(f"skipped {name}: same recording as 1.wav" in result.stderr for name in copies)


def test_its_own_output_is_not_music(tmp_path, create):
    """A folder in which the pipeline has run gives the same pairs as its music alone."""
    write_tracks(tmp_path / "alone", range(4))
    work = tmp_path / "work"
    shutil.copytree(tmp_path / "alone", work)
    write_track(work / "results_simple/example_01_joined.wav", 9, seed=11)
    (work / "results_simple/results.json").write_text(json.dumps({"format": "jingle_d results 1"}))
    (work / "continuations").mkdir()
    pcm16 = (noise(np.random.default_rng(12), 96000)[:, 0] * 32767).astype(np.int16)
    write_wav(work / "continuations/song_joined.wav", pcm16, 24000, "Jingle_D continuation")
    create(tmp_path / "alone", work / "another dataset", "--max_pairs", 8)
    create(tmp_path / "alone", tmp_path / "d")
    for _ in range(2):
        result = create(work, work / "dataset_pairs_wav")
        assert "skipped this project's own output: folders: 2, other files: 1" in result.stderr
    assert contents(work / "dataset_pairs_wav") == contents(tmp_path / "d")
