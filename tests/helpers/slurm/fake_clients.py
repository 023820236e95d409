"""A ``squeue`` and a ``scancel`` on PATH, which print and note what a test says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.slurm.squeue import QueuedJob
from tests.helpers.forked import Done, Forked
from tests.helpers.paths import DFER
from tests.helpers.slurm.run_folders import HOUR_AGO


def run_dfer(*arguments: object, width: str = "100") -> Done:
    """Run ``dfer`` on a terminal of this width, in the tests' own folder and environment."""
    command = [DFER, *map(str, arguments)]
    return Forked(command, os.environ | {"COLUMNS": width}).wait(timeout=60)


def squeue_line(row: str) -> str:
    """Return a row ``ID STATE NODES LEFT STARTED REASON`` as squeue prints it; ``-`` is empty.

    A minute of its time is used.
    """
    fields = row.split(" ", 5)
    fields.insert(4, "1:00")
    return "|".join(fields).replace("-|", "|")


def parse_rows(*rows: str) -> dict[str, QueuedJob]:
    """Return the queue of these rows."""
    jobs = [QueuedJob(*squeue_line(row).split("|")) for row in rows]
    return {job.id: job for job in jobs}


def fold_row(fold: int, reason: str = "", started: str = HOUR_AGO) -> str:
    """Return the row of a fold's job: waiting for ``reason``, or running."""
    if reason:
        return f"120_{fold - 1} PENDING - 10:00 N/A {reason}"
    return f"120_{fold - 1} RUNNING n[1-2] 9:59 {started} None"


@dataclass
class FakeSlurm:
    """What ``squeue`` prints, and what ``scancel`` was called with."""

    root: Path

    def set_queue(self, *rows: str, status: int = 0) -> None:
        """Let squeue print these rows and exit with ``status``."""
        new = self.root / "new"
        new.write_text("\n".join([str(status), *map(squeue_line, rows)]) + "\n")
        new.replace(self.root / "rows")

    @property
    def cancelled(self) -> list[str]:
        """The jobs that were cancelled."""
        file = self.root / "cancelled"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """An empty queue."""
    root = tmp_path / "bin"
    root.mkdir()
    scripts = {
        "squeue": f'echo "$@" > {root}/asked\nexec < {root}/rows\nread status\ncat\nexit $status\n',
        "scancel": f'echo "$@" >> {root}/cancelled\n',
    }
    for name, text in scripts.items():
        (root / name).write_text(f"#!/bin/sh\n{text}")
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DFER_DEBUG", "")
    slurm = FakeSlurm(root)
    slurm.set_queue()
    return slurm
