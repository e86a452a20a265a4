"""Tracks keep their split whatever happens to the music, and no audio is in both splits."""

import shutil
from pathlib import Path

import numpy as np
import soundfile
from conftest import noise, write_track
from datasets import SCRIPT, contents, flags, metadata_of, sources, splits, write_tracks

import create_dataset_pairs_wav
from dataset.stems import songs_of_stems


def test_added_music_needs_no_flag_and_moves_no_track(tmp_path, create, fails):
    write_tracks(tmp_path / "m", range(5), 6.2)
    create(tmp_path / "m", tmp_path / "d")
    before, digests = splits(tmp_path / "d"), set(metadata_of(tmp_path / "d").digests.values())
    write_tracks(tmp_path / "m", range(5, 9), 6.2)
    result = create(tmp_path / "m", tmp_path / "d")
    assert "added since the last run: 5.wav, 6.wav, 7.wav, 8.wav\n" in result.stdout
    after = splits(tmp_path / "d")
    assert before.items() <= after.items() and len(after) == 9
    assert digests <= set(metadata_of(tmp_path / "d").digests.values()), "the old embeddings cannot be used again"
    shutil.move(tmp_path / "m", tmp_path / "elsewhere")
    write_track(tmp_path / "m" / "other.wav", 6, seed=99)
    fails(SCRIPT, *flags(tmp_path / "m", tmp_path / "d"), says="a dataset of different music")


def test_moved_or_reencoded_music_keeps_its_split(tmp_path, create):
    music, dataset = tmp_path / "m", tmp_path / "d"
    write_tracks(music, range(12))

    def splits_by_number() -> dict[str, str]:
        return {Path(source).stem: split for source, split in splits(dataset).items()}

    create(music, dataset)
    before = splits_by_number()
    (music / "An album").mkdir()
    for number in range(11):
        path = music / f"{number}.wav"
        if number % 2:
            path.rename(music / "An album" / path.name)
        else:
            soundfile.write(path.with_suffix(".ogg"), soundfile.read(path)[0], 24000)
            path.unlink()
    assert "removed since the last run: 0.wav, " in create(music, dataset).stdout
    assert splits_by_number() == before


def test_trained_music_never_becomes_validation(tmp_path, create):
    """Even if names are swapped, music is added or moved, or all validation tracks are removed."""
    music, dataset = tmp_path / "m", tmp_path / "d"
    write_tracks(music, range(8))
    create(music, dataset, "--max_pairs", 24, "--val_pairs", 6)

    def digests(split: str) -> set[str]:
        return {digest for name, digest in metadata_of(dataset).digests.items() if name.startswith(split)}

    trained, val = digests("train"), digests("val")

    def val_after_a_run() -> set[str]:
        result = create(music, dataset, "--max_pairs", 24, "--val_pairs", 6)
        assert not trained & digests("val"), result.stdout
        return digests("val")

    one, other = (music / sources(dataset, split)[0] for split in ("train", "val"))
    one.rename(music / "x.wav")
    other.rename(one)
    (music / "x.wav").rename(other)
    assert val_after_a_run() == val
    write_tracks(music, range(30, 50))  # now there are too many tracks for all to be used
    val_after_a_run()
    (music / "moved").mkdir()
    for path in music.glob("*.wav"):
        path.rename(music / "moved" / path.name)
    val_after_a_run()
    for path in [*(music / name for name in set(sources(dataset, "val"))), *(music / "moved").glob("[3-9]?.wav")]:
        path.unlink(missing_ok=True)
    assert val_after_a_run() == set()
    write_track(music / "new.wav", 4.2, seed=99)
    assert val_after_a_run() and set(sources(dataset, "val")) == {"new.wav"}


def test_a_run_killed_while_it_replaces_a_dataset_keeps_the_splits(tmp_path, create, monkeypatch):
    write_tracks(tmp_path / "m", range(5))
    create(tmp_path / "m", tmp_path / "d")
    before = splits(tmp_path / "d")
    write_tracks(tmp_path / "m", range(5, 6))
    shutil.copytree(tmp_path / "d", tmp_path / "uninterrupted")
    create(tmp_path / "m", tmp_path / "uninterrupted")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(create_dataset_pairs_wav, "write_metadata", killed)
        create(tmp_path / "m", tmp_path / "d", status=130)
    assert not (tmp_path / "d/metadata.txt").exists()
    create(tmp_path / "m", tmp_path / "d")
    assert contents(tmp_path / "d") == contents(tmp_path / "uninterrupted")
    assert before.items() <= splits(tmp_path / "d").items()


def test_tracks_that_share_audio_are_all_used_for_training(tmp_path, create, rng):
    """One song contains 50 s of another. A song that shares audio with an earlier validation track is left out."""
    music = tmp_path / "m"
    write_tracks(music, range(5), 70)
    songs = [soundfile.read(music / f"{number}.wav")[0] for number in range(5)]

    def write_medley(name: str, song: int) -> None:
        part = 0.7 * songs[song][240_000:1_440_000]
        soundfile.write(music / name, np.concatenate([noise(rng, 60 * 24000)[:, 0], part]), 24000)

    write_medley("5.wav", 2)
    for seed in range(2):
        result = create(music, tmp_path / f"d{seed}", "--seed", seed)
        assert "2 tracks share audio with another; all of them go into training" in result.stdout
        assert not {"2.wav", "5.wav"} & set(sources(tmp_path / f"d{seed}", "val"))
    used = sources(tmp_path / "d0", "val")[0]
    write_medley("6.wav", int(used[0]))
    assert f"skipped 6.wav: shares audio with {used}" in create(music, tmp_path / "d0", "--seed", 0).stderr
    for path in music.glob("[!25]*"):
        path.unlink()
    result = create(music, tmp_path / "d2")
    assert "*** VALIDATION IS NOT INDEPENDENT" in result.stderr and sources(tmp_path / "d2", "val")


def test_earlier_splits_that_no_longer_fit_are_reported(tmp_path, create):
    music, dataset = tmp_path / "m", tmp_path / "d"
    write_tracks(music, range(6), 110)

    def create_again() -> str:
        return create(music, dataset, "--max_pairs", 60, "--val_pairs", 24).stderr

    assert "NOT INDEPENDENT" not in create_again()
    val, train = (sorted(set(sources(dataset, split))) for split in ("val", "train"))
    # A training track and a validation track get the names of two stems of one song.
    (music / train[0]).rename(music / "Song - bass.wav")
    (music / val[0]).rename(music / "Song - drums.wav")
    assert "NOT INDEPENDENT: it has audio or a song in common with training (Song - drums.wav)" in create_again()
    # Only validation tracks are left. One of them must become training, and now they share audio.
    for name in [*train[1:], "Song - bass.wav"]:
        (music / name).unlink(missing_ok=True)
    first = soundfile.read(music / "Song - drums.wav")[0]
    soundfile.write(music / val[1], np.concatenate([soundfile.read(music / val[1])[0], first[: 50 * 24000]]), 24000)
    assert "NOT INDEPENDENT" in create_again() and len(set(sources(dataset, "val"))) == len(val) - 1


def test_the_stems_of_a_song_are_in_one_split(tmp_path, create, seed):
    for song in range(9):
        for number, stem in enumerate(("mixture", "drums", "vocals")):
            write_track(tmp_path / "m" / f"Song {song}" / f"{stem}.wav", 3.2, seed=10 * song + number)
    result = create(tmp_path / "m", tmp_path / "d", "--seed", seed)
    assert "27 files are named as stems of 9 songs; all stems of a song go into one split" in result.stdout
    train, val = ({name[: len("Song 0")] for name in sources(tmp_path / "d", split)} for split in ("train", "val"))
    assert len(train | val) == 9 and len(val) >= 3 and not train & val, f"seed {seed}"
    assert "NOT INDEPENDENT" not in result.stderr


def test_names_of_stems():
    assert songs_of_stems(["a/drums.wav", "a/Bass 2.flac", "b/bass.wav", "Mix 1.mp3", "Mix 2.mp3", "a.ogg"]) == {
        "a/drums.wav": "a", "a/Bass 2.flac": "a", "a.ogg": "a"
    }  # fmt: skip
    songs = songs_of_stems(["x/Song (no_vocals).wav", "y/song (Vocals).wav", "y/Sing (Vocals).wav"])
    assert songs.keys() == {"x/Song (no_vocals).wav", "y/song (Vocals).wav"}
    medleydb = ["Song_STEMS/Song_STEM_01.wav", "Song_STEMS/Song_STEM_02.wav"]
    assert songs_of_stems(["Song - bass.wav", "Song.wav", *medleydb, "Another song.wav"]) == dict.fromkeys(
        ["Song - bass.wav", "Song.wav", *medleydb], "song"
    )
    # One stem and the song's mix are enough.
    assert songs_of_stems(["Song.wav", "Song (Instrumental).wav", "Other (Bass).wav"]).keys() == {
        "Song.wav", "Song (Instrumental).wav"
    }  # fmt: skip
    assert songs_of_stems(["contrabass.wav", "drumsolo.wav", "remix.wav", "The Bass.mp3", "Bass.mp3"]) == {}
