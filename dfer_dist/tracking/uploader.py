"""Upload the lines of a file to a run at the tracking server.

The file is the queue: memory holds no more than one request. A position file next to it records
how far the server has the lines. One process at a time uploads a file: the job that writes it, or
``dfer sync``.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dfer_dist.tracking.metric_names import CURRENT, MetricNames
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.locks import try_lock, unlock
from dfer_dist.utils.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)
_importing = threading.Lock()

BATCH = 1000  # metrics that MLflow takes in one request
_CHUNK = 100_000  # bytes of the file sent at a time
_RETRY_SECONDS = 30.0  # after which a server that did not answer is tried again
_LOCK_SECONDS = 0.5  # to the next try for the lock, when closing

Line = dict[str, Any]  # of the file

# Returns a client and the id of a run, which it creates if necessary.
Connect = Callable[[], "tuple[MlflowClient, str]"]
# Is called with both when all lines are uploaded.
Finalize = Callable[["MlflowClient", str], None]


def import_mlflow() -> None:
    """Import MLflow, in one thread at a time.

    Its modules import each other: a thread that imports another one meanwhile finds parts missing.
    """
    with _importing:
        import mlflow.tracking  # noqa: F401


def reason(e: BaseException) -> str:
    """Return an error in one line of at most 300 characters; MLflow's own may fill pages."""
    return " ".join(f"{type(e).__name__} {e}".split())[:300]


@dataclass(frozen=True)
class _Position(Record):
    """How much of a file the server has, and its last step.

    Lines up to the step ``known_steps`` are there although the file no longer has them.
    ``not_zero`` are the rare metrics that it has.
    """

    bytes: int = 0
    step: int = 0
    known_steps: int = -1
    not_zero: list[str] = field(default_factory=list)


class UploadQueue:
    """The lines of a file that the server lacks. One process at a time can :meth:`acquire` it.

    Parameters
    ----------
    path : Path
        The file.
    position_file : Path
        Records how much of it the server has.
    names : MetricNames
        Those of the run.
    """

    def __init__(self, path: Path, position_file: Path, names: MetricNames = CURRENT) -> None:
        self.path, self.position_file, self.names = path, position_file, names
        self.num_sent_bytes = 0
        # Rare metrics that are sent, because they were not always zero.
        self._not_zero: set[str] = set()
        # Lines up to this step are at the server although the file no longer has them.
        self._last_sent_step = -1
        self._lock: IO[bytes] | None = None

    def acquire(self, size: int) -> bool:
        """Lock the queue; return False if another process has it.

        Parameters
        ----------
        size : int
            Bytes of the file. If more were sent, steps were rolled back since, for example because
            the last checkpoint is damaged. Their lines stay at the server and are not sent again.
        """
        file = self.path.open("rb")
        try:
            if not try_lock(file):
                file.close()
                return False
        except OSError as e:
            # The file system has no locks.
            logger.warning(
                f"{self.path} cannot be locked ({e}): do not call dfer sync while it grows"
            )
        self._lock = file
        before = _Position()
        # A file may be missing or damaged: lines that are sent again do no harm.
        with suppress(UserError):
            before = _Position.read(self.position_file)
        self._not_zero = set(before.not_zero)
        self.num_sent_bytes = min(before.bytes, size)
        self._last_sent_step = before.known_steps
        if before.bytes > size:
            self._last_sent_step = max(before.known_steps, before.step)
        return True

    def release(self) -> None:
        """Unlock the queue for other processes."""
        if self._lock:
            with suppress(OSError):
                # Closing is not enough: loader workers inherited the file.
                unlock(self._lock)
            self._lock.close()
            self._lock = None

    def send(self, api: MlflowClient, run_id: str, limit: Callable[[], int]) -> int:
        """Send what is missing of the first ``limit()`` bytes; return the number of lines.

        A rare metric that is not zero for the first time is sent from the first line on.

        A crash between sending and recording makes a line be sent again. It has the same time and
        value, and MLflow keeps such a row once.

        Raises
        ------
        Exception
            Whatever MLflow raises; what was sent before stays recorded.
        """
        count = 0
        while self.num_sent_bytes < (end := limit()):
            with self.path.open("rb") as f:
                f.seek(self.num_sent_bytes)
                data = f.read(min(end - self.num_sent_bytes, _CHUNK))
            data = data[: data.rfind(b"\n") + 1]
            if not data:
                raise EOFError(f"{self.path} was truncated")
            lines = [json.loads(line) for line in data.splitlines()]
            new = [line for line in lines if line["step"] > self._last_sent_step]
            named = {name for line in lines for name in line} - {"step", "time"}
            zero = set(filter(self._is_zero_so_far, named))
            appeared = {name for name in zero if any(line.get(name) for line in lines)}
            _send(api, run_id, self._metrics(new, named - zero))
            _send(api, run_id, self._metrics(self._first_lines(len(data)), appeared))
            self._not_zero |= appeared
            count += len(new)
            self.num_sent_bytes += len(data)
            last, not_zero = lines[-1]["step"], sorted(self._not_zero)
            position = _Position(self.num_sent_bytes, last, self._last_sent_step, not_zero)
            # Lines that are not recorded are sent again, which does no harm.
            with suppress(OSError):
                position.write(self.position_file)
        return count

    def _is_zero_so_far(self, name: str) -> bool:
        return self.names.is_rare(name) and name not in self._not_zero

    def _first_lines(self, more: int) -> Iterator[Line]:
        """Yield the lines that were sent, and those of the next ``more`` bytes."""
        with self.path.open("rb") as f:
            while f.tell() < self.num_sent_bytes + more:
                yield json.loads(f.readline())

    def _metrics(self, lines: Iterable[Line], wanted: set[str]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for line in lines if wanted else ():
            when = int(line["time"] * 1000)
            for name in filter(wanted.__contains__, line):
                yield Metric(self.names.of(name), line[name], when, line["step"])


def _send(api: MlflowClient, run_id: str, metrics: Iterator[Metric]) -> None:
    while batch := list(islice(metrics, BATCH)):
        api.log_batch(run_id, metrics=batch)


class Uploader:
    """A thread that uploads a queue while its file grows."""

    def __init__(self, queue: UploadQueue, connect: Connect, size: int) -> None:
        """Start with the first ``size`` bytes; ``connect`` is retried until it succeeds."""
        self.queue, self._connect = queue, connect
        self._size = self._limit = size
        self._closing = self._done = False
        self._finalize: Finalize | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)
        self._thread.start()

    def commit(self, size: int) -> None:
        """Allow the first ``size`` bytes to be sent."""
        with self._changed:
            self._limit = max(self._limit, size)
            self._changed.notify()

    def close(self, finalize: Finalize | None, timeout: float) -> bool:
        """Send what was committed, then call ``finalize``.

        Returns
        -------
        bool
            Whether both were done within ``timeout`` seconds.
        """
        with self._changed:
            self._closing, self._finalize = True, finalize
            self._changed.notify()
        self._thread.join(timeout)
        return self._done

    def _run(self) -> None:
        connection: tuple[MlflowClient, str] | None = None
        acquired = failing = False
        while True:
            try:
                acquired = acquired or self.queue.acquire(self._size)
                if acquired:
                    import_mlflow()
                    connection = connection or self._connect()
                    self._upload(*connection)
                    failing = False
            except Exception as e:
                # Whatever MLflow raises, training continues.
                if not failing:
                    logger.warning(
                        f"tracking: {reason(e)}; the rest is sent once the server takes it"
                    )
                failing = True
            with self._changed:
                if self._closing and (self._done or failing):
                    self.queue.release()
                    return
                if self._closing and not acquired:
                    # Such as by a worker of a killed rank, for a moment.
                    self._changed.wait(_LOCK_SECONDS)
                elif failing or not acquired:
                    self._changed.wait(_RETRY_SECONDS)
                elif not self._closing and self._is_caught_up():
                    self._changed.wait()

    def _upload(self, api: MlflowClient, run_id: str) -> None:
        self.queue.send(api, run_id, lambda: self._limit)
        if self._closing and self._is_caught_up():
            if self._finalize:
                self._finalize(api, run_id)
            self._done = True

    def _is_caught_up(self) -> bool:
        return self.queue.num_sent_bytes >= self._limit
