"""What Slurm says of this user's jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_FORMAT = "%i|%T|%N|%L|%r"


@dataclass(frozen=True)
class Queued:
    """A job in the queue: ``state`` and ``reason`` in Slurm's words, ``nodes`` in its short form, ``left`` of its time."""

    id: str
    state: str
    nodes: str
    left: str
    reason: str


def queue() -> dict[str, Queued] | None:
    """This user's jobs by id, elements of arrays each; None where Slurm does not answer."""
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format", _FORMAT], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode:
        return None
    jobs = [Queued(*line.strip().split("|", 4)) for line in asked.stdout.splitlines() if line.count("|") >= 4]
    return {job.id: job for job in jobs}


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs out of the queue; those that are gone already are no fault."""
    if jobs:
        subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
