"""Log metrics to a file first, and to MLflow second.

Every metric is first a line of ``metrics.jsonl``. A background thread sends it to MLflow once a
checkpoint includes its step. A server that is down, slow or full costs training nothing: it gets
what is missing when it answers, or from ``dfer sync``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from dfer_dist.tracking.metric_names import CURRENT, MetricNames
from dfer_dist.tracking.uploader import Connect, Finalize, Uploader, UploadQueue

logger = logging.getLogger(__name__)

# MLflow's final statuses of a run.
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


class MetricsLog:
    """The metrics of a fold (on rank 0) or of a machine: a file, and a thread that uploads it.

    A metric of a fold goes to MLflow after the next checkpoint, so that no step that a crash rolls
    back is there twice. The position file keeps the progress over restarts.
    """

    def __init__(
        self,
        path: Path,
        position_file: Path,
        connect: Connect | None,
        keep_bytes: int | None = None,
        names: MetricNames = CURRENT,
    ) -> None:
        """Open the file and remove lines of steps that will be trained again.

        Nothing is uploaded before :meth:`start`.

        Parameters
        ----------
        path, position_file : Path
        connect : callable, optional
            Called in the thread for a client and the id of a run; None without a server.
        keep_bytes : int, optional
            Bytes to keep; by default all whole lines.
        names : MetricNames
            Those of the run.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        # Bytes of all lines so far.
        self.size = whole_lines(self.path)
        if keep_bytes is not None:
            num_lost = keep_bytes - os.fstat(self._file).st_size
            if num_lost > 0:
                logger.warning(f"{self.path} has lost at least {num_lost} bytes of metrics")
            else:
                self.size = keep_bytes
        self._last_removed_step = _last_step_after(self.path, self.size)
        os.ftruncate(self._file, self.size)
        # Lines that the disk has not accepted yet.
        self._unwritten = b""
        self._lock = threading.Lock()
        self._queue, self._connect = UploadQueue(path, position_file, names), connect
        self._committed = self.size
        self._uploader: Uploader | None = None

    def start(self) -> None:
        """Start the thread that uploads what is committed, if there is a server."""
        if self._connect and not self._uploader:
            self._uploader = Uploader(self._queue, self._connect, self._committed)

    def num_rolled_back(self, step: int) -> int:
        """Return how many steps after ``step``, where training resumes, had removed lines."""
        return max(0, self._last_removed_step - step)

    def log(self, step: int, epoch: int | None, values: dict[str, float]) -> None:
        """Append one line; ``step`` and ``epoch`` are completed ones. Never waits for the server.

        Values that are not finite are left out, because JSON cannot represent them.
        """
        row: dict[str, float] = {"step": step}
        if epoch is not None:
            row["epoch"] = epoch
        row["time"] = round(time.time(), 3)
        row |= {name: value for name, value in values.items() if math.isfinite(value)}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with self._lock:
            first = not self._unwritten
            self._unwritten += line
            self.size += len(line)
            try:
                self._flush()
            except OSError as e:
                if first:
                    logger.warning(f"{self.path} takes no more lines for now: {e}")

    def _flush(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]

    def sync(self) -> None:
        """Make all lines so far durable.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        with self._lock:
            self._flush()
        os.fsync(self._file)

    def commit(self, size: int) -> None:
        """Allow the first ``size`` bytes to be sent: they will not be rolled back."""
        self._committed = size
        if self._uploader:
            self._uploader.commit(size)

    def close(self, finalize: Finalize | None = None, timeout: float = 20.0) -> None:
        """Send what was committed, then call ``finalize``; wait ``timeout`` seconds at most."""
        if finalize:
            self.start()
        with suppress(OSError):
            self.sync()
        os.close(self._file)
        if self._uploader and not self._uploader.close(finalize, timeout):
            run = self.path.parent.parent
            logger.warning(
                f"tracking: not all of {self.path} could be sent; dfer sync {run} sends the rest"
            )


def whole_lines(path: Path) -> int:
    """Return the bytes of a file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _last_step_after(path: Path, size: int) -> int:
    """Return the last step of the whole lines after the first ``size`` bytes, or 0."""
    steps = [0]
    for line in path.read_bytes()[size:].splitlines():
        with suppress(ValueError):
            steps.append(json.loads(line)["step"])
    return max(steps)
