"""Locks between processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Be the only one, of all threads and processes, who holds ``file``, which is made where it is not there.

    Raises
    ------
    OSError
        If the file cannot be made, or its file system has no locks.
    """
    with file.open("a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        try:
            yield
        finally:  # closing is not enough: a loader worker that was forked meanwhile has the file open too
            fcntl.flock(f, fcntl.LOCK_UN)
