"""Locks between processes, with flock(2).

The batch script ``job.sh`` locks the same files with flock(1), so a lock file is never removed
while a program may wait for it. Locks are released explicitly. Closing the file is not enough,
because a loader worker that was forked meanwhile has the file open too.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def file_lock(path: Path) -> Iterator[IO[str]]:
    """Hold ``path`` exclusively, against all threads and processes; wait until it is free.

    Parameters
    ----------
    path : Path
        The lock file. It is made if missing.

    Yields
    ------
    file
        The lock file, open for reading and appending.

    Raises
    ------
    OSError
        If the file cannot be made, or its file system does not support locks.
    """
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file
        finally:
            unlock(file)


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file exclusively, and return whether that was possible without waiting.

    Raises
    ------
    OSError
        If the file system does not support locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: IO[Any] | int) -> None:
    """Release the lock of an open file, for forked processes that have it open too."""
    fcntl.flock(file, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Return whether another process, or another open file of this one, holds ``path``.

    The question takes a shared lock for a moment, so that several processes may ask at once.

    Raises
    ------
    OSError
        If the file system does not support locks.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
