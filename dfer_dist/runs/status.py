"""What a person reads about a fold while it runs: lines in its log, and ``status.json`` with a line for each job that worked on it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from datetime import datetime
from typing import Any

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.provenance import other_packages
from dfer_dist.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

_SHOWN = 5  # packages on a line


def package_mismatch(run: RunDir) -> str | None:
    """A line about this machine, if its packages are not those the run was opened with."""
    other = (
        other_packages(run.environment.read_text(encoding="utf-8"))
        if run.environment.exists()
        else []
    )
    if not other:
        return None
    more = f"; and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    return f"{socket.gethostname()} has other packages than {run.environment.name} of the run: {'; '.join(other[:_SHOWN])}{more}"


class Attempt:
    """This job's line in ``status.json``. ``writes`` is rank 0's; the methods of other ranks do nothing."""

    def __init__(
        self, fold: FoldDir, world_size: int, writes: bool, device: str | None = None
    ) -> None:
        self.path, self.writes = fold.status, writes
        self._lock = threading.Lock()  # the watchdog's thread writes too
        if not self.writes:
            return
        self.attempts = read_json(self.path)["attempts"] if self.path.exists() else []
        if self.attempts and not self.attempts[-1]["ended"]:
            self.attempts[-1]["why"] = "it said nothing at its end: killed, or its machine was lost"
        job = os.environ.get("SLURM_JOB_ID")
        nodes = os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()
        place = {
            "job": job,
            "array": os.environ.get("SLURM_ARRAY_JOB_ID"),
            "nodes": nodes,
            "device": device,
        }
        line = {**place, "world_size": world_size, "from_step": None, "undone_steps": None}
        self.attempts.append({**line, "started": _now(), "ended": None, "why": None})
        self.status: dict[str, Any] = {
            "state": "STARTING",
            "steps": None,
            "attempts": self.attempts,
        }
        self._write()

    def begin(self, step: int, steps: int, num_rolled_back: int) -> None:
        """The loop goes on after ``step`` steps, doing ``num_rolled_back`` of an earlier attempt again; ``steps`` is where it will end."""
        if self.writes:
            self.attempts[-1] |= {"from_step": step, "undone_steps": num_rolled_back}
        self._set("RUNNING", steps=steps)

    def end(self, state: str, why: str, peak_bytes: int | None = None) -> None:
        """The attempt is over; ``peak_bytes`` is the most memory that rank 0 used."""
        if self.writes:
            self.attempts[-1] |= {"ended": _now(), "why": why, "peak_bytes": peak_bytes}
        self._set(state)

    def _set(self, state: str, **more: Any) -> None:
        if self.writes:
            self.status |= {"state": state, **more}
            self._write()

    def _write(self) -> None:
        try:
            with self._lock:
                write_json(self.path, self.status)
        except OSError as e:  # a full disk; the state is only what people look at
            logger.warning(f"{self.path} cannot be written: {e}")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
