"""What the packets of a video tell before any is decoded: how many frames, when, and how whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from dfer_dist.data.video.truncation import find_truncation

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Seconds by which packets may end before the duration that the file declares.
_DURATION_TOLERANCE = 0.2

# Seconds. A longer gap between two frames is a reset of the clock, not a frame that is held.
_MAX_GAP = 1.0


@dataclass(frozen=True)
class PacketInfo:
    """What the packets of a video tell before any is decoded.

    Attributes
    ----------
    num_frames : int
        Number of frames to expect at least, those after the end of a truncated file included.
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


def scan_packets(container: InputContainer, stream: VideoStream) -> PacketInfo:
    """Read all packets without decoding.

    Packets of a truncated MP4 or AVI are marked corrupt. Matroska and WebM just end, so the last
    packet of all streams is compared with the declared duration. ASF, MPEG-TS and Ogg are checked
    by :func:`~dfer_dist.data.video.truncation.find_truncation`. Frames before the first key frame
    cannot be decoded and are not expected.
    """
    times: set[int] = set()
    first_key: int | None = None
    end, fault = 0.0, find_truncation(container.name, container.format.name)
    for packet in container.demux():
        if packet.is_corrupt:
            fault = fault or "it is truncated or damaged"
        if packet.pts is None or packet.time_base is None:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and not packet.is_discard:
            if first_key is None and packet.is_keyframe:
                first_key = packet.pts
            if first_key is not None and packet.pts >= first_key:
                times.add(packet.pts)
    time_base = stream.time_base or Fraction(1)
    interval, period = _steady_rate(times)
    interval *= float(time_base)
    if not interval and stream.average_rate:
        interval = float(1 / stream.average_rate)
    num_frames = len(times)
    missing = (container.duration or 0) / 1_000_000 - end
    if missing > _DURATION_TOLERANCE:
        fault = fault or f"it ends {missing:.1f} s before its declared end (truncated?)"
        num_frames += round(missing / interval) if interval else 0
    return PacketInfo(num_frames, period, float(Fraction(_MAX_GAP) / time_base), interval, fault)


def _steady_rate(times: set[int]) -> tuple[float, float | None]:
    """Return the distance of frames at the steady rate, and again if they must be resampled to it.

    The distance is 0 for less than two frames.
    """
    gaps = np.diff(sorted(times))
    if not len(gaps):
        return 0.0, None
    # The mean is the better distance of even gaps: a container that rounds times to milliseconds
    # has 60 frames per second at gaps of 16 or 17.
    mean, median = float(gaps.mean()), float(np.median(gaps))
    if median > 0 and (np.abs(gaps - median) > median / 2).any():
        return median, median
    return mean, None
