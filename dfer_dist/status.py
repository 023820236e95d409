"""``status.json`` of a fold: its state, and a line for each job that worked on it."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from typing import Any

from dfer_dist.rundir import FoldDir, read_json, write_json


class Attempt:
    """This job's line in ``status.json``. ``writes`` is rank 0's."""

    def __init__(self, fold: FoldDir, world_size: int, writes: bool) -> None:
        self.path, self.writes = fold.status, writes
        if not self.writes:
            return
        self.attempts = read_json(self.path)["attempts"] if self.path.exists() else []
        job = os.environ.get("SLURM_JOB_ID")
        nodes = os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()
        self.attempts.append(
            {"job": job, "nodes": nodes, "world_size": world_size, "started": _now(), "ended": None, "why": None}
        )
        self.status: dict[str, Any] = {"state": "STARTING", "steps": None, "attempts": self.attempts}
        write_json(self.path, self.status)

    def begin(self, steps: int) -> None:
        """The loop starts; ``steps`` is where it will end."""
        self._set("RUNNING", steps=steps)

    def end(self, state: str, why: str) -> None:
        """The attempt is over."""
        if self.writes:
            self.attempts[-1] |= {"ended": _now(), "why": why}
        self._set(state)

    def _set(self, state: str, **more: Any) -> None:
        if self.writes:
            self.status |= {"state": state, **more}
            write_json(self.path, self.status)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
