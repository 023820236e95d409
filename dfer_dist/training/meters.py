"""Speed of training and detection of loss spikes."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Snapshot(NamedTuple):
    """Counters of a :class:`Meter` at one moment."""

    time: float
    clips: int
    seconds_waited: float


class Throughput(NamedTuple):
    """Clips a second over all ranks, and the share of time that this rank waited for data."""

    clips_per_second: float
    data_wait_share: float


class Meter:
    """Measures clips a second, time spent waiting for data and the length of steps."""

    def __init__(self) -> None:
        # Of the last steps; validation and saves between steps do not count.
        self._step_seconds: deque[float] = deque(maxlen=100)
        self._step_start = 0.0
        self._clips = 0
        self._seconds_waited = 0.0

    def start_step(self) -> None:
        """Mark the beginning of a step."""
        self._step_start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for data."""
        before = time.perf_counter()
        yield
        self._seconds_waited += time.perf_counter() - before

    def end_step(self, clips: int) -> None:
        """Mark the end of a step on ``clips`` clips over all ranks."""
        self._clips += clips
        self._step_seconds.append(time.perf_counter() - self._step_start)

    @property
    def longest_step(self) -> float:
        """Seconds of the longest of the last hundred steps."""
        return max(self._step_seconds, default=0.0)

    @property
    def mean_step(self) -> float:
        """Mean seconds of the last hundred steps."""
        return statistics.fmean(self._step_seconds or [0.0])

    def snapshot(self) -> Snapshot:
        """Return the counters, as the beginning of a window for :meth:`since`."""
        return Snapshot(time.perf_counter(), self._clips, self._seconds_waited)

    def since(self, start: Snapshot) -> Throughput:
        """Return the throughput since ``start``."""
        now = self.snapshot()
        elapsed = now.time - start.time
        return Throughput(
            clips_per_second=(now.clips - start.clips) / elapsed,
            data_wait_share=(now.seconds_waited - start.seconds_waited) / elapsed,
        )


class SpikeDetector:
    """Detects losses far above the last :data:`WINDOW`.

    A loss is a spike if it exceeds their median by :data:`NUM_DEVIATIONS` standard deviations,
    estimated robustly from the median absolute deviation, and by a tenth of the median at least.

    Parameters
    ----------
    recent : sequence of float
        Losses to start with, such as :attr:`recent` of another detector.
    """

    WINDOW = 50
    MIN_LOSSES = 10  # before any loss is called a spike
    NUM_DEVIATIONS = 6.0

    def __init__(self, recent: Sequence[float] = ()) -> None:
        self.recent = list(recent)

    def is_spike(self, loss: float) -> bool:
        """Judge a loss and add it to the window; a loss that is not finite is neither."""
        if not math.isfinite(loss):
            return False
        spike = len(self.recent) >= self.MIN_LOSSES and loss > self.limit()
        self.recent = [*self.recent, loss][-self.WINDOW :]
        return spike

    def limit(self) -> float:
        """Return the loss above which the next one is a spike."""
        median = statistics.median(self.recent)
        # 1.4826 times the median absolute deviation estimates the deviation of a normal law.
        deviation = 1.4826 * statistics.median(abs(x - median) for x in self.recent)
        return median + max(self.NUM_DEVIATIONS * deviation, 0.1 * abs(median))
