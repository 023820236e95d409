"""How far a fold is, from its own files."""

from __future__ import annotations

import re
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
    logs = sorted(fold.root.glob("log*.txt"))
    texts = [log.read_bytes()[log_sizes.get(log, 0) :].decode(errors="replace") for log in logs]
    errors = list(filter(None, map(error_line, texts)))
    if errors:
        return errors[-1]
    if full := full_disk(fold):
        return full
    lines = [line for text in texts for line in text.splitlines()]
    return lines[-1].rstrip() if lines else "it wrote nothing"


def error_line(text: str) -> str:
    """Return the last whole line of a log at ERROR, without its level; empty if there is none."""
    errors = re.findall(r"^error: (.*)\n", text, re.MULTILINE)
    return errors[-1].rstrip() if errors else ""


def full_disk(fold: FoldDir) -> str:
    """Return that the fold's disk is full, if it is; else an empty text.

    It cuts logs anywhere, so that their last line explains nothing.
    """
    if shutil.disk_usage(fold.root).free >= _FULL_DISK:
        return ""
    return f"the disk of {fold.root} is full: free some space and run the same command again"
