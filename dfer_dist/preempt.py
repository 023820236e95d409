"""Leaving in time: a signal sets a flag, the training loop looks at it between steps."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: saved, and to be started again

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class LeaveFlag:
    """Set when the job is told to leave. The handler does nothing else: saving is collective and cannot run in there."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def install(self) -> LeaveFlag:
        """Take over SIGTERM, SIGUSR2 and SIGINT in this process."""
        for number in _SIGNALS:
            signal.signal(number, self._set)
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal is not None
