"""How fast training goes, and how much of it is waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Clips per second and the share of time spent waiting for data since the last :meth:`read`."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._clips = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside the block counts as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def count(self, clips: int) -> None:
        """Add clips trained over all ranks."""
        self._clips += clips

    def read(self) -> dict[str, float]:
        """Figures since the last call, and start over."""
        elapsed = time.perf_counter() - self._start
        figures = {"clips_per_second": self._clips / elapsed, "data_wait_share": self._waited / elapsed}
        self._restart()
        return figures
