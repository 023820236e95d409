"""Locks on runs and folds, between commands on this machine and Slurm jobs.

``launch/slurm/job.sh`` locks the same files with flock(1), so a lock file is never deleted.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.locks import file_lock, is_locked, try_lock

_EXIT_TIMEOUT = 60.0  # seconds that ranks get to save and exit after their command was killed
_POLL = 0.2  # seconds


@contextmanager
def run_lock(run: RunDir) -> Iterator[IO[str]]:
    """Hold a run while it is opened, submitted or summarized.

    Yields
    ------
    IO[str]
        The lock file. It holds the id of the Slurm array that opened the run last.
    """
    run.root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(run.array) as file:
        file.seek(0)
        yield file


@contextmanager
def fold_lock(fold: FoldDir) -> Iterator[int]:
    """Hold a fold for this command and for its ranks, which inherit the file.

    The kernel releases the lock when the last of them ends. Ranks whose command was killed are
    waited for, because they save and exit.

    Yields
    ------
    int
        The file descriptor for the ranks.

    Raises
    ------
    UserError
        If another command holds the fold.
    """
    fold.root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _EXIT_TIMEOUT
    num_failures = 0
    with _lock_file(fold).open("a+") as file:
        while not try_lock(file):
            num_failures += 1
            file.seek(0)
            is_waiting_useful = time.monotonic() <= deadline and is_gone(file.read())
            # is_held() of another process takes the lock for a moment: one failure proves nothing
            if num_failures > 1 and not is_waiting_useful:
                raise UserError(
                    f"another command is working on {fold.root}: wait for it, or stop it"
                )
            time.sleep(_POLL)
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}")
        file.flush()
        yield file.fileno()


def is_held(fold: FoldDir) -> bool:
    """Return whether a command or a job is working on a fold."""
    return is_locked(_lock_file(fold))


def is_gone(holder: str) -> bool:
    """Return whether the process that wrote ``HOST PID`` is known to have ended."""
    host, _, pid = holder.partition(" ")
    return host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid))


def _lock_file(fold: FoldDir) -> Path:
    return fold.root / ".lock"
