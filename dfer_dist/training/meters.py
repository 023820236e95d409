"""How training goes: its speed, how much of it is waiting for data, and losses that leap."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Meter:
    """Clips per second and the share of time spent waiting for data since the last :meth:`read`."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=100)  # of the last steps
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._clips = 0

    def begin(self) -> None:
        """A step begins."""
        self._begun = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside the block counts as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def count(self, clips: int) -> None:
        """A step is over: add its clips over all ranks."""
        self._clips += clips
        self._seconds.append(time.perf_counter() - self._begun)

    @property
    def longest(self) -> float:
        """Seconds of the longest of the last hundred steps, tests and saves between them not counted."""
        return max(self._seconds, default=0.0)

    def read(self) -> dict[str, float]:
        """Figures since the last call, and start over."""
        elapsed = time.perf_counter() - self._start
        figures = {
            "clips_per_second": self._clips / elapsed,
            "data_wait_share": self._waited / elapsed,
        }
        self._restart()
        return figures


class Spikes:
    """Marks losses that leap out of the last :data:`WINDOW`.

    A loss is a spike if it lies above their median by :data:`TIMES` of their standard deviation, taken robustly from the
    median distance to the median, and by a tenth of the median at least. ``recent`` may be saved and given back.
    """

    WINDOW = 50
    FEWEST = 10  # losses before anything is called a spike
    TIMES = 6.0

    def __init__(self, recent: Sequence[float] = ()) -> None:
        self.recent = list(recent)

    def is_spike(self, loss: float) -> bool:
        """Judge a step's loss and take it into the window; one that is not finite is no spike, it is told otherwise."""
        if not math.isfinite(loss):
            return False
        spike = len(self.recent) >= self.FEWEST and loss > self.limit()
        self.recent = [*self.recent, loss][-self.WINDOW :]
        return spike

    def limit(self) -> float:
        """The loss above which the next one is a spike."""
        middle = statistics.median(self.recent)
        spread = 1.4826 * statistics.median(abs(x - middle) for x in self.recent)
        return middle + max(self.TIMES * spread, 0.1 * abs(middle))
