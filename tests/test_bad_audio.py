"""Every kind of broken, odd or unusual audio is used or skipped as this table states, and never in silence."""

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import bad_audio
import numpy as np
import pytest
import soundfile
from bad_audio import LONG_NAME, NOT_UTF8, ZOO, mp3, song, write
from conftest import run_script

from audio.segments import AudioError, find_audio_files, read_last_segment
from common.errors import printable
from dataset.cutting import stage_track
from dataset.pairs import Track, read_metadata

MP3_DELAY = 1105  # samples: encoder and decoder together, where no header tells how much to trim


@dataclass(frozen=True)
class Used:
    segments: str = "01"  # which are staged
    error: float = 1e-4  # RMS that the samples may differ by from the song's
    delay: int | None = 0  # samples; None: what is there begins anywhere in the song
    says: str = ""  # on the log, if something is wrong with the rest


@dataclass(frozen=True)
class Skipped:
    says: str


UNREADABLE, SHORT, QUIET = (
    Skipped("not readable as audio"),
    Skipped("shorter than two segments"),
    Skipped("no two neigh"),
)
CUT = "cut off"
TABLE = {
    # fine, but unusual
    **dict.fromkeys(("pcm_16.wav", "pcm_24.wav", "pcm_32.wav", "float.wav", "double.wav", "extensible.wav"), Used()),
    **dict.fromkeys(("pcm_u8.wav", "ulaw.wav", "alaw.wav", "ima_adpcm.wav", "ms_adpcm.wav"), Used(error=0.006)),
    **dict.fromkeys(("plain.w64", "plain.rf64", "plain.aiff", "plain.caf", "plain.au", "plain.voc"), Used()),
    **dict.fromkeys(("plain.flac", "24 bits.flac", "wav inside.mp3", "streamed.flac", "streamed.wav"), Used()),
    **dict.fromkeys(("plain.ogg", "plain.mp3", "lame.mp3"), Used(error=0.01)),
    "plain.opus": Used(error=0.02),
    "layer 2.mp2": Used(error=0.02, delay=481),
    "aac.m4a": UNREADABLE,
    **dict.fromkeys((f"{rate}.wav" for rate in (4000, 8000, 11025, 22050, 37800, 44100, 48000)), Used()),
    **dict.fromkeys(("96000.wav", "192000.wav", "384000.wav", "2 channels.wav", "6 channels.wav"), Used()),
    "32 channels.wav": Used(),
    **dict.fromkeys(("spaces in it.wav", "'quotes\" & $(touch x); `id`.wav", "new\nline\ttab.wav"), Used()),
    **dict.fromkeys(("-leading dash.wav", NOT_UTF8, LONG_NAME), Used()),
    # these at segments of 16 s
    **dict.fromkeys(
        ("16 s -1 samples.wav", "16 s +0 samples.wav", "16 s +1 samples.wav", "32 s -1 samples.wav"), SHORT
    ),
    **dict.fromkeys(("32 s +0 samples.wav", "32 s +1 samples.wav"), Used()),
    # levels and numbers
    **dict.fromkeys(("nan.wav", "infinity.wav", "minus infinity.wav", "beyond float32.wav"), Used("0134")),
    "nan throughout.wav": QUIET,
    "over full scale.wav": Used("01234", error=0.6),  # clipped, and counted
    "offset.wav": Used("01234", error=0.301),
    **dict.fromkeys(("dc.wav", "silence.wav", "opposite phase.wav"), QUIET),
    "silent start.wav": Used("234"),
    "silent middle.wav": Used("0134"),
    **dict.fromkeys(("one sample.wav", "no samples.wav"), SHORT),
    # no audio, or not all of it
    "empty.wav": Skipped("empty file"),
    **dict.fromkeys(("text.wav", "zeros.mp3", "random.flac", "cut in data.caf"), UNREADABLE),
    **dict.fromkeys(
        (f"cut in header.{end}" for end in ["wav", "flac", "mp3", "ogg", "opus", "aiff", "caf"]), UNREADABLE
    ),
    **dict.fromkeys(("cut in data.wav", "cut in data.aiff"), Used("0123", says=CUT)),
    "cut in data.flac": Used("0123", says="lost sync"),
    "cut in data.mp3": Used("0123", error=0.01, says="its last frame is cut off"),
    "cut in data.ogg": Used("012", error=0.01, says="missing at its start or end"),
    "cut in data.opus": Used("012", error=0.02, says=CUT),
    "promises more.wav": Used("012345", says=CUT),
    "promises 4 GB.wav": Used("012345"),  # what programs write that cannot know
    "flipped.flac": Used("012", says="flac decoder"),
    "first page damaged.ogg": Used("0123456", error=0.01, delay=None, says="missing at its start or end"),
    **dict.fromkeys(("flipped.ogg", "hole.ogg", "flipped.opus", "zeros inside.opus"), Skipped("damaged: only")),
    "junk at its end.ogg": Used(error=0.01, says=CUT),  # or so it seems: nothing but the last page could tell
    "chained.ogg": Used(error=0.01, says="second stream is left out"),
    # MP3
    **dict.fromkeys(("tags.mp3", "junk at its end.mp3"), Used("012345", error=0.01)),
    "variable.mp3": Used("345", error=0.01),
    "variable without header.mp3": Used("345", error=0.01, delay=MP3_DELAY),
    "variable without header, tagged.mp3": Used("345", error=0.01, delay=MP3_DELAY),
    "constant without header.mp3": Used("012345", error=0.01, delay=MP3_DELAY),
    "garbage between frames.mp3": Used("012", error=0.01, says="3000 bytes in its middle, from byte 6"),
    "tag between frames.mp3": Used("012", error=0.01, delay=MP3_DELAY, says="128 bytes in its middle, from byte 6"),
    "flipped header.mp3": Used("012", error=0.01, says="bytes in its middle, from byte 6"),
    "frames missing.mp3": Skipped("damaged: only 5.28 s of 6.00 s"),
    "one frame.mp3": UNREADABLE,
    "free format.mp3": Skipped("no MP3 frames of a known bit rate"),
    "goes on at 44100.mp3": Used("012345", error=0.01, says="goes on in another format"),
    "two in one.mp3": Used("012345", error=0.01, says="goes on behind the end that its header gives"),
    # crafted headers
    "crafted 65535 channels.wav": Skipped("Too many channels"),
    "crafted 1024 channels.wav": SHORT,
    **dict.fromkeys((f"crafted {what}.wav" for what in ("no channels", "4 GHz", "0 Hz", "no bits")), UNREADABLE),
    **dict.fromkeys((f"crafted {what}.wav" for what in ("65535 bits", "giant fmt", "giant list")), UNREADABLE),
    **dict.fromkeys((f"crafted giant {what}.wav" for what in ["peak", "cart", "bext", "cue", "sampler"]), UNREADABLE),
    **dict.fromkeys((f"crafted giant {what}" for what in ("info.caf", "tag.mp3", "comment.ogg")), UNREADABLE),
    "crafted 2 GHz.wav": Skipped("2147483647 Hz is not supported"),
    "crafted 100 Hz.wav": Skipped("100 Hz is not supported"),
    "crafted 44101 Hz.wav": Skipped("44101 Hz is not supported"),
    # no plain files; a folder and a loop of links are in the test of the whole folder
    "dangling link.wav": Skipped("No such file"),
    "link to itself.wav": Skipped("symbolic links"),
    "named pipe.wav": Skipped("not a regular file"),
    "unreadable.wav": Used() if os.geteuid() == 0 else Skipped("permission denied"),  # root may read everything
}
NOT_OPENED = {"._resource fork.wav", "cover.jpg", "a folder.wav", "loop"}
ONLY_FFMPEG = {"layer 2.mp2", "lame.mp3", "aac.m4a", "streamed.flac", "streamed.wav"}


def stage(path: Path, duration: int = 1) -> Track:
    args = argparse.Namespace(segment_duration=duration, sample_rate=24000, max_pairs=2000, min_level_db=-60.0)
    return stage_track(path.name, str(path.parent), str(path.parent / ".staging"), args)


def staged(track: Track) -> dict[int, np.ndarray]:
    """The segments that were written, by their index."""
    wavs = {index: track.wav(index) for index in range(len(track.segments))}
    return {index: soundfile.read(wav)[0] for index, wav in wavs.items() if wav.exists()}


def error_of(segment: np.ndarray, start: float) -> float:
    """RMS distance from the song, without the filter's run-in at the start of a track."""
    return float(np.sqrt(np.mean((segment - song(len(segment) / 24000, start=start))[1200:] ** 2)))


def test_the_table_is_of_every_kind_there_is():
    made = set(ZOO) if shutil.which("ffmpeg") else set(ZOO) | ONLY_FFMPEG
    assert set(TABLE) | NOT_OPENED == made and len(made) >= 45


@pytest.mark.parametrize("name", TABLE, ids=[ascii(name)[1:40] for name in TABLE])
def test_it_is_used_or_skipped_as_stated(tmp_path, name):
    if name not in ZOO:
        pytest.skip("ffmpeg is not installed")
    ZOO[name](tmp_path / name)
    expected, duration = TABLE[name], 16 if " s " in name and "samples" in name else 1
    track = stage(tmp_path / name, duration)
    found = staged(track)
    if isinstance(expected, Skipped):
        assert not found and expected.says in (track.problem or "no two neighbouring")
        return
    assert "".join(map(str, found)) == expected.segments
    assert expected.says in track.problem and bool(expected.says) == bool(track.problem)
    delay = expected.delay
    if delay is None:
        delay = -int(np.correlate(song(15), found[0][:2400], "valid").argmax())
        assert delay < 0
    for index, segment in found.items():
        assert error_of(segment, index * duration - delay / 24000) <= expected.error


def test_all_of_them_in_one_folder(tmp_path):
    """One run over the whole zoo: it ends well, and every file is used or named with its reason."""
    music = tmp_path / "m"
    music.mkdir()
    for name in ZOO:
        ZOO[name](music / name)
    result = run_script("create_dataset_pairs_wav.py", "--input_dir", music, "--output_dir", tmp_path / "d",
                        "--segment_duration", 1)  # fmt: skip
    metadata = read_metadata(tmp_path / "d/metadata.txt")
    used, skipped = {row.source for row in metadata.pairs}, dict(metadata.skipped)
    sources = {name: printable(name) for name in find_audio_files(music)}
    assert set(sources) == (set(ZOO) & set(TABLE)) | {"a folder.wav/inside.wav"}
    assert used.isdisjoint(skipped) and used | set(skipped) == set(sources.values())
    assert metadata.settings["skipped_files"] == str(len(skipped))
    assert "a folder.wav/inside.wav" in used and "Traceback" not in result.stderr
    for name, shown in sources.items():
        expected = TABLE.get(name, Used())
        if shown in skipped:
            assert f"skipped {shown}: {skipped[shown]}" in result.stderr  # mpg123 may write into the same line
            same = skipped[shown].startswith("same audio as ")  # most of the zoo is one song
            assert same or (isinstance(expected, Skipped) and expected.says in skipped[shown])
        else:
            assert expected is SHORT or isinstance(expected, Used)  # short of 16 s, here cut into seconds
            assert expected is SHORT or not expected.says or f"damaged {shown}: " in result.stderr
    lossless = ("pcm_16.wav", "plain.flac", "plain.aiff", "plain.caf", "plain.w64", "plain.rf64", "plain.au")
    assert sum(name in used for name in lossless) <= 1, "one song, used twice"


def test_a_song_in_another_lossless_container_is_the_same_song(tmp_path):
    kinds = ("pcm_16.wav", "plain.flac", "plain.aiff", "plain.caf", "plain.w64", "plain.rf64", "plain.au", "plain.voc")
    digests = set()
    for kind in kinds:
        write(tmp_path / kind, (song() * 32767).astype(np.int16), 44100, format=kind.split(".")[1])
        digests.add(tuple(segment.digest for segment in stage(tmp_path / kind).segments))
    assert len(digests) == 1 and all(digests.pop())


@pytest.mark.parametrize("happens", ["grows", "shrinks", "vanishes"])
def test_a_file_that_changes_while_it_is_read_is_skipped(tmp_path, monkeypatch, happens):
    from dataset import cutting as track_staging

    path, real = tmp_path / "song.wav", track_staging.write_wav
    write(path, song(100), 44100)

    def meanwhile(*args: object) -> None:
        real(*args)
        if happens == "vanishes":
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, path.stat().st_size + (100 if happens == "grows" else -100000))

    monkeypatch.setattr(track_staging, "write_wav", meanwhile)
    track = stage(path)
    assert not track.segments and ("changed or vanished" in track.problem or "damaged: only" in track.problem)
    monkeypatch.setattr(track_staging, "write_wav", real)
    write(path)
    assert len(stage(path).segments) == 2, "what is complete now is read anew"


@pytest.mark.parametrize("end, kwargs, error", [("flac", {}, 1e-4), ("ogg", {}, 0.02), ("opus", bad_audio.OPUS, 0.03)])
def test_where_there_are_checksums_no_damage_goes_unsaid(tmp_path, rng, end, kwargs, error):
    whole = bad_audio.encoded(12, end=f".{end}", **kwargs)
    path = tmp_path / f"song.{end}"
    for _ in range(25):
        damaged, where = bytearray(whole), int(rng.integers(len(whole)))
        length = int(rng.choice([1, 1, 50, 2000]))
        damage = rng.choice(["removed", "overwritten", "zeroed", "cut"])
        if damage == "cut":
            del damaged[where:]
        else:
            new = {"removed": b"", "overwritten": rng.bytes(length), "zeroed": bytes(length)}[damage]
            damaged[where : where + length] = new
        path.write_bytes(damaged)
        track = stage(path)
        found = staged(track)
        if not track.problem:
            assert len(found) == 12 or damaged == whole, f"{damage} at {where} of {len(whole)}"
        if "missing at its start" not in track.problem:
            assert all(error_of(segment, k) <= error for k, segment in found.items()), f"{damage} at {where}"


KINDS = ["pcm_16.wav", *(name for name in ZOO if name.startswith("plain."))]


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_crashes_it(tmp_path, rng, kind):
    """Whatever a header says: a track, or a reason."""
    path = tmp_path / kind
    ZOO[kind](path)
    whole = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(whole)
        for where in rng.integers(0, min(len(whole), 400), rng.integers(1, 6)):
            damaged[where] = rng.choice([0, 0xFF, rng.integers(256)])
        path.write_bytes(damaged[: rng.integers(1, 400)] if rng.random() < 0.2 else damaged)
        track = stage(path)
        assert track.problem or len(track.segments) >= 2


def test_a_cut_mp3_is_used_as_far_as_it_goes(tmp_path, rng):
    mp3(lambda frames: frames, song(12))(tmp_path / "whole.mp3")
    whole = (tmp_path / "whole.mp3").read_bytes()
    for size in rng.integers(2000, len(whole), 25):
        (tmp_path / "song.mp3").write_bytes(whole[:size])
        track = stage(tmp_path / "song.mp3")
        seconds = 0.024 * (len(bad_audio.mp3_frames(whole[:size])) - 1)
        if track.problem.startswith("damaged: only"):  # cut between two frames, which looks like a hole
            continue
        assert seconds - 1.2 <= len(track.segments) <= seconds and track.problem
        assert all(error_of(segment, index) < 0.01 for index, segment in staged(track).items())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of peak memory")
@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith("crafted")])
def test_a_crafted_header_takes_no_memory(tmp_path, name):
    def memory(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024

    ZOO[name](tmp_path / name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = memory("VmRSS")
    stage(tmp_path / name)
    assert memory("VmHWM") - before < 100, "MB"


@pytest.mark.parametrize("name", [name for name in TABLE if name.endswith((".mp3", ".flac", ".ogg")) and " " in name])
def test_the_end_of_what_is_whole_is_continued(tmp_path, name, capsys):
    if name not in ZOO:
        pytest.skip("ffmpeg is not installed")
    ZOO[name](tmp_path / name)
    expected = TABLE[name]
    try:
        segment = read_last_segment(tmp_path / name, 1, 24000)
    except AudioError as error:
        assert isinstance(expected, Skipped) or expected.says in str(error) or "damaged: " in str(error)
        return
    said = capsys.readouterr().err
    assert segment.shape == (24000,) and np.isfinite(segment).all()
    if isinstance(expected, Used) and expected.says:
        assert f"{name}: " in said and expected.says in said
