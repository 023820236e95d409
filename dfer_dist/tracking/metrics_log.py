"""The file first, MLflow second.

Every figure is a line of ``metrics.jsonl`` before anything else happens to it; a background thread sends it to MLflow once a
checkpoint stands for it. A server that is down, slow or full costs training nothing: it gets what is missing when it answers, or from
``dfer sync``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.tracking.uploader import Connect, Uploader, UploadQueue

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"  # MLflow's words for how a run ended


class MetricsLog:
    """Lines of one file, and the thread that sends those that may be sent: figures of a fold, of which rank 0 has the tracker, or of a machine.

    A figure of a fold goes to MLflow once the checkpoint after it stands, so that no step which a crash undoes is there twice; the mark
    keeps how far that has come, over restarts.
    """

    def __init__(
        self, path: Path, mark: Path, connect: Connect | None, keep_bytes: int | None = None
    ) -> None:
        """Open the file; what stands after its first ``keep_bytes`` bytes goes, since it is trained again.

        Parameters
        ----------
        connect : callable, optional
            Called in the thread for a client and a run's id; None: there is no server.
        keep_bytes : int, optional
            By default all whole lines.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        have = os.fstat(self._file).st_size
        if keep_bytes is not None and have < keep_bytes:
            logger.warning(f"{self.path} has lost at least {keep_bytes - have} bytes of figures")
        self.size = (
            keep_bytes if keep_bytes is not None and have >= keep_bytes else whole_lines(self.path)
        )  # bytes of all lines so far
        self._last_undone = _last_step_after(self.path, self.size)
        os.ftruncate(self._file, self.size)
        self._waiting = b""  # lines that the disk did not take yet
        self._lock = threading.Lock()
        self._sender = Uploader(UploadQueue(path, mark), connect, self.size) if connect else None

    def num_rolled_back(self, step: int) -> int:
        """How many steps after ``step``, where training goes on, the lines spoke of that went."""
        return max(0, self._last_undone - step)

    def log(self, step: int, epoch: int | None, values: dict[str, float]) -> None:
        """Append one line; ``step`` and ``epoch`` are those done. Never waits for the server.

        Values that are not finite are left out: JSON has no word for them.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        when = {
            "step": step,
            **({} if epoch is None else {"epoch": epoch}),
            "time": round(time.time(), 3),
        }
        line = json.dumps({**when, **finite}, allow_nan=False) + "\n"
        with self._lock:
            first = not self._waiting
            self._waiting += line.encode()
            self.size += len(line.encode())
            try:
                self._flush()
            except OSError as e:
                if first:
                    logger.warning(f"{self.path} takes no more lines for now: {e}")

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]

    def sync(self) -> None:
        """Make all lines so far durable.

        Raises
        ------
        OSError
            If the disk does not take them.
        """
        with self._lock:
            self._flush()
        os.fsync(self._file)

    def commit(self, size: int) -> None:
        """The first ``size`` bytes will not be undone: they may be sent."""
        if self._sender:
            self._sender.commit(size)

    def close(
        self, last: Callable[[MlflowClient, str], None] | None = None, timeout: float = 20.0
    ) -> None:
        """Wait until what was released is sent and ``last`` (given a client and the run's id) is done, ``timeout`` seconds at most."""
        with suppress(OSError):
            self.sync()
        os.close(self._file)
        if self._sender and not self._sender.close(last, timeout):
            logger.warning(
                f"tracking: not all of {self.path} could be sent; dfer sync {self.path.parent.parent} sends the rest"
            )


def whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _last_step_after(path: Path, size: int) -> int:
    """The last step that the lines after the first ``size`` bytes speak of, or 0; one that a crash cut short does not count."""
    steps = [0]
    for line in path.read_bytes()[size:].splitlines():
        with suppress(ValueError):
            steps.append(json.loads(line)["step"])
    return max(steps)
