"""Stems: the separate parts of one song (drums, bass, vocals, ...). They sound different but belong in one split."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PARTS = (
    "mix|mixture|master|drums?|percussion|bass|(?:lead |backing |no |non )?vocals?|other|others|accompaniment|"
    "instrumental|acapella|guitars?|piano|keys|keyboards?|synths?|strings|brass|winds"
)
# "drums", "Song - vocals", "Song (no_vocals)", and MedleyDB's "Song_STEM_01" and "Song_RAW_01_02".
STEM_NAME = re.compile(rf"(?:(?P<song>.+?) )?(?P<part>{PARTS}|(?:stem|raw)(?: \d+)+)(?: \d+)?", re.IGNORECASE)


def songs_of_stems(sources: Iterable[str]) -> dict[str, str]:
    """Find stems and their songs by file name: {source: song}.

    Two files are stems of one song if their names differ only in the part. If the name is only a part, they must be in
    the same folder. A file with just the song's name is its mix and belongs to it too, even if there is only one stem.
    """
    parts: dict[str, dict[str, str]] = defaultdict(dict)  # song -> {source: part}
    names = {source: _words(Path(source).stem) for source in sources}
    for source, name in names.items():
        if match := STEM_NAME.fullmatch(name):
            song = match["song"] or str(Path(source).parent)
            parts[song][source] = match["part"]
    plain = set(names.values())
    songs = {song: stems for song, stems in parts.items() if len(set(stems.values())) > 1 or song in plain}
    mixes = {_words(Path(song).name): song for song in songs}
    songs_by_source = {source: song for song, stems in songs.items() for source in stems}
    return {source: mixes[name] for source, name in names.items() if name in mixes} | songs_by_source


def _words(name: str) -> str:
    """A name in lower case with words separated by single spaces."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()
