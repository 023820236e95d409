"""How far a fold is, from its own files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldStatus

# less than a checkpoint or a whole message of a rank needs
_FULL_DISK = 1 << 16


def read_status(fold: FoldDir) -> FoldStatus:
    """Return the status of a fold, an empty one before its first attempt."""
    return FoldStatus.read(fold.status) if fold.status.exists() else FoldStatus()


def is_done(fold: FoldDir) -> bool:
    """Return whether a fold has a result and was closed.

    A kill may come between the two, before the tracking server has the result.
    """
    return fold.result.exists() and read_status(fold).state == "DONE"


def last_error(fold: FoldDir, log_sizes: Mapping[Path, int]) -> str:
    """Return the line that says why an attempt failed.

    Parameters
    ----------
    log_sizes : mapping from Path to int
        Bytes that earlier attempts left in each log.
    """
    lines: list[str] = []
    for log in sorted(fold.root.glob("log*.txt")):
        new = log.read_bytes()[log_sizes.get(log, 0) :]
        lines += new.decode(errors="replace").splitlines(keepends=True)
    errors = [line for line in lines if line.startswith("error: ") and line.endswith("\n")]
    if errors:
        return errors[-1].removeprefix("error: ").rstrip()
    # A full disk cuts the logs anywhere, so their last line explains nothing.
    if shutil.disk_usage(fold.root).free < _FULL_DISK:
        return f"the disk of {fold.root} is full: free some space and run the same command again"
    return lines[-1].rstrip() if lines else "it wrote nothing"
