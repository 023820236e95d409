"""Films as they come: upright RGB frames at a steady rate, or word of what is damaged."""

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

_SLACK = 0.2  # seconds by which packets may end before the duration that the file declares
_PAUSE = 1.0  # seconds: a longer gap between two frames is a clock set anew, not a picture held


class DamagedVideo(Exception):
    """A film that cannot be read as a whole; names the file, how many frames were decoded and what is wrong."""

    def __init__(self, file: Path, frames: int, reason: str) -> None:
        super().__init__(f"{file}: {reason}; {frames} frames decoded")
        self.file, self.frames, self.reason = file, frames, reason

    def __reduce__(self) -> tuple[type, tuple[Path, int, str]]:
        return type(self), (
            self.file,
            self.frames,
            self.reason,
        )  # it crosses from the packer's workers


@dataclass(frozen=True)
class Video:
    """A film on disk. Each iteration decodes it anew, on one thread, and holds one frame at a time.

    Frames are uint8 arrays [H, W, 3], RGB, all of the first one's size. They stand as a player would show them: turned or
    mirrored as the file's display matrix says (telephones write one), and with square pixels. Where frames lie at uneven times,
    each is repeated or left out so that they come at a steady rate, that of the median distance between two frames.

    Iterating raises
    ----------------
    UserError
        If PyAV is not installed.
    DamagedVideo
        If the file cannot be opened, has no video, ends before it should, or holds a frame that does not decode cleanly.
        Frames before the damage have been given by then, but perhaps the last. A film carries no checksums: damage that the codec
        cannot notice passes.
    """

    path: Path

    def interval(self) -> float:
        """Seconds from one frame to the next, at the steady rate at which an iteration gives them. Nothing is decoded.

        Raises
        ------
        UserError
            If PyAV is not installed.
        DamagedVideo
            If the file cannot be opened, has no video, or does not tell the times of its frames.
        """
        av = _pyav()
        try:
            with av.open(str(self.path)) as container:
                interval = _survey(container, _video(container)).interval
            if not interval:
                raise _Fault("it does not tell how many frames a second it has")
        except (av.error.FFmpegError, _Fault) as e:
            raise DamagedVideo(self.path, 0, getattr(e, "strerror", None) or str(e)) from e
        return interval

    def __iter__(self) -> Iterator[np.ndarray]:
        av = _pyav()
        decoded = 0

        def count(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
            nonlocal decoded
            for frame in frames:
                if frame.is_corrupt:
                    raise _Fault("a frame does not decode cleanly")
                decoded += 1
                yield frame

        try:
            with av.open(str(self.path)) as container:
                times = _survey(container, _video(container))
            with av.open(str(self.path)) as container:
                stream = _video(container)
                stream.thread_type, stream.codec_context.thread_count = (
                    "SLICE",
                    1,
                )  # the packer runs clips side by side
                yield from _upright(times.steady(count(container.decode(stream))), stream)
            times.check(decoded)
        except (av.error.FFmpegError, _Fault) as e:
            raise DamagedVideo(self.path, decoded, getattr(e, "strerror", None) or str(e)) from e


class _Fault(Exception):
    """What is wrong with a film."""


def _pyav() -> Any:
    try:
        import av
    except ImportError as e:
        raise UserError("reading films needs PyAV: pip install 'dfer_dist[faces]'") from e
    return av


@dataclass(frozen=True)
class _Times:
    """What the packets say before any is decoded; times in the stream's units.

    ``frames``: how many frames should come, at least. ``tick``: the steady distance of frames, None where they keep it already. ``pause``:
    a gap that is none. ``interval``: the steady distance in seconds, 0 where it is not known. ``fault``: what is wrong with the packets.
    """

    frames: int
    tick: float | None
    pause: float
    interval: float
    fault: str | None

    def steady(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Frames at a steady rate: at each tick the frame whose time is nearest from below, half a tick of haste allowed."""
        if self.tick is None:
            yield from frames
            return
        held, start, last, place = None, 0.0, 0.0, 0
        for frame in frames:
            time = last if frame.pts is None else float(frame.pts)
            if (
                held is None or not 0 <= time - last <= self.pause
            ):  # the first frame, or a clock set anew
                if held is not None:
                    yield held
                start, place = time, 0
            else:
                now = math.floor((time - start) / self.tick + 0.5)
                yield from [held] * (now - place)
                place = now
            held, last = frame, time
        if held is not None:
            yield held

    def check(self, decoded: int) -> None:
        if self.fault:
            raise _Fault(self.fault)
        if decoded < self.frames or not decoded:
            raise _Fault(f"its packets hold {self.frames} frames")


def _video(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise _Fault("it has no video")
    return stream  # type: ignore[return-value]


def _survey(container: InputContainer, stream: VideoStream) -> _Times:
    """Read through all packets without decoding.

    A cut MP4 or AVI shows in its packets. Matroska and WebM just end, so the last packet of all streams is held against the declared
    duration. Frames before the first key frame cannot be decoded and are not expected.
    """
    base = stream.time_base or Fraction(1)
    stamps: set[int] = set()
    key: int | None = None
    end, fault = 0.0, None
    for packet in container.demux():
        if packet.is_corrupt:
            fault = "it is cut short or damaged"
        if packet.pts is None or packet.time_base is None:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and not packet.is_discard:
            key = packet.pts if key is None and packet.is_keyframe else key
            if key is not None and packet.pts >= key:
                stamps.add(packet.pts)
    gaps = np.diff(sorted(stamps))
    tick = float(np.median(gaps)) if len(gaps) else 0.0
    uneven = tick > 0 and bool((np.abs(gaps - tick) > tick / 2).any())
    missing = (container.duration or 0) / 1_000_000 - end
    if missing > _SLACK:
        fault = fault or f"it ends {missing:.1f} s before its declared end (cut short?)"
    # of even frames the mean: a container that rounds times to milliseconds has 60 frames a second at 16 or 17
    interval = tick if uneven else float(gaps.mean()) if len(gaps) else 0.0
    seconds = interval * float(base) or float(1 / stream.average_rate if stream.average_rate else 0)
    return _Times(
        len(stamps), tick if uneven else None, float(Fraction(_PAUSE) / base), seconds, fault
    )


def _upright(frames: Iterable[VideoFrame], stream: VideoStream) -> Iterator[np.ndarray]:
    """RGB arrays as a player shows the frames, all of the first one's size."""
    from av.video.reformatter import Interpolation

    how = (
        Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    )  # the same bytes on every processor
    size: tuple[int, int] | None = None
    for frame in frames:
        if size is None:
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0  # of one pixel
            size = round(frame.width * max(1.0, aspect)), round(frame.height * max(1.0, 1 / aspect))
        rgb = frame.reformat(*size, format="rgb24", interpolation=how, threads=1).to_ndarray()
        yield _turn(np.asarray(rgb), frame)


def _turn(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Apply a display matrix [[a, b, u], [c, d, v], [x, y, w]]: a point (p, q) is shown at (a p + c q, b p + d q).

    Quarter turns and mirror images only; anything between is taken for the nearest of them.
    """
    from av.sidedata.sidedata import Type

    side: Any = frame.side_data  # its stubs know another mapping
    if Type.DISPLAYMATRIX not in side:
        return image
    a, b, _, c, d, *_ = np.frombuffer(bytes(side[Type.DISPLAYMATRIX]), np.int32).tolist()
    right, down = a, d
    if abs(b) > abs(a):
        image, right, down = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])
