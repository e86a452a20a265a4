"""Decode audio files with FFmpeg (PyAV), strictly and forward only, up to the first error. Used by reading.py.

Damage is a decoder error, a timestamp later than the end of the previous frame (a gap), or less audio than the
container states. A timestamp that goes back starts another stream, which is also used.
"""

from __future__ import annotations

import errno
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
GATHERED = 1 << 16  # samples converted at once: handling each 1,000-sample frame in Python would halve the speed
# Containers whose header states the length. For others FFmpeg estimates it from the file size.
STATES_LENGTH = re.compile(r"mov|matroska|ogg|asf|flv|wav|w64|aiff|caf|flac|tta|wv|ape|mpc|dsf")
# The size of a file, in the headers of AVI and ASF (WMA).
STATED_BYTES = re.compile(
    rb"RIFF(.{4})|0&\xb2u.*\xa1\xdc\xab\x8cG\xa9\xcf\x11\x8e\xe4\0\xc0\x0c Se.{24}(.{8})", re.DOTALL
)
# The number of frames in an MP3's header frame. FFmpeg doesn't always trust it and may estimate instead.
MP3_FRAMES = re.compile(rb"(?:Xing|Info)\0{3}[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})|VBRI.{10}(.{4})", re.DOTALL)
OGG_PAGE = re.compile(rb"OggS\0(.)(.{8})", re.DOTALL)  # the flags and the end time of a page (RFC 3533)
LENGTH_SLACK_S = 0.25
HELD_BACK_S = 5
# A timestamp may differ this much from the end of the previous frame. Opus skips 6.5 ms at a start. The timestamps of
# Vorbis, and of files converted from it, are up to 10 ms off. The header frame of a joined MP3 takes 26 ms.
STAMP_SLACK_S = 0.04
RESTART_S = 1  # a timestamp that goes back by less does not start a new stream

av.logging.set_level(av.logging.PANIC)  # keeps the terminal clean, and errors still carry FFmpeg's text


class FfmpegReader(AudioReader):
    """Reads all formats but PCM and FLAC. Raises AudioError if there is no audio."""

    _promised_s = 0.0  # the length that the header states
    _decoded_s = 0.0
    _end_s: float | None = None  # end of the last frame by its timestamp
    _origin_s = 0.0  # timestamp of the first sample
    _others_end_s = 0.0  # end of the video, in a film
    _incomplete_at_s = -1.0  # where the last incomplete packet was
    _packet_end: int | None = None  # end of the last packet, in bytes
    _in_tag = False  # whether the last packet was a part of a tag
    _pending_error: av.FFmpegError | None = None  # damage if more audio follows
    _ends_early = False

    def __init__(self, path: str | os.PathLike, file: BinaryIO, start: int = 0):
        """`start`: the first byte of the audio file, after a tag in front of it."""
        self._file, self._start = file, start
        # FFmpeg never takes an absolute path for a URL. The protocol whitelist keeps playlists from opening URLs.
        source = os.path.abspath(path)
        if start:
            source = f"subfile,,start,{start},end,0,,:{source}"
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
        # If a layout lists positions, PyAV frees it twice and crashes. Positions don't matter here, so drop them.
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
        try:
            for packet in self._own_packets():
                for frame in self._decode_packet(packet):
                    if not self._follows(frame):
                        return
                    yield frame
        except av.FFmpegError as error:
            if isinstance(error, av.error.PatchWelcomeError) or error.errno == errno.EINVAL:
                self.problem = f"changes to another format at {self._at()}; nothing after that is used"
            elif error is self._pending_error or not self._is_whole():
                self._ends_early = True
                reason = error.strerror if error.errno == errno.EIO else "damaged"
                self.problem = f"{reason} at {self._at()}; nothing after that is used"
            return
        self.problem = self._problem_at_end()

    def _own_packets(self) -> Iterator[av.Packet]:
        """The packets of the audio stream. Those of other streams only tell how long the file should be."""
        for packet in self._container.demux():
            if packet.is_corrupt:
                self._incomplete_at_s = self._decoded_s
            if packet.stream.index == self._stream.index:
                if self._packet_end is None and self._container.format.name == "mp3":
                    self._promised_s = self._stated_in_mp3(packet)
                if packet.pos:
                    self._packet_end = self._start + packet.pos + packet.size
                yield packet
            elif packet.pts is not None and not self._stream.duration:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._others_end_s = max(self._others_end_s, end_s)

    def _decode_packet(self, packet: av.Packet) -> list[av.AudioFrame]:
        """Decode a packet. Raises FFmpegError at damage.

        Some errors are not damage: half a frame at the start of a capture, tags, and data between two joined files.
        Zeros, or anything after the stated end, are damage only if more audio follows.
        """
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            content = bytes(packet)
            self._in_tag = self._in_tag or content.startswith(TAGS) or content[-128:].startswith(b"TAG")
            at_border = not self._decoded_s or abs(self._promised_s - self._decoded_s) <= LENGTH_SLACK_S
            if not self._in_tag and not at_border:
                if content.strip(b"\0") and not self._is_whole():
                    raise
                self._pending_error = error
            self._end_s = None  # the timestamps also count what was not decoded
            return []
        if frames and self._pending_error:
            raise self._pending_error
        self._in_tag = False
        return frames

    def _follows(self, frame: av.AudioFrame) -> bool:
        """Compare a frame's timestamp with the end of the previous frame. False if something is missing between."""
        start_s, duration_s = frame.time, frame.samples / frame.sample_rate
        if start_s is not None and self._end_s is not None:
            # Timestamps may go back a little and catch up, so also compare with the duration decoded so far.
            if start_s - max(self._end_s, self._origin_s + self._decoded_s) > STAMP_SLACK_S:
                self._ends_early = True
                self.problem = f"{start_s - self._end_s:.2f} s are missing at {self._at()}; nothing after that is used"
                return False
            if self._end_s - start_s > RESTART_S:
                self.problem = f"a second stream begins at {self._at()} and is used too"
                self._end_s = None
        start_s = self._end_s if start_s is None else start_s
        if start_s is not None:
            if self._end_s is None:
                self._origin_s = start_s - self._decoded_s
            self._end_s = start_s + duration_s
        self._decoded_s += duration_s
        return True

    def _problem_at_end(self) -> str:
        """What is wrong with a file that was decoded to its end; "" if nothing."""
        # Timestamps may start later than 0, and the stated length may count from there or from 0.
        if self._promised_s - max(self._decoded_s, self._end_s or 0, self._others_end_s) > LENGTH_SLACK_S:
            return f"cut off at {self._at()} of {self._promised_s:.2f} s"
        if self.problem:
            return self.problem
        if (not self._promised_s and self._decoded_s - self._incomplete_at_s < LENGTH_SLACK_S) or self._lacks_bytes():
            return f"cut off at {self._at()}"
        if self._container.format.name == "ogg":
            return self._ogg_problem(self._end_s or 0)
        return "" if self._packet_end is None else second_file(self._file, self._packet_end)

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
