"""Decode videos into upright RGB frames at a steady rate, and detect damaged ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.data.video.colors import UnsupportedColors, to_upright_rgb
from dfer_dist.data.video.image import LFS_FAULT, LFS_START
from dfer_dist.data.video.packets import PacketInfo, scan_packets
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Major versions of PyAV that are known to give the same bytes, as in setup.cfg. Earlier ones
# convert colours otherwise.
PYAV_VERSIONS = (18,)
# Seconds by which times of a part of a video may be rounded.
_ROUNDED = 0.001
# Formats that make ffmpeg open other files: who sends a video must not choose what is read.
_PLAYLISTS = {"concat", "dash", "hls"}


class DamagedVideo(Exception):
    """A video that cannot be decoded to its end.

    Attributes
    ----------
    file : Path
    frames : int
        Number of frames decoded before the damage.
    reason : str
    """

    kind = "damaged video"

    def __init__(self, file: Path, frames: int, reason: str) -> None:
        super().__init__(f"{file}: {reason}; {frames} frames decoded")
        self.file = file
        self.frames = frames
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Path, int, str]]:
        """Pickle the arguments: worker processes of the packer send it to their parent."""
        return type(self), (self.file, self.frames, self.reason)


class UnsupportedVideo(DamagedVideo):
    """A video whose colours cannot be shown with 8 bits a channel, such as HDR."""

    kind = "unsupported video"


@dataclass
class Video:
    """A video file as an iterable of frames.

    Each iteration decodes the file again, on one thread, and holds one frame at a time. Frames
    are uint8 arrays [H, W, 3], RGB, all of the size of the first one, as a player shows them:
    rotated or mirrored by the display matrix in the file (as phones write it), with square pixels,
    opaque on black. Frames at uneven times are repeated or dropped to get a steady rate, the one of
    the median distance between two frames.

    A video has no checksums: damage that the codec cannot detect is not found.

    Attributes
    ----------
    path : Path
    max_bad_frames : float
        Percentage of the frames that may be missing or damaged. They are dropped.
    start, end : float, optional
        Yield the frames from and before these times only, seconds at the steady rate. All frames
        before the end are decoded, and later ones are not checked for damage.
    num_bad : int
        How many of them the last complete iteration has dropped.
    fault : str
        What was wrong with the first of them.

    Raises
    ------
    UserError
        On iteration, if PyAV is not installed, or in a version that gives other bytes.
    DamagedVideo
        On iteration, if the file cannot be opened, has no video, ends too early, or has a frame
        that does not decode cleanly, in more than ``max_bad_frames`` of its frames. All frames
        before the damage have been yielded by then, except perhaps the last.
    UnsupportedVideo
        On iteration, if it is HDR, or has colours that ffmpeg does not convert.
    """

    path: Path
    max_bad_frames: float = 0.0
    start: float | None = None
    end: float | None = None
    num_bad: int = field(default=0, init=False)
    fault: str = field(default="", init=False)

    def interval(self) -> float:
        """Return the seconds between two frames of an iteration, without decoding any.

        Raises
        ------
        UserError
            If PyAV is not installed, or in a version that gives other bytes.
        DamagedVideo
            If the file cannot be opened, has no video, or has no times of frames.
        """
        with _Decoding(self).report_damage() as (container, stream):
            interval = scan_packets(container, stream).interval
            if not interval:
                raise _InvalidVideo("it has no frame rate")
        return interval

    def seconds(self) -> float:
        """Return the duration that the packets tell, without decoding any.

        Raises
        ------
        UserError, DamagedVideo
            As :meth:`interval`.
        """
        with _Decoding(self).report_damage() as (container, stream):
            packets = scan_packets(container, stream)
        return packets.num_frames * packets.interval

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames."""
        decoding = _Decoding(self)
        with decoding.report_damage() as (container, stream):
            packets = scan_packets(container, stream)
        with decoding.report_damage() as (container, stream):
            # one thread: the packer decodes several clips in parallel
            stream.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
            frames = packets.resample(decoding.clean_frames(container, stream, packets))
            part = self._part(packets.interval)
            found = 0
            for image in to_upright_rgb(islice(frames, part.start, part.stop), stream):
                yield image
                found += 1
            self.num_bad = decoding.num_bad
            if found < len(part):
                # the video was decoded to its end
                self.num_bad = decoding.count_bad(packets)
            if not found:
                raise _InvalidVideo(f"it has no frame from {self.start or 0:g} s on")
            self.fault = decoding.fault

    def _part(self, interval: float) -> range:
        """Return the positions of the frames to yield."""
        if self.start is None and self.end is None:
            return range(sys.maxsize)
        if not interval:
            raise _InvalidVideo("it has no frame rate, and only a part of it is wanted")
        first, last = 0, sys.maxsize
        if self.start is not None:
            first = max(0, math.ceil((self.start - _ROUNDED) / interval))
        if self.end is not None:
            last = math.ceil((self.end - _ROUNDED) / interval)
        return range(first, max(first, last))


class _InvalidVideo(Exception):
    """What is wrong with a video; becomes the reason of :class:`DamagedVideo`."""


@dataclass
class _Decoding:
    """One iteration over a video: how many frames were decoded, how many were not, and why."""

    video: Video
    num_good: int = 0
    num_bad: int = 0
    fault: str = ""

    @contextmanager
    def report_damage(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the video; turn errors of its bytes into exceptions that name it."""
        av = _import_av()
        path = self.video.path
        options = {"format_whitelist": ",".join(sorted(av.formats_available - _PLAYLISTS))}
        try:
            # absolute: ffmpeg takes 12 of 12:30.mp4 for a protocol
            with av.open(str(path.absolute()), options=options) as container:
                stream = container.streams.best("video")
                if stream is None:
                    raise _InvalidVideo("it has no video")
                if stream.codec_context is None:
                    raise _InvalidVideo("its codec is not known to ffmpeg")
                yield container, stream
        except UnsupportedColors as e:
            raise UnsupportedVideo(path, 0, str(e)) from e
        except (av.error.FFmpegError, _InvalidVideo) as e:
            reason = _pointer_fault(path) or _reason(e)
            raise DamagedVideo(path, self.num_good, reason) from e

    def clean_frames(
        self, container: InputContainer, stream: VideoStream, packets: PacketInfo
    ) -> Iterator[VideoFrame]:
        """Yield the frames that decode cleanly; stop with an error at one bad frame too many."""
        av = _import_av()
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError as e:
                self._add_bad(_reason(e), packets)
                continue
            for frame in decoded:
                if frame.is_corrupt:
                    self._add_bad("a frame does not decode cleanly", packets)
                    continue
                self.num_good += 1
                yield frame

    def count_bad(self, packets: PacketInfo) -> int:
        """Return how many frames are missing or damaged.

        Raises
        ------
        _InvalidVideo
            If they are too many.
        """
        num_missing = packets.num_frames - self.num_good
        bad = max(self.num_bad, num_missing, int(packets.fault is not None))
        if bad:
            self.fault = (
                packets.fault or self.fault or f"its packets hold {packets.num_frames} frames"
            )
        if self._are_too_many(bad, packets) or not self.num_good:
            raise _InvalidVideo(self.fault or "it has no frames")
        return bad

    def _are_too_many(self, bad: int, packets: PacketInfo) -> bool:
        return 100 * bad > self.video.max_bad_frames * packets.num_frames

    def _add_bad(self, reason: str, packets: PacketInfo) -> None:
        self.num_bad += 1
        self.fault = self.fault or reason
        if self._are_too_many(self.num_bad, packets):
            raise _InvalidVideo(self.fault)


def _pointer_fault(path: Path) -> str | None:
    """Return what is wrong with a file that only points to a video; None for others."""
    with suppress(OSError), path.open("rb") as file:
        return LFS_FAULT if file.read(len(LFS_START)) == LFS_START else None
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _import_av() -> Any:
    try:
        import av
    except ImportError as e:
        raise UserError("decoding videos needs PyAV: pip install av") from e
    if int(av.__version__.partition(".")[0]) not in PYAV_VERSIONS:
        first, last = PYAV_VERSIONS[0], PYAV_VERSIONS[-1] + 1
        raise UserError(
            f"PyAV {av.__version__} is installed, which may show other colours than others have "
            f"packed: pip install 'av>={first},<{last}'"
        )
    return av
