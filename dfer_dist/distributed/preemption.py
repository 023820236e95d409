"""Leaving in time: a signal sets a flag, or a deadline comes near; the training loop looks at both between steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: saved, and to be started again
TIME_IS_UP = "time is up"

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_MARGIN = 30.0  # seconds before a deadline at which everything is over: closing the tracking run and the processes takes some


class PreemptionHandler:
    """True when the job is told to leave. The handler does nothing else: saving is collective and cannot run in there."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.deadline = float("inf")  # unix time
        self.need = 0.0  # seconds that leaving would take now, as the loop measures them

    def install(self) -> PreemptionHandler:
        """Take over SIGTERM, SIGUSR2 and SIGINT in this process."""
        for number in _SIGNALS:
            signal.signal(number, self._set)
        return self

    def set_deadline(self, deadline: float | None) -> None:
        """Leave before unix time ``deadline``, or before Slurm ends the job (``SLURM_JOB_END_TIME``), whichever comes first."""
        ends = [
            t
            for t in (deadline, float(os.environ.get("SLURM_JOB_END_TIME") or "inf"))
            if t is not None
        ]
        self.deadline = min(ends)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    @property
    def why(self) -> str | None:
        """The signal's name, or that time is up; None while there is no reason to leave."""
        if self.signal is None and time.time() + self.need + _MARGIN > self.deadline:
            return TIME_IS_UP
        return self.signal

    def __bool__(self) -> bool:
        return self.why is not None
