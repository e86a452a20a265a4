"""Which files of a folder are music: what has an audio ending, but nothing that this project wrote itself."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from audio.segments import WAV_COMMENT
from dataset.pairs import METADATA_NAME, TITLE

# The endings that stand for sound, whether or not a file with one can be read: each deserves a line that says so.
# Anything else in a folder (covers, playlists, notes) is no music and is passed over.
AUDIO_EXTENSIONS = frozenset(
    """.wav .wave .w64 .rf64 .bwf .flac .aif .aiff .aifc .caf .au .snd .voc .8svx .iff .mp1 .mp2 .mp3 .mpa .mpga
    .ogg .oga .ogx .opus .spx .m4a .m4b .m4p .m4r .mp4 .m4v .mov .qta .3gp .3g2 .aac .adts .alac .webm .weba .mka .mkv
    .avi .flv .f4a .f4v .ogv .wma .asf .wmv .ape .wv .mpc .mp+ .tta .tak .shn .ofr .dsf .dff .ac3 .eac3 .dts .dtshd
    .mlp .thd .ra .rm .amr .awb .gsm .qcp .mpg .mpeg .vob .m2ts .mts .nut .xwma .adx""".split()  # noqa: SIM905
)


@dataclass
class Sources:
    """The audio files below a folder, relative to it and sorted, and what was passed over as this project's own."""

    files: list[str] = field(default_factory=list)
    own_folders: int = 0
    own_files: int = 0


def find_sources(folder: Path, output_dir: Path) -> Sources:
    """Search `folder` for audio files, links to folders followed.

    Passed over: hidden files (macOS keeps `._NAME` beside NAME), `output_dir`, and what this project wrote. A folder is
    entered once, so a loop of links ends. A folder that cannot be read stands in the list itself: opening it will say
    why.
    """
    found = Sources()
    entered = {_identity(output_dir)} if output_dir.exists() else set()

    def keep(error: OSError) -> None:
        found.files.append(os.path.relpath(error.filename, folder))

    for parent, folders, names in os.walk(folder, onerror=keep, followlinks=True):
        if (here := _identity(parent)) in entered or _is_own_folder(Path(parent)):
            found.own_folders += here not in entered
            entered.add(here)
            folders.clear()
            continue
        entered.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(parent, name)
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in AUDIO_EXTENSIONS:
                continue
            if _is_own_wav(path):
                found.own_files += 1
            else:
                found.files.append(os.path.relpath(path, folder))
    found.files.sort(key=os.fsencode)
    return found


def listing(input_dir: Path, sources: list[str]) -> str:
    """The number of audio files and a hash of their names, sizes and dates."""
    about = repr([(source, *size_and_date(input_dir / source)) for source in sources])
    return f"{len(sources)} ({hashlib.sha256(about.encode('utf-8', 'surrogateescape')).hexdigest()[:16]})"


def size_and_date(path: Path) -> tuple[int, int]:
    """(bytes, seconds since 1970) of a file; (0, 0) if it is not there."""
    try:
        about = path.stat()
        return about.st_size, int(about.st_mtime)
    except OSError:
        return 0, 0


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _is_own_folder(folder: Path) -> bool:
    """Whether a folder holds the metadata.txt of a dataset or the results.json of an evaluation."""
    try:
        if (folder / METADATA_NAME).is_file():
            with open(folder / METADATA_NAME, "rb") as file:
                return file.read(len(TITLE)) == TITLE.encode()
        if (folder / "results.json").is_file():
            return str(json.loads((folder / "results.json").read_bytes())["format"]).startswith("jingle_d")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False


def _is_own_wav(path: str) -> bool:
    """Whether a WAV carries the comment that `write_wav` gives what is made for listening."""
    try:
        if not path.lower().endswith(".wav") or not os.path.isfile(path):  # a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            return WAV_COMMENT.encode() in file.read(256)
    except OSError:
        return False
