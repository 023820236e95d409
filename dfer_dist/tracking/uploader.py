"""Lines of a file on their way to a run at the tracking server.

The file is the queue: nothing is kept in memory but what one request takes. A mark beside it tells how far the server has it. One process at
a time sends a file's lines: the job that writes them, or ``dfer sync``.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.locks import try_lock, unlock

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

BATCH = 1000  # metrics that MLflow takes in one request
_CHUNK = 100_000  # bytes of the file sent at a time
_PAUSE = 30.0  # seconds before a server that did not answer is asked again
_LINE_KEYS = ("step", "epoch", "time")

Connect = Callable[
    [], "tuple[MlflowClient, str]"
]  # a client and the id of a run, which it makes if it has to


def reason(e: Exception) -> str:
    """An error of MLflow in one line: its own may hold pages."""
    return " ".join(f"{type(e).__name__} {e}".split())[:300]


class UploadQueue:
    """Lines of ``path``, sent up to what ``mark`` says. Of several processes one can :meth:`take` it."""

    def __init__(self, path: Path, mark: Path) -> None:
        self.path, self.mark = path, mark
        self.sent = 0  # bytes
        self._known_steps = -1
        self._held: IO[bytes] | None = None

    def take(self, size: int) -> bool:
        """Become the one who sends; False if another process is.

        Parameters
        ----------
        size : int
            Bytes of the file that stand. Where more was sent, as when the last checkpoint is damaged, steps were undone after that: what was
            sent of them stays at the server, and they are not sent again.
        """
        held = self.path.open("rb")
        try:
            if not try_lock(held):
                held.close()
                return False
        except OSError as e:  # a file system without locks
            logger.warning(
                f"{self.path} cannot be locked ({e}): do not call dfer sync while it grows"
            )
        self._held = held
        try:
            before = read_json(self.mark)
        except UserError:  # none yet, or damaged: what is sent again does no harm
            before = {"bytes": 0, "step": 0, "known_steps": -1}
        self.sent = min(before["bytes"], size)
        self._known_steps = max(
            before["known_steps"], before["step"] if before["bytes"] > size else -1
        )
        return True

    def leave(self) -> None:
        """Let others send."""
        if self._held:
            with suppress(OSError):
                # Closing is not enough: loader workers inherited the file.
                unlock(self._held)
            self._held.close()
            self._held = None

    def send(self, api: MlflowClient, run_id: str, limit: Callable[[], int]) -> int:
        """Send what is missing of the first ``limit()`` bytes; returns how many lines that were.

        A line that is sent again, since a crash came between sending and noting, has its own time and value, which MLflow keeps once.

        Raises
        ------
        Exception
            Whatever MLflow raises; what was sent before stays noted.
        """
        count = 0
        while self.sent < (end := limit()):
            with self.path.open("rb") as f:
                f.seek(self.sent)
                data = f.read(min(end - self.sent, _CHUNK))
            data = data[: data.rfind(b"\n") + 1]
            if not data:
                raise EOFError(f"{self.path} was cut")
            lines = [json.loads(line) for line in data.splitlines()]
            new = [line for line in lines if line["step"] > self._known_steps]
            _send(api, run_id, new)
            count += len(new)
            self.sent += len(data)
            with suppress(OSError):  # what is not noted is sent again, which does no harm
                write_json(
                    self.mark,
                    {
                        "bytes": self.sent,
                        "step": lines[-1]["step"],
                        "known_steps": self._known_steps,
                    },
                )
        return count


def _send(api: MlflowClient, run_id: str, lines: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, int(line["time"] * 1000), line["step"])
        for line in lines
        for name, value in line.items()
        if name not in _LINE_KEYS
    ]
    metrics += [
        Metric("epoch", line["epoch"], int(line["time"] * 1000), line["step"])
        for line in lines
        if "epoch" in line
    ]
    for i in range(0, len(metrics), BATCH):
        api.log_batch(run_id, metrics=metrics[i : i + BATCH])


class Uploader:
    """The thread that sends a queue while its file grows."""

    def __init__(self, queue: UploadQueue, connect: Connect, size: int) -> None:
        """Begin with the first ``size`` bytes; ``connect`` is called in the thread, again until it raises nothing."""
        self.queue, self._connect = queue, connect
        self._size = self._limit = size
        self._over = self._done = False
        self._last: Callable[[MlflowClient, str], None] | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def commit(self, size: int) -> None:
        """The first ``size`` bytes may be sent."""
        with self._changed:
            self._limit = max(self._limit, size)
            self._changed.notify()

    def close(self, last: Callable[[MlflowClient, str], None] | None, timeout: float) -> bool:
        """Wait until what was released is sent, and ``last`` done after it; whether that came about within ``timeout`` seconds."""
        with self._changed:
            self._over, self._last = True, last
            self._changed.notify()
        self._thread.join(timeout)
        return self._done

    def _run(self) -> None:
        there: tuple[MlflowClient, str] | None = None
        held = silent = False
        while True:
            try:
                held = held or self.queue.take(self._size)
                if held:
                    there = there or self._connect()
                    self.queue.send(*there, lambda: self._limit)
                    silent = False
                    if self._over and self.queue.sent >= self._limit:
                        if self._last:
                            self._last(*there)
                        self._done = True
            except Exception as e:  # whatever MLflow raises, training goes on
                if not silent:
                    logger.warning(
                        f"tracking: {reason(e)}; what is missing is sent when the server answers again"
                    )
                silent = True
            with self._changed:
                if self._over and (self._done or silent or not held):
                    self.queue.leave()
                    return
                if silent or not held:
                    self._changed.wait(_PAUSE)
                elif not self._over and self.queue.sent >= self._limit:
                    self._changed.wait()
