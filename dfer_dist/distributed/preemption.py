"""Preemption: a signal or a deadline asks the training loop to save and exit."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Self

# EX_TEMPFAIL of sysexits.h: the state is saved and the job can be started again.
EXIT_PREEMPTED = 75
TIME_IS_UP = "time is up"

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
# Seconds before the deadline at which all must be done: closing the tracking run and the processes
# takes some.
_MARGIN = 30.0


class Preempted(Exception):
    """Training was interrupted on all ranks and its state is saved."""


class PreemptionHandler:
    """Records that this process is asked to exit.

    The signal handler only records the signal: saving is collective and cannot run inside it. The
    training loop looks at :attr:`preempted` between steps.

    Attributes
    ----------
    signal : str or None
        Name of the last signal received.
    deadline : float
        Unix time at which the process must have exited.
    seconds_needed : float
        Seconds that saving and exiting would take now, as measured by the training loop.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.deadline = float("inf")
        self.seconds_needed = 0.0

    def install(self) -> Self:
        """Handle SIGTERM, SIGUSR2 and SIGINT in this process; return the handler."""
        for number in _SIGNALS:
            signal.signal(number, self._record)
        return self

    def set_deadline(self, deadline: float | None) -> None:
        """Set the deadline to ``deadline`` (Unix time) or the end of the Slurm job, if earlier."""
        job_end = float(os.environ.get("SLURM_JOB_END_TIME") or "inf")
        self.deadline = job_end if deadline is None else min(deadline, job_end)

    @property
    def preempted(self) -> bool:
        """Whether the process should save and exit."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """The signal's name or :data:`TIME_IS_UP`; None while there is no reason to exit."""
        if self.signal is not None:
            return self.signal
        is_late = time.time() + self.seconds_needed + _MARGIN > self.deadline
        return TIME_IS_UP if is_late else None

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
