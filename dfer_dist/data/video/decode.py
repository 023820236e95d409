"""Decode videos into upright RGB frames at a steady rate, and detect damaged ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Seconds by which packets may end before the duration that the file declares.
_DURATION_TOLERANCE = 0.2

# Seconds. A longer gap between two frames is a reset of the clock, not a frame that is held.
_MAX_GAP = 1.0


class DamagedVideo(Exception):
    """A video that cannot be decoded to its end.

    Attributes
    ----------
    file : Path
    frames : int
        Number of frames decoded before the damage.
    reason : str
    """

    def __init__(self, file: Path, frames: int, reason: str) -> None:
        super().__init__(f"{file}: {reason}; {frames} frames decoded")
        self.file = file
        self.frames = frames
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Path, int, str]]:
        """Pickle the arguments: worker processes of the packer send it to their parent."""
        return type(self), (self.file, self.frames, self.reason)


@dataclass(frozen=True)
class Video:
    """A video file as an iterable of frames.

    Each iteration decodes the file again, on one thread, and holds one frame at a time. Frames
    are uint8 arrays [H, W, 3], RGB, all of the size of the first one, as a player shows them:
    rotated or mirrored by the display matrix in the file (as phones write it), with square pixels.
    Frames at uneven times are repeated or dropped to get a steady rate, the one of the median
    distance between two frames.

    A video has no checksums: damage that the codec cannot detect is not found.

    Attributes
    ----------
    path : Path

    Raises
    ------
    UserError
        On iteration, if PyAV is not installed.
    DamagedVideo
        On iteration, if the file cannot be opened, has no video, ends too early, or has a frame
        that does not decode cleanly. All frames before the damage have been yielded by then,
        except perhaps the last.
    """

    path: Path

    def interval(self) -> float:
        """Return the seconds between two frames of an iteration, without decoding any.

        Raises
        ------
        UserError
            If PyAV is not installed.
        DamagedVideo
            If the file cannot be opened, has no video, or has no times of frames.
        """
        av = _import_av()
        try:
            with av.open(str(self.path)) as container:
                interval = _scan_packets(container, _video_stream(container)).interval
            if not interval:
                raise _InvalidVideo("it has no frame rate")
        except (av.error.FFmpegError, _InvalidVideo) as e:
            raise DamagedVideo(self.path, 0, getattr(e, "strerror", None) or str(e)) from e
        return interval

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames."""
        av = _import_av()
        decoded = 0

        def count(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
            nonlocal decoded
            for frame in frames:
                if frame.is_corrupt:
                    raise _InvalidVideo("a frame does not decode cleanly")
                decoded += 1
                yield frame

        try:
            with av.open(str(self.path)) as container:
                packets = _scan_packets(container, _video_stream(container))
            with av.open(str(self.path)) as container:
                stream = _video_stream(container)
                # one thread: the packer decodes several clips in parallel
                stream.thread_type = "SLICE"
                stream.codec_context.thread_count = 1
                frames = packets.resample(count(container.decode(stream)))
                yield from _to_upright_rgb(frames, stream)
            packets.check(decoded)
        except (av.error.FFmpegError, _InvalidVideo) as e:
            raise DamagedVideo(self.path, decoded, getattr(e, "strerror", None) or str(e)) from e


class _InvalidVideo(Exception):
    """What is wrong with a video; becomes the reason of :class:`DamagedVideo`."""


def _import_av() -> Any:
    try:
        import av
    except ImportError as e:
        raise UserError("decoding videos needs PyAV: pip install av") from e
    return av


@dataclass(frozen=True)
class _PacketInfo:
    """What the packets of a video tell before any is decoded.

    Attributes
    ----------
    num_frames : int
        Number of frames to expect at least.
    period : float or None
        Distance of frames at the steady rate, in units of the stream; None if they have it already.
    max_gap : float
        Longer gaps are resets of the clock, in units of the stream.
    interval : float
        Seconds between two frames at the steady rate; 0 if unknown.
    fault : str or None
        What is wrong with the packets.
    """

    num_frames: int
    period: float | None
    max_gap: float
    interval: float
    fault: str | None

    def resample(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Repeat or drop frames for a steady rate: each starts half a tick before its time."""
        if self.period is None:
            yield from frames
            return
        held, start, last, position = None, 0.0, 0.0, 0
        for frame in frames:
            time = last if frame.pts is None else float(frame.pts)
            if held is None:
                start = time
            elif 0 <= time - last <= self.max_gap:
                tick = math.floor((time - start) / self.period + 0.5)
                yield from [held] * (tick - position)
                position = tick
            else:
                # the clock was reset
                yield held
                start, position = time, 0
            held, last = frame, time
        if held is not None:
            yield held

    def check(self, decoded: int) -> None:
        """Raise :class:`_InvalidVideo` if packets are damaged, or too few frames were decoded."""
        if self.fault:
            raise _InvalidVideo(self.fault)
        if decoded < self.num_frames or not decoded:
            raise _InvalidVideo(f"its packets hold {self.num_frames} frames")


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise _InvalidVideo("it has no video")
    return stream  # type: ignore[return-value]


def _scan_packets(container: InputContainer, stream: VideoStream) -> _PacketInfo:
    """Read all packets without decoding.

    Packets of a truncated MP4 or AVI are marked corrupt. Matroska and WebM just end, so the last
    packet of all streams is compared with the declared duration. Frames before the first key frame
    cannot be decoded and are not expected.
    """
    times: set[int] = set()
    first_key: int | None = None
    end, fault = 0.0, None
    for packet in container.demux():
        if packet.is_corrupt:
            fault = "it is truncated or damaged"
        if packet.pts is None or packet.time_base is None:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and not packet.is_discard:
            if first_key is None and packet.is_keyframe:
                first_key = packet.pts
            if first_key is not None and packet.pts >= first_key:
                times.add(packet.pts)
    missing = (container.duration or 0) / 1_000_000 - end
    if missing > _DURATION_TOLERANCE:
        fault = fault or f"it ends {missing:.1f} s before its declared end (truncated?)"
    time_base = stream.time_base or Fraction(1)
    interval, period = 0.0, None
    gaps = np.diff(sorted(times))
    if len(gaps):
        # The mean is the better interval of even gaps: a container that rounds times to
        # milliseconds has 60 frames per second at gaps of 16 or 17.
        interval, median = float(gaps.mean()), float(np.median(gaps))
        if median > 0 and (np.abs(gaps - median) > median / 2).any():
            interval = period = median
    interval *= float(time_base)
    if not interval and stream.average_rate:
        interval = float(1 / stream.average_rate)
    max_gap = float(Fraction(_MAX_GAP) / time_base)
    return _PacketInfo(len(times), period, max_gap, interval, fault)


def _to_upright_rgb(frames: Iterable[VideoFrame], stream: VideoStream) -> Iterator[np.ndarray]:
    """Yield RGB arrays as a player shows the frames, all of the size of the first one."""
    from av.video.reformatter import Interpolation

    # bit-exact: the same bytes on every processor
    interpolation = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    size: tuple[int, int] | None = None
    for frame in frames:
        if size is None:
            pixel_aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            width = round(frame.width * max(1.0, pixel_aspect))
            size = width, round(frame.height * max(1.0, 1 / pixel_aspect))
        rgb = frame.reformat(*size, format="rgb24", interpolation=interpolation, threads=1)
        yield _apply_display_matrix(np.asarray(rgb.to_ndarray()), frame)


def _apply_display_matrix(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Rotate or mirror an image as the display matrix of its frame says.

    The matrix [[a, b, u], [c, d, v], [x, y, w]] shows a point (p, q) at (a p + c q, b p + d q).
    Only quarter turns and mirror images are applied; other matrices are rounded to these.
    """
    from av.sidedata.sidedata import Type

    # the stubs of PyAV have another type for it
    side_data: Any = frame.side_data
    if Type.DISPLAYMATRIX not in side_data:
        return image
    matrix = np.frombuffer(bytes(side_data[Type.DISPLAYMATRIX]), np.int32).tolist()
    a, b, _, c, d = matrix[:5]
    right, down = a, d
    if abs(b) > abs(a):
        image = image.swapaxes(0, 1)
        right, down = c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])
