"""A zoo of audio files as real folders hold them: unusual, joined, cut, damaged, misnamed, or no audio at all.

`ZOO` maps a file's name to an `Animal`: the function that makes it, and what a reader must do with it. What is sound in
them is `song()`, which can be computed at any rate, so that decoding and resampling can be held against it.
"""

from __future__ import annotations

import base64
import functools
import itertools
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

SECONDS, RATE = 12.0, 44100
NOT_UTF8 = os.fsdecode(b"\xff\xfe not utf8.wav")
LONG_NAME = "ø" * 123 + ".wav"  # 250 bytes
FFMPEG = shutil.which("ffmpeg")


def song(seconds: float = SECONDS, rate: int = RATE, start: float = 0.0) -> np.ndarray:
    """A rising tone in each ear and a steady one in both, float64 [samples, 2]: no two stretches are alike."""
    t = (start + np.arange(round(seconds * rate)) / rate)[:, None]
    tones = np.sin(2 * np.pi * (np.array([[190.0, 330.0]]) * t + np.array([[23.0, 17.0]]) * t * t))
    return 0.33 * tones + 0.11 * np.sin(2 * np.pi * 523.25 * t)


@dataclass(frozen=True)
class Animal:
    """make: path -> None. seconds: how much of the song must be read. says: part of the line about it; "" for none."""

    make: Callable[[Path], object]
    seconds: float = SECONDS
    says: str = ""
    snr_db: float = 75
    refused: str = ""  # part of the reason why it cannot be read at all


ZOO: dict[str, Animal] = {}


def add(name: str, make: Callable[[Path], object], seconds: float = SECONDS, **expected: object) -> None:
    assert name not in ZOO, name
    ZOO[name] = Animal(make, seconds, **expected)


def write(path: Path, audio: np.ndarray | None = None, rate: int = RATE, **kwargs: object) -> None:
    soundfile.write(os.fsencode(path), song(rate=rate) if audio is None else audio, rate, **kwargs)


def put(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: Path(path).write_bytes(content())


@functools.cache
def encode(end: str, *options: str, seconds: float = SECONDS, rate: int = RATE, channels: int = 2) -> bytes:
    """The song as ffmpeg writes it into a file with this ending."""
    audio = song(seconds, rate)
    audio = audio.mean(axis=1, keepdims=True) if channels == 1 else audio
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(f"{folder}/song.wav", audio, rate)
        command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"{folder}/song.wav", *options, f"{folder}/out.{end}"]
        subprocess.run(command, check=True)
        return Path(f"{folder}/out.{end}").read_bytes()


@functools.cache
def flac(seconds: float = SECONDS) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "a.flac"), song(seconds))
        return Path(folder, "a.flac").read_bytes()


def wav(subtype: str = "PCM_16") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "a.wav"), subtype=subtype)
        return Path(folder, "a.wav").read_bytes()


def cut(whole: bytes, share: float) -> bytes:
    return whole[: int(len(whole) * share)]


def overwritten(whole: bytes, share: float, new: bytes) -> bytes:
    at = int(len(whole) * share)
    return whole[:at] + new + whole[at + len(new) :]


def removed(whole: bytes, share: float, count: int) -> bytes:
    at = int(len(whole) * share)
    return whole[:at] + whole[at + count :]


def with_padded_setup(ogg: bytes) -> bytes:
    """Vorbis with bytes behind the end of its setup header: libvorbis ignores them, FFmpeg refuses the file."""
    page = ogg.index(b"OggS", 4)
    count = ogg[page + 26]
    start = page + 27 + count
    lacing, end = bytearray(ogg[page + 27 : start]), start + sum(ogg[page + 27 : start])
    assert lacing[-1] < 200, "the setup header's last piece has room"
    lacing[-1] += 9
    content = bytearray(ogg[page : page + 27] + lacing + ogg[start:end] + b"\xaa" * 9)
    content[22:26] = bytes(4)
    crc = 0
    for byte in content:  # RFC 3533: polynomial 04c11db7, no reflection
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    content[22:26] = struct.pack("<I", crc)
    return ogg[:page] + bytes(content) + ogg[end:]


# ------------------------------------------------------------------ what libsndfile reads

for subtype, snr_db in {"PCM_U8": 30, "PCM_16": 75, "PCM_24": 75, "PCM_32": 75, "FLOAT": 75, "ULAW": 30, "ALAW": 30,
                        "IMA_ADPCM": 25}.items():  # fmt: skip
    add(f"{subtype.lower()}.wav", functools.partial(write, subtype=subtype), snr_db=snr_db)
for kind in ("w64", "rf64", "aiff", "caf", "au", "voc", "flac"):
    add(f"plain.{kind}", functools.partial(write, format=kind.upper()))
add("24 bits.flac", functools.partial(write, subtype="PCM_24"))
add("extensible.wav", functools.partial(write, format="WAVEX", subtype="PCM_24"))
for name in ("spaces in it.wav", "'quotes\" & $(touch x); `id`.wav", "new\nline.wav", "-dash.wav", NOT_UTF8, LONG_NAME):
    add(name, write)
for channels in (1, 6, 32):
    tile = (
        functools.partial(np.tile, reps=(1, channels // 2)) if channels > 1 else (lambda x: x[:, :1] / 2 + x[:, 1:] / 2)
    )
    add(f"{channels} channels.wav", lambda path, tile=tile: write(path, tile(song()), subtype="FLOAT"))
add("plain.wav", write)
add("wav inside.mp3", functools.partial(write, format="WAV"))
add("promises 4 GB.wav", put(lambda: wav()[:40] + b"\xff\xff\xff\xff" + wav()[44:]))
add("recorder was killed.wav", put(lambda: wav()[:4] + bytes(4) + wav()[8:40] + bytes(4) + wav()[44:]))
add("two in one.wav", put(lambda: wav() + wav()), says="a second file follows the first and is not used")
add("two in one.flac", put(lambda: flac() + flac()), says="a second file follows the first and is not used")
add("header counts the first of two.flac", put(lambda: flac() + flac()[flac().index(b"\xff\xf8") :]),
    says="longer than its header states")  # fmt: skip
add("cut.wav", put(lambda: cut(wav(), 0.7)), 8.3, says="cut off at 8.4")
add("cut.flac", put(lambda: cut(flac(), 0.7)), 7, says=" at ")
add("zeros inside.flac", put(lambda: overwritten(flac(), 0.6, bytes(300))), 5.5, says="damaged at")
add("nothing in it.wav", lambda path: write(path, song()[:0]), refused="no audio")


def bext(size: int) -> bytes:
    """A chunk of a WAV that holds the header of a WAV, as some editors keep the one that they found."""
    return b"bext" + struct.pack("<I", size) + wav()[:44].ljust(size, b"\0")


def with_chunk(chunk: bytes, front: bool) -> bytes:
    """A WAV with one more chunk, in front of the others or behind them."""
    body = chunk + wav()[12:] if front else wav()[12:] + chunk
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def promises(share: float) -> bytes:
    """A WAV whose header knows of a part of the samples: its recorder died after it had updated the header."""
    samples = int((len(wav()) - 44) * share) // 4 * 4
    return b"RIFF" + struct.pack("<I", samples + 36) + wav()[8:40] + struct.pack("<I", samples) + wav()[44:]


add("recorder died later.wav", put(lambda: promises(0.5)), 6, says="longer than its header states; only the")
add("header in a chunk.wav", put(lambda: with_chunk(bext(900), front=True)))
add("header in a chunk at its end.wav", put(lambda: with_chunk(bext(90_000), front=False)))
add("tag at its end.wav", put(lambda: wav() + b"ID3\3\0\0\0\0\x7f\x76" + bytes(9000) + b"\1" * 7374))
for kind in ("wav", "aiff", "au", "caf", "flac"):
    add(f"ID3 in front.{kind}", lambda path, kind=kind: in_front(path, kind))


def tag(size: int, claimed: int | None = None) -> bytes:
    """An ID3v2 tag of `size` bytes, all a picture might hold, that says it has `claimed`."""
    said = size if claimed is None else claimed
    head = b"ID3\3\0\0" + bytes(said >> shift & 127 for shift in (21, 14, 7, 0))
    return head + (b"\xff\xfbjpeg" * (size // 6 + 1))[:size]


def in_front(path: Path, kind: str) -> None:
    write(path, format=kind.upper())
    path.write_bytes(tag(3001) + path.read_bytes())


# ------------------------------------------------------------------ what FFmpeg reads, and soundfile writes

add("plain.ogg", functools.partial(write, format="OGG"), snr_db=30)
add("plain.mp3", functools.partial(write, format="MP3"), snr_db=30)

# ------------------------------------------------------------------ what only ffmpeg writes

if FFMPEG:
    AAC, MP3, VORBIS, OPUS = (("-c:a", name) for name in ("aac", "libmp3lame", "libvorbis", "libopus"))
    AAC, MP3 = (*AAC, "-b:a", "192k"), (*MP3, "-b:a", "128k")
    BARE = (*MP3, "-write_xing", "0", "-id3v2_version", "0")
    LOSSY = {"snr_db": 30}
    for end, codec in {"m4a": AAC, "mp4": AAC, "mov": AAC, "aac": AAC, "mka": AAC, "3gp": (*AAC, "-ar", "44100"),
                       "webm": OPUS, "opus": OPUS, "wma": ("-b:a", "192k"), "mp2": ("-b:a", "256k"),
                       "ac3": ("-b:a", "256k"), "mp3": MP3}.items():  # fmt: skip
        add(f"by ffmpeg.{end}", put(functools.partial(encode, end, *codec)), 11.9, **LOSSY)
    for end, codec in {"m4a": ("-c:a", "alac"), "tta": (), "wv": (), "oga": ("-c:a", "flac"), "mka": ("-c:a", "flac"),
                       "aiff": ()}.items():  # fmt: skip
        add(f"lossless.{end}", put(functools.partial(encode, end, *codec)))
    # libsndfile takes the floats of the first for integers, and the headers of the second's blocks for samples.
    add("floats.w64", put(lambda: encode("w64", "-c:a", "pcm_f32le")))
    add("blocks.voc", put(lambda: encode("voc")))
    add("eight channels.m4a", put(lambda: encode("m4a", "-ac", "8", *AAC)), 11.9, **LOSSY)
    add("mp3 inside.wav", put(lambda: encode("wav", *MP3)), 11.9, **LOSSY)
    add("cover in front.flac", put(lambda: tag(300_000) + encode("flac")))

    END_TAG = b"TAG" + b"A title".ljust(125)

    def ape_tag(size: int) -> bytes:
        """A header, `size` bytes, and a footer, which alone tells FFmpeg that there is a tag."""
        header = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 32 + size, 0, 5 << 29)
        return header + bytes(size) + header[:20] + struct.pack("<I8x", 1 << 31)

    def frames(mp3: bytes) -> list[int]:
        """Where the frames of a 44.1 kHz, 128 kbit/s MP3 begin, its header frame first if it has one."""
        at = mp3.index(b"\xff\xfb")
        found = []
        while at + 4 <= len(mp3) and mp3[at : at + 2] == b"\xff\xfb":
            found.append(at)
            at += 144 * 128000 // 44100 + (mp3[at + 2] >> 1 & 1)
        return found

    def xing(offset: int, new: bytes) -> bytes:
        """An MP3 with `new` behind the name of its header frame, "Info"."""
        mp3 = encode("mp3", *MP3)
        at = mp3.index(b"Info") + offset
        return mp3[:at] + new + mp3[at + len(new) :]

    def noise(count: int) -> bytes:
        return np.random.default_rng(1).bytes(count)

    bare = functools.partial(encode, "mp3", *BARE)
    add("tags.mp3", put(lambda: tag(900) + encode("mp3", *MP3) + ape_tag(600) + END_TAG), 11.9, **LOSSY)
    add("tag says too little.mp3", put(lambda: tag(900, 60) + bare()), 11.9, **LOSSY)
    add("lyrics.mp3", put(lambda: bare() + b"LYRICSBEGIN" + b"la \xff\xfb la " * 99 + END_TAG), 11.9, **LOSSY)
    add("counts nothing.mp3", put(lambda: xing(8, bytes(4))), 11.9, **LOSSY)
    add("has no count.mp3", put(lambda: xing(7, b"\x0e")), 11.9, **LOSSY)
    add("variable rate.mp3", put(lambda: encode("mp3", "-q:a", "2", "-write_xing", "0")), 11.9, **LOSSY)
    add("joined.mp3", put(lambda: encode("mp3", *MP3) + END_TAG + tag(60) + encode("mp3", *MP3)), 23.9, **LOSSY)
    add("mono, then stereo.mp3", put(lambda: bare("-ac", "1") + bare()), 23.9, **LOSSY)
    add("stereo, then mono.mp3", put(lambda: bare() + bare("-ac", "1")), 23.9, **LOSSY)
    aac, ac3 = (functools.partial(encode, end, "-b:a", "448k") for end in ("aac", "ac3"))
    for kind, whole in {"aac": aac, "ac3": ac3}.items():
        six = whole("-ac", "6", "-af", "pan=5.1|FL=FL|FR=FR|FC=0.5*FL+0.5*FR|BL=FL|BR=FR")
        add(f"six channels, then two.{kind}", put(lambda six=six, whole=whole: six + whole()), 23.9, **LOSSY)
        add(f"two channels, then six.{kind}", put(lambda six=six, whole=whole: whole() + six), 23.9, **LOSSY)
    for layout, count in {"6.1": 7, "7.0": 7, "7.1": 8}.items():
        pan = "|".join([f"pan={layout}", *(f"c{i}=0.5*c0+0.5*c1" for i in range(count))])
        add(f"{layout}.mov", put(lambda pan=pan: encode("mov", "-af", pan, "-c:a", "pcm_s16le")))
    add("misstated granules.mp3", put(lambda: misstated(bare())), 11.9, **LOSSY)

    def misstated(mp3: bytes) -> bytes:
        """In every 20th frame the last granule says that it is 3 bits shorter than it is, as GarageBand has it."""
        changed = bytearray(mp3)
        for at in frames(mp3)[10::20]:
            side = slice(at + 4, at + 36)  # 20 bits, then 59 for each granule, which begin with its length of 12
            shorter = int.from_bytes(mp3[side], "big") - (3 << 256 - 20 - 3 * 59 - 12)
            changed[side] = shorter.to_bytes(32, "big")
        return bytes(changed)

    changes = {"says": "changes to 48000 Hz at 12.0", **LOSSY}
    add("joined, zeros in the second.mp3", put(lambda: encode("mp3", *MP3) + overwritten(encode("mp3", *MP3), 0.5,
        bytes(4000))), 17.9, says="damaged at 18.0", **LOSSY)  # fmt: skip
    add("joined, noise in the second.mp3", put(lambda: encode("mp3", *MP3) + overwritten(encode("mp3", *MP3), 0.5,
        noise(3000))), 17.9, says="damaged at 18.0", **LOSSY)  # fmt: skip
    add("zeros between two.mp3", put(lambda: encode("mp3", *MP3) + bytes(3000) + encode("mp3", *MP3)), 23.9, **LOSSY)
    add("zeros in front.mp3", put(lambda: bytes(3000) + bare()), 11.9, **LOSSY)
    add("changes rate.mp3", put(lambda: bare() + tag(60) + bare(rate=48000)), 23.8, **changes)
    whole = functools.partial(encode, "mp3", *MP3)
    add("cut between frames.mp3", put(lambda: whole()[: frames(whole())[300]]), 7.7, says="cut off at 7.7", **LOSSY)
    add("zeros inside.mp3", put(lambda: overwritten(bare(), 0.5, bytes(4000))), 5.9, says="damaged at", **LOSSY)
    add("noise inside.mp3", put(lambda: overwritten(bare(), 0.5, noise(3000))), 5.9, says="damaged at", **LOSSY)
    add("bytes missing.mp3", put(lambda: removed(bare(), 0.5, 9000)), 5.9, says="damaged at", **LOSSY)
    add("zeros at its end.mp3", put(lambda: bare() + bytes(50_000)), 11.9, **LOSSY)
    add("cover at its end.mp3", put(lambda: encode("mp3", "-q:a", "2") + ape_tag(185_000)), 11.9, **LOSSY)
    add("tag at its end.ac3", put(lambda: encode("ac3", "-b:a", "256k") + END_TAG), 11.9, **LOSSY)
    add("junk at its end.mp3", put(lambda: encode("mp3", *MP3) + bytes(5000) + noise(999)), 11.9, **LOSSY)
    add("free format.mp3", put(lambda: b"".join(free_format(bare()))), refused="not readable as audio")

    def free_format(mp3: bytes) -> list[bytes]:
        at = frames(mp3)
        return [mp3[a : a + 2] + bytes([mp3[a + 2] & 15]) + mp3[a + 3 : b] for a, b in itertools.pairwise(at)]

    chain = {"says": "a second stream begins at 12.0", **LOSSY}
    vorbis, opus = (
        functools.partial(encode, "ogg", *VORBIS),
        functools.partial(encode, "opus", *OPUS, "-page_duration", "200000"),
    )
    serial = ("-serial_offset", "7")
    add("chained.ogg", put(lambda: vorbis() + encode("ogg", *VORBIS, *serial)), 23.9, **chain)
    add("chained.opus", put(lambda: opus() + encode("opus", *OPUS, *serial)), 23.9, **chain)
    ogg_flac = functools.partial(encode, "oga", "-c:a", "flac")
    add("chained.oga", put(lambda: ogg_flac() + ogg_flac(*serial)), 24, says="a second stream begins at")
    add("another codec behind it.ogg", put(lambda: vorbis() + opus(*serial)), 11.9, says="another format", **LOSSY)
    late = ("-output_ts_offset", "3.2")
    add("begins late.mka", put(lambda: encode("mka", *AAC, *late)), 11.9, **LOSSY)
    add("begins late.webm", put(lambda: encode("webm", *OPUS, *late)), 11.9, **LOSSY)
    # Used or not, as the version of FFmpeg has it.
    add("chained, another rate.ogg", put(lambda: vorbis() + encode("ogg", *VORBIS, *serial, rate=48000)), 11.9,
        says=" 12.00 s", **LOSSY)  # fmt: skip
    add("padded header.ogg", put(lambda: with_padded_setup(vorbis())), 11.9, **LOSSY)
    add("hole.ogg", put(lambda: removed(vorbis(), 0.5, 15_000)), 2, says="are missing at", **LOSSY)
    add("flipped.opus", put(lambda: overwritten(opus(), 0.5, b"\x77\x66")), 4, says="are missing at", **LOSSY)
    add("cut.opus", put(lambda: cut(opus(), 0.6)), 6, says="cut off", **LOSSY)
    add("cut.m4a", put(lambda: cut(encode("m4a", *AAC), 0.6)), refused="the index at its end is missing")
    add("cut.mov", put(lambda: cut(encode("mov", *AAC, "-movflags", "+faststart"), 0.6)), 6, says=" at ", **LOSSY)
    add("cut.webm", put(lambda: cut(encode("webm", *OPUS), 0.6)), 6, says="cut off at", **LOSSY)
    add("cut.aac", put(lambda: cut(encode("aac", *AAC), 0.6)), 6, says="damaged at", **LOSSY)
    add("zeros inside.aac", put(lambda: overwritten(encode("aac", *AAC), 0.6, bytes(4000))), 6, says="damaged", **LOSSY)
    add(
        "zeros inside.m4a", put(lambda: overwritten(encode("m4a", "-c:a", "alac"), 0.6, bytes(4000))), 6, says="damaged"
    )
    add("hole.webm", put(lambda: removed(encode("webm", *OPUS, "-cluster_time_limit", "1000"), 0.5, 20_000)), 4,
        says="are missing", **LOSSY)  # fmt: skip
    add(
        "zeros inside.oga", put(lambda: overwritten(encode("oga", "-c:a", "flac"), 0.8, bytes(4000))), 2, says="missing"
    )
    add("zeros inside.wv", put(lambda: overwritten(encode("wv"), 0.6, bytes(4000))), 5, says="damaged")

    for end, codec in {"wv": (), "wma": ("-b:a", "192k"), "m4a": AAC, "oga": ("-c:a", "flac")}.items():
        add(f"ID3 in front.{end}", put(lambda end=end, codec=codec: tag(3001) + encode(end, *codec)), 11.9, **LOSSY)

    def cover() -> tuple[str, ...]:
        """ffmpeg's options for the song with a picture of 1 x 1, as Ogg and Opus hold it: in a comment."""
        picture = struct.pack(">II9sIIIIII", 3, 9, b"image/png", 0, 1, 1, 24, 0, 100) + bytes(100)
        return "-metadata", f"METADATA_BLOCK_PICTURE={base64.b64encode(picture).decode()}"

    # Also those of which FFmpeg makes a second stream, of pictures.
    small = ("-f", "lavfi", "-i", "testsrc=size=32x32:rate=5:duration=12")
    for end, codec in {"ogg": VORBIS, "opus": (*OPUS, "-page_duration", "200000"), "oga": ("-c:a", "flac")}.items():
        add(f"cover.{end}", put(lambda end=end, codec=codec: encode(end, *codec, *cover())), 11.9, **LOSSY)
        add(f"cover, cut.{end}", put(lambda end=end, codec=codec: cut(encode(end, *codec, *cover()), 0.6)), 3,
            says="its last page is missing", **LOSSY)  # fmt: skip
    films = {"avi": MP3, "mkv": AAC, "flv": MP3, "webm": (*OPUS, "-c:v", "libvpx"), "wmv": ("-b:a", "192k"),
             "ogv": (*VORBIS, "-c:v", "libtheora"), "mts": ("-c:a", "ac3", "-f", "mpegts")}  # fmt: skip
    for end, codec in films.items():
        film_of = functools.partial(encode, end, *small, *codec)
        add(f"film.{end}", put(film_of), 11.9, **LOSSY)
        add(f"film, cut.{end}", put(lambda film_of=film_of: cut(film_of(), 0.6)), 5, says=" at ", **LOSSY)
    add(
        "211 channels.avi",
        put(lambda: many_channels(encode("avi", "-c:a", "pcm_s16le"))),
        refused="cannot be converted|no audio can be decoded",  # as the version of FFmpeg has it
    )

    def many_channels(avi: bytes) -> bytes:
        at = avi.index(b"strf") + 10
        return avi[:at] + b"\xd3\0" + avi[at + 2 :]

    add("pcm, cut.avi", put(lambda: cut(encode("avi", "-c:a", "pcm_s16le"), 0.6)), 6.9, says="cut off at")
    fragments = ("-movflags", "frag_keyframe+empty_moov", "-frag_duration", "2000000")
    add("fragments.mp4", put(lambda: encode("mp4", *AAC, *fragments)), 11.9, **LOSSY)
    add("fragments, cut.mp4", put(lambda: cut(encode("mp4", *AAC, *fragments), 0.6)), 6, says="damaged at", **LOSSY)
    if shutil.which("mpcenc"):
        add("musepack.mpc", put(lambda: musepack()), 11.9, **LOSSY)
        add("ID3 in front.mpc", put(lambda: tag(3001) + musepack()), 11.9, **LOSSY)
        add("cut.mpc", put(lambda: cut(musepack(), 0.6)), 6, says="cut off at", **LOSSY)

    @functools.cache
    def musepack() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder, "song.wav"))
            subprocess.run(["mpcenc", "--silent", f"{folder}/song.wav", f"{folder}/out.mpc"], check=True)
            return Path(folder, "out.mpc").read_bytes()

    @functools.cache
    def coded_as_pcm(kind: str, codec: str, *options: str) -> bytes:
        """A coded stream as the 16-bit stereo samples of a lossless file, as it stands on a DTS-CD."""
        coded = encode({"dca": "dts", "ac3": "spdif"}[codec], "-c:a", codec, "-strict", "-2", *options)
        samples = np.frombuffer(coded[: len(coded) // 4 * 4], "<i2").reshape(-1, 2)
        with tempfile.TemporaryDirectory() as folder:
            soundfile.write(f"{folder}/a.{kind}", samples, RATE)
            return Path(f"{folder}/a.{kind}").read_bytes()

    dts, spdif = ("dca", "-b:a", "1411200"), ("ac3", "-b:a", "448k", "-f", "spdif")
    add("DTS.wav", put(lambda: coded_as_pcm("wav", *dts)), 11.9, **LOSSY)
    add("S-PDIF.wav", put(lambda: coded_as_pcm("wav", *spdif)), 11.9, **LOSSY)
    for kind in ("flac", "aiff"):
        add(f"DTS.{kind}", put(lambda kind=kind: coded_as_pcm(kind, *dts)), refused="its samples are DTS")

    def stamps_go_back() -> bytes:
        """A WMA in which the stamps of four packets near its start are 90 ms too early, as in some healthy ones."""
        wma = bytearray(encode("wma", "-b:a", "192k"))
        # Offset 0 in its packet, 8 bytes about it: its size and its time in ms.
        for found in list(re.finditer(rb"\0{4}\x08.{4}(.{4})", bytes(wma), re.DOTALL))[3:7]:
            time = int.from_bytes(found[1], "little") - 90
            wma[found.start(1) : found.end(1)] = time.to_bytes(4, "little")
        return bytes(wma)

    add("stamps go back.wma", put(stamps_go_back), 11.9, **LOSSY)

    def piped() -> bytes:
        command = ["ffmpeg", "-nostdin", "-v", "error", "-i", "-", "-f", "flac", "-"]
        return subprocess.run(command, input=wav(), capture_output=True, check=True).stdout

    add("piped.flac", put(piped))
    add("piped, cut.flac", put(lambda: cut(piped(), 0.75)), 8, says="damaged at")
    add("piped, damaged.flac", put(lambda: overwritten(piped(), 0.75, bytes(512))), 8, says=" at ")
    add("film without sound.mp4", put(lambda: film()), refused="contains no audio")

    def film() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=size=32x32:duration=1", f"{folder}/a.mp4"]
            subprocess.run(command, check=True)
            return Path(f"{folder}/a.mp4").read_bytes()


# ------------------------------------------------------------------ what is no audio

UNREADABLE = {"refused": "not readable as audio"}
for ending in (
    "wav",
    "flac",
    "mp3",
    "ogg",
    "m4a",
    "amr",
    "dsf",
    "dff",
    "mpc",
    "ape",
    "spx",
    "tta",
    "wma",
    "mka",
    "aiff",
):
    add(f"text.{ending}", put(lambda: b"just a text\n" * 9), **UNREADABLE)
    add(f"zeros.{ending}", put(lambda: bytes(5000)), **UNREADABLE)
add("empty.wav", put(bytes), refused="empty file")
add("dangling link.wav", lambda path: path.symlink_to("nowhere.wav"), refused="No such file")
add("link to itself.wav", lambda path: path.symlink_to(path.name), refused="symbolic links")
add("named pipe.wav", lambda path: os.mkfifo(path), refused="not a regular file")
add("a folder.wav", lambda path: path.mkdir(), refused="a folder")
if os.geteuid() != 0:
    add("closed.wav", lambda path: (write(path), path.chmod(0)), refused="Permission denied")
for name, list_of in {"list of URLs.m4a": b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.mp3\n",
                      "concat.mp3": b"ffconcat version 1.0\nfile /etc/passwd\n"}.items():  # fmt: skip
    add(name, put(lambda list_of=list_of: list_of), refused=".")

# ------------------------------------------------------------------ headers that say what they like


def crafted(
    channels: int = 1, rate: int = 24000, align: int = 2, bits: int = 16, fmt_size: int = 16, extra: bytes = b""
) -> bytes:
    """A WAV of 60,000 samples with a header of one's choice; `extra` stands before the data."""
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    data = (song(2.5, 24000)[:, 0] * 32767).astype("<i2").tobytes()
    body = b"WAVEfmt " + struct.pack("<I", fmt_size) + fmt + extra + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = struct.pack("<I", 0x7FFFFF00)
CRAFTED: dict[str, Callable[[], bytes]] = {
    "65535 channels.wav": lambda: crafted(channels=65535, align=65534),
    "1024 channels.wav": lambda: crafted(channels=1024, align=2048),
    "no channels.wav": lambda: crafted(channels=0, align=0),
    "4 GHz.wav": lambda: crafted(rate=2**32 - 1),
    "0 Hz.wav": lambda: crafted(rate=0),
    "100 Hz.wav": lambda: crafted(rate=100),
    "no bits.wav": lambda: crafted(bits=0, align=0),
    "65535 bits.wav": lambda: crafted(bits=65535, align=65535),
    "giant fmt.wav": lambda: crafted(fmt_size=0x7FFFFFFF),
    "giant list.wav": lambda: crafted(extra=b"LIST" + HUGE + b"INFOINAM" + HUGE),
    "giant cue.wav": lambda: crafted(extra=b"cue " + HUGE + HUGE),
    "giant bext.wav": lambda: crafted(extra=b"bext" + HUGE),
    "giant tag.mp3": lambda: b"ID3\x03\x00\x00\x7f\x7f\x7f\x7fTIT2\x7f\xff\xff\xff\x00\x00" + bytes(3000),
    "giant atom.m4a": lambda: struct.pack(">I", 24) + b"ftypM4A " + bytes(12) + struct.pack(">I", 0x7FFFFFFF) + b"moov",
    "giant block.flac": lambda: b"fLaC\x04\xff\xff\xff" + bytes(200),
}

# FFmpeg 8 divides by zero where it finds no "(c)CRI" in an ADX, a format of games: the process that opens it ends.
DEADLY = bytes.fromhex("80000020031204020000ac440004ba0001f40300") + bytes(10) + b"(c)XRI" + (b"\0P" + b"!" * 16) * 400
