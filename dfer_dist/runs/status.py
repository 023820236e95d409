"""The status of a fold in training: ``status.json``, with a record for each job."""

from __future__ import annotations

import logging
import os
import socket
import threading
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.provenance import other_packages
from dfer_dist.runs.records import AttemptRecord, FoldStatus
from dfer_dist.utils.errors import first_of

logger = logging.getLogger(__name__)

_MAX_SHOWN = 5  # packages in a warning
_KILLED = "it said nothing at its end: killed, or its machine was lost"


def package_mismatch(run: RunDir) -> str | None:
    """Return a warning if this machine's packages are not those the run was opened with."""
    file = run.environment
    other = other_packages(file.read_text(encoding="utf-8")) if file.exists() else []
    if not other:
        return None
    shown = first_of(other, _MAX_SHOWN, "; ")
    return f"{socket.gethostname()} has other packages than {file.name} of the run: {shown}"


class Phase(StrEnum):
    """What the ranks of an attempt do at the moment."""

    IMPORTS = "imports"  # before rank 0 has recorded the attempt
    WEIGHTS = "weights"
    FIRST_BATCH = "first batch"
    TRAINING = "training"
    TESTING = "testing"
    SAVING = "saving"


class Attempt:
    """The record of this job in ``status.json``.

    Parameters
    ----------
    fold : FoldDir
        The fold that is trained.
    world_size : int
        Number of ranks.
    writes : bool
        True on rank 0. The methods of other ranks do nothing.
    device : str, optional
        Name of the GPU or processor.
    device_type : str, optional
        ``cuda`` or ``cpu``.
    """

    def __init__(
        self,
        fold: FoldDir,
        world_size: int,
        writes: bool,
        device: str | None = None,
        device_type: str | None = None,
    ) -> None:
        self.path, self.writes = fold.status, writes
        # The watchdog's thread writes too.
        self._lock = threading.Lock()
        if not self.writes:
            return
        earlier = FoldStatus.read(self.path).attempts if self.path.exists() else []
        if earlier and not earlier[-1].ended:
            earlier = [*earlier[:-1], replace(earlier[-1], why=_KILLED)]
        own = AttemptRecord(
            job=os.environ.get("SLURM_JOB_ID"),
            array=os.environ.get("SLURM_ARRAY_JOB_ID"),
            nodes=os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname(),
            device=device,
            device_type=device_type,
            world_size=world_size,
            started=_now(),
        )
        self.status = FoldStatus("STARTING", None, [*earlier, own], Phase.WEIGHTS)
        self._write()

    def begin(self, step: int, steps: int, num_rolled_back: int) -> None:
        """Record that training starts.

        Parameters
        ----------
        step : int
            Steps done by earlier attempts.
        steps : int
            The step at which training ends.
        num_rolled_back : int
            Steps after the last checkpoint that are repeated.
        """
        self._update(
            "RUNNING",
            steps,
            Phase.FIRST_BATCH,
            from_step=step,
            steps_repeated=num_rolled_back,
        )

    def enter(self, phase: Phase) -> None:
        """Record what the ranks do now; nothing is written if they did it before."""
        if self.writes and phase != self.status.phase:
            self._update("RUNNING", phase=phase)

    def end(self, state: str, why: str, peak_bytes: int | None = None) -> None:
        """Record that the attempt is over; ``peak_bytes`` is the peak memory of rank 0."""
        self._update(state, ended=_now(), why=why, peak_bytes=peak_bytes)

    def _update(
        self, state: str, steps: int | None = None, phase: str = "", **of_attempt: Any
    ) -> None:
        if not self.writes:
            return
        with self._lock:
            *earlier, own = self.status.attempts
            attempts = [*earlier, replace(own, **of_attempt)]
            self.status = FoldStatus(state, steps or self.status.steps, attempts, phase)
            self._write()

    def _write(self) -> None:
        try:
            self.status.write(self.path)
        except OSError as e:
            # A full disk must not end the training: the status only informs.
            logger.warning("%s cannot be written: %s", self.path, e)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
