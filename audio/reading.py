"""How much of an audio file is there, and whole, where libsndfile does not say. Used by audio_segments.py.

Nothing to run. Files are cut off by full disks and broken downloads, and decoders step over damage without a word.
"""

from __future__ import annotations

import os
import re

import soundfile

from audio.mp3_frames import UnguessedFile, walk_frames

# In libsndfile's log: a length in the header, and what is there. A program that writes to a pipe cannot know the
# length and writes the largest one.
LENGTHS = re.compile(r": (\d+) \(should be (\d+)\)")
UNKNOWN_BYTES, UNKNOWN_FRAMES = 0x7FFF0000, 1 << 62
SLACK_BYTES, SLACK_S = 4096, 0.1  # off by less is a habit of some writers


class AudioError(Exception):
    """Why one audio file cannot be used, in a few words."""


class SilentDamageError(AudioError):
    """The decoder stepped over damage without a word: nobody knows from where on its samples are wrong."""


class AudioFile(soundfile.SoundFile):
    """An audio file that is read from front to back, straight on.

    soundfile seeks after each read to where the next one should begin. A decoder that has stepped over damage
    (Ogg Vorbis) or filled it in (Opus) is so brought back into step, and nobody notices. Read straight on, it
    comes to fewer samples than it should.
    """

    good_frames = 0  # how many frames should come
    problem = ""  # what is wrong behind them

    def seekable(self) -> bool:
        return False


def open_whole(path: str | os.PathLike) -> AudioFile:
    """Open an audio file and find out how many good frames it has; raises what soundfile and the system raise."""
    audio = AudioFile(os.fsencode(path))
    audio.good_frames = audio.frames
    if audio.format == "MP3":
        return _open_mp3(path, audio)
    if audio.format == "OGG":
        audio.problem = _ogg_problem(path, audio)
    elif audio.frames > UNKNOWN_FRAMES:  # a FLAC that was written to a pipe
        frames = 0
        while len(block := audio.read(1 << 16)):
            frames += len(block)
        audio.close()
        audio = AudioFile(os.fsencode(path))
        audio.good_frames = frames
    elif any(
        int(promised) < UNKNOWN_BYTES and int(promised) - int(there) > SLACK_BYTES
        for promised, there in LENGTHS.findall(audio.extra_info)
    ):
        audio.problem = "cut off: its header promises more than there is"
    return audio


def _open_mp3(path: str | os.PathLike, audio: AudioFile) -> AudioFile:
    """The same MP3 with all of its frames and no more, also where libsndfile had to guess how many there are."""
    found = walk_frames(path)
    if found.promised is None:
        audio.close()
        audio = AudioFile(UnguessedFile(path))
        audio.good_frames = found.samples
    elif found.problem:  # the header frame tells how much is trimmed at both ends, and mpg123 does it
        audio.good_frames = max(0, found.samples - (found.promised - audio.frames))
    audio.problem = found.problem
    return audio


def _ogg_problem(path: str | os.PathLike, audio: AudioFile) -> str:
    """What the last page of an Ogg file says about all of it (RFC 3533): it is marked, and knows the length."""
    with open(path, "rb") as file:
        first = file.read(18)
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 17)))  # a page has at most 65,307 bytes
        tail = file.read()
    last = tail[tail.rfind(b"OggS") :]
    if len(last) < 18 or not last[5] & 4:
        return "cut off: its last page is missing"
    if last[14:18] != first[14:18]:
        return "its second stream is left out"
    rate = 48000 if audio.subtype == "OPUS" else audio.samplerate
    length, there = int.from_bytes(last[6:14], "little") / rate, audio.frames / audio.samplerate
    if length - there > SLACK_S:
        return f"{length - there:.2f} s are missing at its start or end"
    return ""
