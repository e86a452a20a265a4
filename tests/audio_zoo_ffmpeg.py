"""The part of the audio zoo that needs the ffmpeg program. Files are made when a test needs them."""

from __future__ import annotations

import base64
import functools
import io
import re
import struct
import subprocess
from collections.abc import Callable

import av
import numpy as np
import soundfile
from audio_files import END_TAG, EXACT, RATE, SECONDS, Animal, cut, encode, id3_tag, overwritten, removed, wav

FFMPEG_ZOO: dict[str, Animal] = {}


def add(name: str, make: Callable[[], bytes], seconds: float = 11.9, snr_db: float = 30, **expected: object) -> None:
    """A file from its bytes; unless stated, its codec is lossy."""
    assert name not in FFMPEG_ZOO, name
    FFMPEG_ZOO[name] = Animal(lambda path: path.write_bytes(make()), seconds, snr_db, **expected)


AAC = ("-c:a", "aac", "-aac_coder", "fast", "-b:a", "192k")
MP3 = ("-c:a", "libmp3lame", "-b:a", "128k")
VORBIS, OPUS = ("-c:a", "libvorbis"), ("-c:a", "libopus")
PAGES = ("-page_duration", "200000")  # of Opus, as other encoders write them
LOSSLESS = {"seconds": SECONDS, "snr_db": EXACT}

mp3 = functools.partial(encode, "mp3", *MP3)
bare_mp3 = functools.partial(mp3, "-write_xing", "0", "-id3v2_version", "0")
vorbis = functools.partial(encode, "ogg", *VORBIS)
opus = functools.partial(encode, "opus", *OPUS, *PAGES)
ogg_flac = functools.partial(encode, "oga", "-c:a", "flac")

# ------------------------------------------------------------------ whole files

for end, codec in {"m4a": AAC, "aac": AAC, "mka": AAC, "webm": OPUS, "opus": OPUS, "wma": ("-b:a", "192k"),
                   "ac3": ("-b:a", "256k"), "mp3": MP3}.items():  # fmt: skip
    add(f"by ffmpeg.{end}", functools.partial(encode, end, *codec))
for end, codec in {"m4a": ("-c:a", "alac"), "tta": (), "wv": (), "oga": ("-c:a", "flac")}.items():
    add(f"lossless.{end}", functools.partial(encode, end, *codec), **LOSSLESS)
# libsndfile reads the floats of the first as integers, and the block headers of the second as samples.
add("floats.w64", lambda: encode("w64", "-c:a", "pcm_f32le"), **LOSSLESS)
add("blocks.voc", lambda: encode("voc"), **LOSSLESS)
add("eight channels.m4a", lambda: encode("m4a", "-ac", "8", *AAC))
seven = "|".join(["pan=6.1", *(f"c{channel}=0.5*c0+0.5*c1" for channel in range(7))])
add("6.1.mov", lambda: encode("mov", "-af", seven, "-c:a", "pcm_s16le"), SECONDS, 75)
add("mp3 inside.wav", lambda: encode("wav", *MP3))
add("cover in front.flac", lambda: id3_tag(300_000) + encode("flac"), **LOSSLESS)
add("ID3 in front.wv", lambda: id3_tag(3001) + encode("wv"), **LOSSLESS)
add("ID3 in front.m4a", lambda: id3_tag(3001) + encode("m4a", *AAC))
add("begins late.webm", lambda: encode("webm", *OPUS, "-output_ts_offset", "3.2"))
fragments = ("-movflags", "frag_keyframe+empty_moov", "-frag_duration", "2000000")
add("fragments.mp4", lambda: encode("mp4", *AAC, *fragments))


def stamps_go_back() -> bytes:
    """A WMA in which the timestamps of four packets are 90 ms too early, as in some undamaged files."""
    wma = bytearray(encode("wma", "-b:a", "192k"))
    # Offset 0 in its packet, then 8 bytes: its size and its time in ms.
    for found in list(re.finditer(rb"\0{4}\x08.{4}(.{4})", bytes(wma), re.DOTALL))[3:7]:
        time = int.from_bytes(found[1], "little") - 90
        wma[found.start(1) : found.end(1)] = time.to_bytes(4, "little")
    return bytes(wma)


def with_padded_setup(ogg: bytes) -> bytes:
    """Vorbis with extra bytes after its setup header. libvorbis ignores them, but FFmpeg refuses the file."""
    page = ogg.index(b"OggS", 4)
    start = page + 27 + ogg[page + 26]
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


def coded_as_pcm(kind: str, codec: str, *options: str) -> bytes:
    """A coded stream stored as the 16-bit stereo samples of a lossless file, as on a DTS CD."""
    coded = encode({"dca": "dts", "ac3": "spdif"}[codec], "-c:a", codec, "-strict", "-2", *options)
    samples = np.frombuffer(coded[: len(coded) // 4 * 4], "<i2").reshape(-1, 2)
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format=kind)
    return content.getvalue()


add("stamps go back.wma", stamps_go_back)
add("padded header.ogg", lambda: with_padded_setup(vorbis()))
dts = ("dca", "-b:a", "1411200")
add("DTS.wav", lambda: coded_as_pcm("wav", *dts))
add("S-PDIF.wav", lambda: coded_as_pcm("wav", "ac3", "-b:a", "448k", "-f", "spdif"))
add("DTS.flac", lambda: coded_as_pcm("flac", *dts), refused="its samples are DTS")

# ------------------------------------------------------------------ MP3


def ape_tag(size: int) -> bytes:
    """A header, `size` bytes, and a footer; the footer alone tells FFmpeg that there is a tag."""
    header = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 32 + size, 0, 5 << 29)
    return header + bytes(size) + header[:20] + struct.pack("<I8x", 1 << 31)


def frames(mp3: bytes) -> list[int]:
    """The positions of the frames of a 44.1 kHz, 128 kbit/s MP3, including its header frame if it has one."""
    at, found = mp3.index(b"\xff\xfb"), []
    while at + 4 <= len(mp3) and mp3[at : at + 2] == b"\xff\xfb":
        found.append(at)
        at += 144 * 128000 // 44100 + (mp3[at + 2] >> 1 & 1)
    return found


def without_count() -> bytes:
    """An MP3 whose header frame states a size but no number of frames."""
    whole = mp3()
    flags = whole.index(b"Info") + 7
    return whole[:flags] + b"\x0e\0\1\0\0" + whole[flags + 5 :]


def misstated(mp3: bytes) -> bytes:
    """An MP3 in which the last granule of every 20th frame understates its size by 3 bits, as GarageBand's do."""
    changed = bytearray(mp3)
    for at in frames(mp3)[10::20]:
        side = slice(at + 4, at + 36)  # 20 bits, then 59 for each granule, which begin with its length of 12
        shorter = int.from_bytes(mp3[side], "big") - (3 << 256 - 20 - 3 * 59 - 12)
        changed[side] = shorter.to_bytes(32, "big")
    return bytes(changed)


add("tags.mp3", lambda: id3_tag(900) + mp3() + ape_tag(600) + END_TAG)
add("tag says too little.mp3", lambda: id3_tag(900, 60) + bare_mp3())
add("lyrics.mp3", lambda: bare_mp3() + b"LYRICSBEGIN" + b"la \xff\xfb la " * 99 + END_TAG)
add("has no count.mp3", without_count)
add("misstated granules.mp3", lambda: misstated(bare_mp3()))
add("zeros at its end.mp3", lambda: bare_mp3() + bytes(50_000))
add("junk at its end.mp3", lambda: mp3() + bytes(5000) + np.random.default_rng(1).bytes(999))
add("tag at its end.ac3", lambda: encode("ac3", "-b:a", "256k") + END_TAG)
add("cut between frames.mp3", lambda: mp3()[: frames(mp3())[300]], 7.7, says="cut off at 7.7")
add("zeros inside.mp3", lambda: overwritten(bare_mp3(), 0.5, bytes(4000)), 5.9, says="damaged at")
add("bytes missing.mp3", lambda: removed(bare_mp3(), 0.5, 9000), 5.9, says="damaged at")

# ------------------------------------------------------------------ several files in one

add("joined.mp3", lambda: mp3() + END_TAG + id3_tag(60) + mp3(), 23.9)
add("zeros between two.mp3", lambda: mp3() + bytes(3000) + mp3(), 23.9)
add("mono, then stereo.mp3", lambda: bare_mp3("-ac", "1") + bare_mp3(), 23.9)
add("stereo, then mono.mp3", lambda: bare_mp3() + bare_mp3("-ac", "1"), 23.9)
add("zeros in the second.mp3", lambda: mp3() + overwritten(mp3(), 0.5, bytes(4000)), 17.9, says="damaged at 18.0")
add("changes rate.mp3", lambda: bare_mp3() + bare_mp3(rate=48000), 23.8, says="changes to 48000 Hz at 12.0")
SIX_CHANNELS = ("-ac", "6", "-af", "pan=5.1|FL=FL|FR=FR|FC=0.5*FL+0.5*FR|BL=FL|BR=FR")
two_channels = functools.partial(encode, "ac3", "-b:a", "448k")
add("two channels, then six.ac3", lambda: two_channels() + two_channels(*SIX_CHANNELS), 23.9)
SERIAL = ("-serial_offset", "7")
add("chained.ogg", lambda: vorbis() + vorbis(*SERIAL), 23.9, says="a second stream begins at 12.0")
add("chained.opus", lambda: opus() + encode("opus", *OPUS, *SERIAL), 23.9, says="a second stream begins at 12.0")
add("chained.oga", lambda: ogg_flac() + ogg_flac(*SERIAL), 24, EXACT, says="a second stream begins at")
add("another codec behind it.ogg", lambda: vorbis() + opus(*SERIAL), says="another format")
# The second stream is used or not, depending on the version of FFmpeg.
add("chained, another rate.ogg", lambda: vorbis() + vorbis(*SERIAL, rate=48000), says=" 12.00 s")

# ------------------------------------------------------------------ damage in containers

add("hole.ogg", lambda: removed(vorbis(), 0.5, 15_000), 2, says="are missing at")
add("flipped.opus", lambda: overwritten(opus(), 0.5, b"\x77\x66"), 4, says="are missing at")
add("cut.opus", lambda: cut(opus(), 0.6), 6, says="cut off")
add("cut.m4a", lambda: cut(encode("m4a", *AAC), 0.6), refused="the index at its end is missing")
add("cut.mov", lambda: cut(encode("mov", *AAC, "-movflags", "+faststart"), 0.6), 6, says=" at ")
add("cut.webm", lambda: cut(encode("webm", *OPUS), 0.6), 6, says="cut off at")
add("cut.aac", lambda: cut(encode("aac", *AAC), 0.6), 6, says="damaged at")
add("cut, mp3.avi", lambda: cut(encode("avi", *MP3), 0.6), 6.9, says="cut off at")
add("cut, pcm.avi", lambda: cut(encode("avi", "-c:a", "pcm_s16le"), 0.6), 6.9, EXACT, says="cut off at")
add("cut, fragments.mp4", lambda: cut(encode("mp4", *AAC, *fragments), 0.6), 6, says="damaged at")
add("zeros inside.aac", lambda: overwritten(encode("aac", *AAC), 0.6, bytes(4000)), 6, says="damaged")
add("zeros inside.m4a", lambda: overwritten(encode("m4a", "-c:a", "alac"), 0.6, bytes(4000)), 6, EXACT, says="damaged")
add("zeros inside.oga", lambda: overwritten(ogg_flac(), 0.8, bytes(4000)), 2, EXACT, says="missing")
add("flipped.tta", lambda: overwritten(encode("tta"), 0.6, b"\x55"), 7, EXACT, says="damaged at")
add("zeros inside.wv", lambda: overwritten(encode("wv"), 0.6, bytes(4000)), 5, EXACT, says="damaged")
clusters = ("-cluster_time_limit", "1000")
add("hole.webm", lambda: removed(encode("webm", *OPUS, *clusters), 0.5, 20_000), 4, says="are missing")


@functools.cache
def piped() -> bytes:
    """A FLAC of unknown length."""
    command = ["ffmpeg", "-v", "error", "-i", "-", "-f", "flac", "-"]
    return subprocess.run(command, input=wav(), capture_output=True, check=True).stdout


add("piped.flac", piped, **LOSSLESS)
add("piped, cut.flac", lambda: cut(piped(), 0.75), 8, EXACT, says="damaged at")
add("piped, damaged.flac", lambda: overwritten(piped(), 0.75, bytes(512)), 8, EXACT, says=" at ")

# ------------------------------------------------------------------ pictures and films


def cover() -> tuple[str, ...]:
    """ffmpeg's options for a 1 x 1 picture in a comment, as in Ogg and Opus. FFmpeg treats it as a stream."""
    picture = struct.pack(">II9sIIIIII", 3, 9, b"image/png", 0, 1, 1, 24, 0, 100) + bytes(100)
    return "-metadata", f"METADATA_BLOCK_PICTURE={base64.b64encode(picture).decode()}"


for end, codec in {"ogg": VORBIS, "opus": (*OPUS, *PAGES), "oga": ("-c:a", "flac")}.items():
    with_cover = functools.partial(encode, end, *codec, *cover())
    add(f"cover.{end}", with_cover)
    add(f"cover, cut.{end}", lambda make=with_cover: cut(make(), 0.6), 3, says="its last page is missing")
SMALL_VIDEO = ("-f", "lavfi", "-i", "testsrc=size=32x32:rate=5:duration=12")
for end, codec in {"avi": MP3, "mkv": AAC, "webm": (*OPUS, "-c:v", "libvpx"), "wmv": ("-b:a", "192k"),
                   "mts": ("-c:a", "ac3", "-f", "mpegts")}.items():  # fmt: skip
    film = functools.partial(encode, end, *SMALL_VIDEO, *codec)
    add(f"film.{end}", film)
    add(f"film, cut.{end}", lambda film=film: cut(film(), 0.6), 5, says=" at ")
silent_film = functools.partial(encode, "mp4", *SMALL_VIDEO, "-map", "1")
add("film without sound.mp4", silent_film, refused="contains no audio")


def many_channels() -> bytes:
    avi = encode("avi", "-c:a", "pcm_s16le")
    at = avi.index(b"strf") + 10
    return avi[:at] + b"\xd3\0" + avi[at + 2 :]


# PyAV before version 18 cannot open such a stream. Later versions open it but cannot convert it.
is_opened = int(av.__version__.split(".")[0]) >= 18
reason = "its samples cannot be converted" if is_opened else "not readable as audio: no audio can be decoded"
add("211 channels.avi", many_channels, refused=reason)
