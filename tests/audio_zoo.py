"""A zoo of the audio files found in real folders: unusual, joined, cut, damaged, misnamed, or no audio at all.

`ZOO` maps a file's name to how it is made and what a reader must do with it.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from audio_files import FFMPEG, RATE, SECONDS, Animal, cut, flac, id3_tag, overwritten, song, stored, wav
from audio_zoo_ffmpeg import FFMPEG_ZOO

NOT_UTF8 = os.fsdecode(b"\xff\xfe not utf8.wav")
LONG_NAME = "ø" * 123 + ".wav"  # 250 bytes
ZOO: dict[str, Animal] = dict(FFMPEG_ZOO) if FFMPEG else {}


def add(name: str, content: Callable[[], bytes], seconds: float = SECONDS, **expected: object) -> None:
    """A file from its bytes; unless stated, it is lossless."""
    assert name not in ZOO, name
    ZOO[name] = Animal(lambda path: path.write_bytes(content()), seconds, **expected)


def header_states(share: float) -> bytes:
    """A WAV whose header counts only some of its samples, because the recorder died after updating the header."""
    size = int((len(wav()) - 44) * share) // 4 * 4
    return b"RIFF" + struct.pack("<I", size + 36) + wav()[8:40] + struct.pack("<I", size) + wav()[44:]


def bext(size: int) -> bytes:
    """A chunk of a WAV that holds the header of another WAV, as some editors write it."""
    return b"bext" + struct.pack("<I", size) + wav()[:44].ljust(size, b"\0")


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


# ------------------------------------------------------------------ what libsndfile reads

for kind in ("wav", "w64", "rf64", "aiff", "caf", "au", "flac"):
    add(f"plain.{kind}", functools.partial(stored, kind.upper()))
for kind in ("ogg", "mp3"):
    add(f"plain.{kind}", functools.partial(stored, kind.upper()), snr_db=30)
add("ima_adpcm.wav", functools.partial(stored, "WAV", "IMA_ADPCM"), snr_db=25)
add("extensible.wav", functools.partial(stored, "WAVEX", "PCM_24"))
ZOO["32 channels.wav"] = Animal(lambda path: soundfile.write(path, np.tile(song(), (1, 16)), RATE, "FLOAT"))
for name in ("'quotes\" & $(touch x); `id`.wav", "new\nline.wav", "-dash.wav", NOT_UTF8, LONG_NAME, "wav inside.mp3"):
    add(name, wav)
for kind in ("wav", "aiff", "caf", "flac"):
    add(f"ID3 in front.{kind}", lambda kind=kind: id3_tag(3001) + stored(kind.upper()))
add("promises 4 GB.wav", lambda: wav()[:40] + b"\xff\xff\xff\xff" + wav()[44:])
add("recorder was killed.wav", lambda: wav()[:4] + bytes(4) + wav()[8:40] + bytes(4) + wav()[44:])
add("recorder died later.wav", lambda: header_states(0.5), 6, says="longer than its header states; only the")
add("header in a chunk.wav", lambda: riff(bext(900) + wav()[12:]))
add("header in a chunk at its end.wav", lambda: riff(wav()[12:] + bext(90_000)))
add("tag at its end.wav", lambda: wav() + b"ID3\3\0\0\0\0\x7f\x76" + bytes(9000) + b"\1" * 7374)
add("two in one.wav", lambda: wav() + wav(), says="a second file follows the first and is not used")
add("two in one.flac", lambda: flac() + flac(), says="a second file follows the first and is not used")
add("counts the first of two.flac", lambda: flac() + flac()[flac().index(b"\xff\xf8") :], says="longer than its header")
add("cut.wav", lambda: cut(wav(), 0.7), 8.3, says="cut off at 8.4")
add("cut.flac", lambda: cut(flac(), 0.7), 7, says=" at ")
add("zeros inside.flac", lambda: overwritten(flac(), 0.6, bytes(300)), 5.5, says="damaged at")
# FFmpeg would drop a frame without a word, and shift what follows.
add("damaged in its first second.flac", lambda: overwritten(flac(), 0.02, bytes(300)), 0.1, says="damaged at 0.")

# ------------------------------------------------------------------ what is no audio

for ending in ("wav", "flac", "mp3"):
    add(f"text.{ending}", lambda: b"just a text\n" * 9, refused="not readable as audio")
    add(f"zeros.{ending}", lambda: bytes(5000), refused="not readable as audio")
add("empty.wav", bytes, refused="empty file")
add("nothing in it.wav", lambda: riff(wav()[12:40] + bytes(4)), refused="no audio")
ZOO["dangling link.wav"] = Animal(lambda path: path.symlink_to("nowhere.wav"), refused="No such file")
ZOO["link to itself.wav"] = Animal(lambda path: path.symlink_to(path.name), refused="symbolic links")
ZOO["named pipe.wav"] = Animal(os.mkfifo, refused="not a regular file")
ZOO["a folder.wav"] = Animal(Path.mkdir, refused="a folder")
add("giant tag.mp3", lambda: b"ID3\x03\0\0\x7f\x7f\x7f\x7fTIT2\x7f\xff\xff\xff\0\0" + bytes(3000), refused=".")
add("giant atom.m4a", lambda: b"\0\0\0\x18ftypM4A " + bytes(12) + b"\x7f\xff\xff\xffmoov", refused=".")
add("list of URLs.m4a", lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.mp3\n", refused=".")
add("concat.mp3", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", refused=".")

# FFmpeg 8 divides by zero if an ADX (a format from games) has no "(c)CRI". The process that opens it dies.
DEADLY = bytes.fromhex("80000020031204020000ac440004ba0001f40300") + bytes(10) + b"(c)XRI" + (b"\0P" + b"!" * 16) * 400
