"""Decode audio files with FFmpeg (PyAV), strictly and forward only, up to the first error. Used by reading.py.

Damage is a decoder error, a timestamp later than the end of the previous frame (a gap), or less audio than the
container states. A timestamp that goes back starts another stream, which is also used.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np

from audio.base import SLACK_BYTES, TAGS, UNKNOWN_BYTES, AudioError, AudioReader, second_file

# Makes FFmpeg's decoders report damage instead of concealing it. "bitstream" would also mute granules of MP3s whose
# encoder misstated their size, as GarageBand does.
STRICT = {"err_detect": "crccheck+explode"}
GATHERED = 1 << 16  # samples converted at once: handling each frame of 1,000 in Python would halve the speed
# Containers whose header states the length. For others FFmpeg estimates it from the file size.
STATES_LENGTH = re.compile(r"mov|matroska|ogg|asf|flv|wav|w64|aiff|caf|flac|tta|wv|ape|mpc|dsf")
# The size of a file, in the headers of AVI and ASF (WMA).
STATED_BYTES = re.compile(
    rb"RIFF(.{4})|0&\xb2u.*\xa1\xdc\xab\x8cG\xa9\xcf\x11\x8e\xe4\0\xc0\x0c Se.{24}(.{8})", re.DOTALL
)
# The number of frames in an MP3's header frame. FFmpeg doesn't always trust it and may estimate instead.
MP3_FRAMES = re.compile(rb"(?:Xing|Info)\0{3}[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})|VBRI.{10}(.{4})", re.DOTALL)
OGG_PAGE = re.compile(rb"OggS\0(.)(.{8})", re.DOTALL)  # the flags and the end time of a page (RFC 3533)
MUSEPACK_INDEX = re.compile(rb"(MPCK.{,99})SO(.{2,9}AP)", re.DOTALL)  # points to the seek table
LENGTH_SLACK_S = 0.25
HELD_BACK_S = 5
# A timestamp may differ this much from the end of the previous frame. Opus skips 6.5 ms at a start. Vorbis, and files
# converted from it, alternate by a quarter of the window, 10 ms. The header frame of a joined MP3 takes 26 ms.
STAMP_SLACK_S = 0.04
RESTART_S = 1  # a timestamp that goes back by less does not start a new stream

av.logging.set_level(av.logging.PANIC)  # keeps the terminal clean, and errors still carry FFmpeg's text


class FfmpegReader(AudioReader):
    """Reads all formats but PCM and FLAC. Raises AudioError if there is no audio."""

    _promised_s = 0.0  # the length that the header states
    _decoded_s = 0.0
    _ends_early = False

    def __init__(self, path: str | os.PathLike, file: BinaryIO, start: int = 0):
        """`start`: the first byte of the audio file, after a tag in front of it."""
        self._file, self._start = file, start
        # FFmpeg never takes an absolute path for a URL. The protocol whitelist keeps playlists from opening URLs.
        source: str | BinaryIO = os.path.abspath(path)
        if start:
            source = f"subfile,,start,{start},end,0,,:{source}"
        file.seek(start)
        if file.read(4) == b"MPCK":
            # FFmpeg reads nothing if the file was cut off before its seek table. Renaming "SO" hides the table.
            file.seek(start)
            source = io.BytesIO(MUSEPACK_INDEX.sub(rb"\1ZZ\2", file.read(), count=1))
        try:
            self._container = av.open(
                source, metadata_errors="ignore", container_options={"protocol_whitelist": "file,subfile"}
            )
        except (av.FFmpegError, ValueError) as error:
            file.seek(start + 4)
            if "moov atom not found" in str(error) and file.read(4) in (b"ftyp", b"mdat", b"wide", b"free"):
                raise AudioError("cut off: the index at its end is missing") from error
            raise AudioError(_reason(error)) from error
        try:
            self._open_stream()
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def _open_stream(self) -> None:
        streams = self._container.streams.audio
        if not streams:
            raise AudioError("contains no audio")
        self._stream = next((stream for stream in streams if stream.codec_context is not None), None)
        if self._stream is None:
            raise AudioError("its audio is protected or in a format that FFmpeg does not know")
        codec = self._stream.codec_context
        codec.options, codec.thread_count = STRICT, 1
        # PyAV frees a layout that is a list of positions twice, which crashes the process. Positions don't matter here.
        if channels := (layout := codec.layout).nb_channels:
            codec.layout = f"{channels} channels"
        del layout  # only now, because it owned the list
        total_s = (self._container.duration or 0) / av.time_base
        own_s = float(self._stream.duration * self._stream.time_base) if self._stream.duration else 0.0
        self.duration_s = min(filter(None, [own_s, total_s]), default=0.0)
        if STATES_LENGTH.search(self._container.format.name):
            self._promised_s = self.duration_s
        frames = self._decode()
        if (self._container.format.name, codec.name) == ("ogg", "flac"):
            frames = self._hold_back(frames)
        first = next(frames, None)
        if first is None:
            raise AudioError(f"not readable as audio: {self.problem or 'no audio can be decoded'}")
        self.sample_rate = first.sample_rate  # the container may state half of it (HE-AAC)
        self._frames = itertools.chain([first], frames)

    def _decode(self) -> Iterator[av.AudioFrame]:
        """Decode up to the first error, and describe it in `problem`."""
        end = packet_end = None  # end of the last frame by its timestamp, s; end of the last packet in the file, bytes
        origin = 0.0  # timestamp of the first sample, s
        others_end, incomplete_at = 0.0, -1.0  # end of a film's pictures, s; position of the last incomplete packet, s
        in_tag, pending = False, None
        try:
            for packet in self._container.demux():
                if packet.is_corrupt:
                    incomplete_at = self._decoded_s
                if packet.stream.index != self._stream.index:
                    if packet.pts is not None and not self._stream.duration:
                        others_end = max(others_end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    continue
                if packet_end is None and self._container.format.name == "mp3":
                    self._promised_s = self._stated_in_mp3(packet)
                packet_end = self._start + packet.pos + packet.size if packet.pos else packet_end
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    # Some errors are not damage: half a frame at the start of a capture, tags, and data between two
                    # joined files; also zeros, or anything after the stated end, if no audio follows.
                    content = bytes(packet)
                    in_tag = in_tag or content.startswith(TAGS) or content[-128:].startswith(b"TAG")
                    at_border = not self._decoded_s or abs(self._promised_s - self._decoded_s) <= LENGTH_SLACK_S
                    if not in_tag and not at_border:
                        if content.strip(b"\0") and not self._is_whole():
                            raise
                        pending = error
                    end = None  # the timestamps also count what was not decoded
                    continue
                if frames and pending:
                    raise pending
                in_tag = False
                for frame in frames:
                    start = frame.time
                    # Timestamps may go back a little and catch up, so also compare with the duration decoded so far.
                    if None not in (start, end) and start - max(end, origin + self._decoded_s) > STAMP_SLACK_S:
                        self._ends_early = True
                        self.problem = f"{start - end:.2f} s are missing at {self._at()}; nothing after that is used"
                        return
                    if None not in (start, end) and end - start > RESTART_S:
                        self.problem = f"a second stream begins at {self._at()} and is used too"
                        end = None
                    start = end if start is None else start
                    if start is not None:
                        origin = start - self._decoded_s if end is None else origin
                        end = start + frame.samples / frame.sample_rate
                    self._decoded_s += frame.samples / frame.sample_rate
                    yield frame
        except av.FFmpegError as error:
            if isinstance(error, av.error.PatchWelcomeError) or error.errno == errno.EINVAL:
                self.problem = f"changes to another format at {self._at()}; nothing after that is used"
            elif error is pending or not self._is_whole():
                self._ends_early = True
                reason = error.strerror if error.errno == errno.EIO else "damaged"
                self.problem = f"{reason} at {self._at()}; nothing after that is used"
            return
        # Timestamps may start later than 0, and the stated length may count from there or from 0.
        if self._promised_s - max(self._decoded_s, end or 0, others_end) > LENGTH_SLACK_S:
            self.problem = f"cut off at {self._at()} of {self._promised_s:.2f} s"
        elif self.problem:
            return
        elif (not self._promised_s and self._decoded_s - incomplete_at < LENGTH_SLACK_S) or self._lacks_bytes():
            self.problem = f"cut off at {self._at()}"
        elif self._container.format.name == "ogg":
            self.problem = self._ogg_problem(end or 0)
        elif packet_end is not None:
            self.problem = second_file(self._file, packet_end)

    def _stated_in_mp3(self, packet: av.Packet) -> float:
        """The length in seconds stated by the header frame before an MP3's first packet; 0 if there is none."""
        position = packet.pos or 0
        self._file.seek(self._start + max(0, position - 3000))
        stated = MP3_FRAMES.search(self._file.read(min(3000, position)))
        frame_s = float((packet.duration or 0) * packet.time_base)
        return int.from_bytes(stated[1] or stated[2], "big") * frame_s if stated else 0.0

    def _lacks_bytes(self) -> bool:
        self._file.seek(self._start)
        stated = STATED_BYTES.match(self._file.read(4096))
        size = int.from_bytes(stated[1] or stated[2], "little") if stated else 0
        return size < UNKNOWN_BYTES and size - os.fstat(self._file.fileno()).st_size > SLACK_BYTES

    def _hold_back(self, frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
        """Delay the frames of Ogg FLAC, where a gap shows in the timestamps one page (65,307 bytes) late.

        At a gap, the delayed frames are dropped.
        """
        held: deque[av.AudioFrame] = deque()
        for frame in frames:
            held.append(frame)
            if sum(frame.samples for frame in held) > HELD_BACK_S * frame.sample_rate:
                yield held.popleft()
        if not self._ends_early:
            yield from held

    def _at(self) -> str:
        return f"{self._decoded_s:.2f} s"

    def _is_whole(self) -> bool:
        """Whether the length stated in the header has been decoded. What follows is not music."""
        return 0 < self._promised_s <= self._decoded_s + LENGTH_SLACK_S

    def _ogg_problem(self, end: float) -> str:
        """A message if the last page is not marked as the last, or ends later than the decoded audio; else ""."""
        self._file.seek(max(0, os.fstat(self._file.fileno()).st_size - (1 << 17)))  # a page has at most 65,307 bytes
        flags, time = next(reversed(OGG_PAGE.findall(self._file.read())), (b"\4", bytes(8)))
        stated = float(int.from_bytes(time, "little", signed=True) * self._stream.time_base)
        streams = [s for s in self._container.streams if not s.disposition & av.stream.Disposition.attached_pic]
        if flags[0] & 4 and (stated - end <= LENGTH_SLACK_S or len(streams) > 1):
            return ""
        return f"cut off at {self._at()}: its last page is missing"

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            for (rate, *_), frames in itertools.groupby(self._frames, _kind):
                if rate != self.sample_rate:
                    self.problem = f"changes to {rate} Hz at {self._at()}; both parts are used"
                yield from self._blocks(frames)
        except av.FFmpegError as error:  # from the resampler, which takes at most 64 channels
            if not self.seconds:
                raise AudioError(f"its samples cannot be converted ({error.strerror})") from error
            self.problem = f"samples after {self.seconds:.2f} s cannot be converted and are not used"

    def _blocks(self, frames: Iterator[av.AudioFrame]) -> Iterator[np.ndarray]:
        """Convert frames of one format to mono blocks. A FIFO and a resampler each take only one format."""
        fifo, resampler = av.AudioFifo(), None
        for frame in itertools.chain(frames, [None]):
            if frame is not None:
                frame.pts = None  # already checked in _decode
                fifo.write(frame)
            while (gathered := fifo.read(GATHERED if frame else 0)) is not None:
                # Use packed samples, because reading planar ones with 8 channels crashes the process.
                resampler = resampler or av.AudioResampler("flt", gathered.layout, self.sample_rate)
                for packed in resampler.resample(gathered):
                    channels = packed.layout.nb_channels
                    values = np.frombuffer(packed.planes[0], np.float32)[: packed.samples * channels]
                    self.seconds += packed.samples / self.sample_rate
                    yield self._mono(values.reshape(-1, channels))


def _kind(frame: av.AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _reason(error: Exception) -> str:
    """Why FFmpeg cannot open a file."""
    if isinstance(error, av.error.InvalidDataError):
        return "not readable as audio: FFmpeg does not know its format, or it is damaged at the start"
    return f"not readable as audio: {getattr(error, 'strerror', None) or error}"
