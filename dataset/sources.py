"""Find the music in a folder: files with an audio extension, except this project's output. Used by dataset creation."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from audio.segments import WAV_COMMENT
from dataset.pairs import METADATA_NAME, TITLE

# Audio extensions. An unreadable file with one of these is reported. All other files (covers, playlists, notes) are
# ignored.
AUDIO_EXTENSIONS = frozenset(
    """.wav .wave .w64 .rf64 .bwf .flac .aif .aiff .aifc .caf .au .snd .voc .8svx .iff .mp1 .mp2 .mp3 .mpa .mpga
    .ogg .oga .ogx .opus .spx .m4a .m4b .m4p .m4r .mp4 .m4v .mov .qta .3gp .3g2 .aac .adts .alac .webm .weba .mka .mkv
    .avi .flv .f4a .f4v .ogv .wma .asf .wmv .ape .wv .mpc .mp+ .tta .tak .shn .ofr .dsf .dff .ac3 .eac3 .dts .dtshd
    .mlp .thd .ra .rm .amr .awb .gsm .qcp .mpg .mpeg .vob .m2ts .mts .nut .xwma .adx""".split()  # noqa: SIM905
)


@dataclass
class Sources:
    """The audio files in a folder, relative to it and sorted, and how much of this project's output was ignored."""

    files: list[str] = field(default_factory=list)
    own_folders: int = 0
    own_files: int = 0


def find_sources(folder: Path, output_dir: Path) -> Sources:
    """Search `folder` for audio files, following links to folders.

    Ignores hidden files (macOS keeps `._NAME` beside NAME), `output_dir`, and this project's own output. Each folder is
    entered once, so loops of links end. An unreadable folder is itself listed, so that opening it reports the reason.
    """
    sources = Sources()
    entered = {_identity(output_dir)} if output_dir.exists() else set()

    def keep(error: OSError) -> None:
        sources.files.append(os.path.relpath(error.filename, folder))

    for parent, folders, names in os.walk(folder, onerror=keep, followlinks=True):
        if (here := _identity(parent)) in entered or _is_own_folder(Path(parent)):
            sources.own_folders += here not in entered
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
                sources.own_files += 1
            else:
                sources.files.append(os.path.relpath(path, folder))
    sources.files.sort(key=os.fsencode)
    return sources


def hash_of_files(input_dir: Path, sources: list[str]) -> str:
    """The number of audio files and a hash of their names, sizes and dates."""
    about = repr([(source, *size_and_date(input_dir / source)) for source in sources])
    return f"{len(sources)} ({hashlib.sha256(about.encode('utf-8', 'surrogateescape')).hexdigest()[:16]})"


def size_and_date(path: Path) -> tuple[int, int]:
    """(bytes, modification time in seconds since 1970) of a file; (0, 0) if it does not exist."""
    try:
        about = path.stat()
        return about.st_size, int(about.st_mtime)
    except OSError:
        return 0, 0


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _is_own_folder(folder: Path) -> bool:
    """Whether a folder contains the metadata.txt of a dataset or the results.json of an evaluation."""
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
    """Whether a WAV has the comment that marks this project's output."""
    try:
        if not path.lower().endswith(".wav") or not os.path.isfile(path):  # opening a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            return WAV_COMMENT.encode() in file.read(256)
    except OSError:
        return False
