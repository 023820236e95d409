"""Checkpoints written in the background, one at a time, and again after a failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.optimizer_state import EngineTensors, gather
from dfer_dist.config.schema import Config
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from dfer_dist.tracking.metrics_log import MetricsLog
    from dfer_dist.training.engine import Engine

logger = logging.getLogger(__name__)

MAX_FAILURES = 10  # failed writes in a row that end the run
_BYTES_PER_SECOND = 1e8  # assumed before the first save
_MAX_PAUSE = 30.0  # seconds to the next try


class AsyncCheckpointer:
    """Writes the checkpoints of a fold.

    Every rank has one and calls it at the same steps. Rank 0 keeps one full copy in main memory
    and writes it in a thread.

    A write that fails, as on a full disk, leaves the last good checkpoint as it is. Training
    continues, and the next try comes soon, with the weights of that time. After
    :data:`MAX_FAILURES` failures in a row :attr:`failed` is true.

    Parameters
    ----------
    folder : Path
        The fold's ``checkpoints``.
    config : Config
        Stored with each checkpoint.
    ranks : Ranks
        The process group.
    trained : int
        Number of trained parameters, to estimate how long the first save takes.
    metrics_log : MetricsLog, optional
        Rank 0's. Its lines are made durable before a checkpoint and released for upload after it.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        ranks: Ranks,
        trained: int,
        metrics_log: MetricsLog | None,
    ) -> None:
        self.folder, self.config, self.ranks, self.metrics_log = folder, config, ranks, metrics_log
        # Failed writes in a row.
        self.failures = 0
        # Duration of the last save, gathering and writing; of each parameter the weight and two
        # moments are written, and its average.
        self.seconds = (12 + 4 * bool(config.train.ema)) * trained / _BYTES_PER_SECOND
        self._thread: threading.Thread | None = None
        self._tried = time.monotonic()
        # The message alone: an exception's traceback would keep the copy of the weights.
        self._error: str | None = None
        # An exception that is a fault of this program.
        self._fault: Exception | None = None

    @property
    def due(self) -> bool:
        """Whether it is time for a save."""
        pause = self._pause if self.failures else 60 * self.config.train.save_minutes
        return time.monotonic() - self._tried > pause

    @property
    def _pause(self) -> float:
        return min(60 * self.config.train.save_minutes, _MAX_PAUSE)

    @property
    def failed(self) -> bool:
        """Whether so many writes have failed that the run should end."""
        return self.failures >= MAX_FAILURES

    def save(self, engine: Engine, state: dict[str, Any], best: bool = False) -> None:
        """Copy weights and their states, and start to write a checkpoint. Collective.

        Waits first for an unfinished write.

        Parameters
        ----------
        engine : Engine
            Its weights and their states are saved.
        state : dict
            The content of ``state.json``; that of rank 0 is written. ``state["step"]`` names the
            checkpoint.
        best : bool
            Let BEST point to it too.
        """
        self.join()
        begin = time.monotonic()
        tensors = gather(engine, self.config, state["step"] - state["skipped_steps"], self.ranks)
        if self.ranks.is_main:
            self._tried = time.monotonic()
            arguments = (tensors, state, best, begin)
            self._thread = threading.Thread(target=self._write, args=arguments, name="checkpointer")
            self._thread.start()

    def wait(self, again: Callable[[], None] | None = None) -> None:
        """Wait until the last save is written. Collective: no rank continues before.

        Parameters
        ----------
        again : callable, optional
            Saves once more. It is called after a failure and a pause, until :attr:`failed`.

        Raises
        ------
        UserError
            On every rank, if it could not be written.
        """
        self.join()
        while error := self.ranks.broadcast_object(self._error):
            if again is None or self.ranks.broadcast_object(self.failed):
                raise UserError(self.verdict(error))
            time.sleep(self._pause)
            again()
            self.join()

    def verdict(self, error: str | None = None) -> str:
        """Return why a run that cannot save ends."""
        complete = checkpoint.complete(self.folder)
        last = complete[-1].name if complete else "none"
        return (
            f"{self.folder} takes no checkpoint ({error or self._error}): free some space; the "
            f"same command resumes from the last good one, {last}"
        )

    def join(self) -> None:
        """Wait until this rank's write is finished."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._fault:
            raise self._fault

    def _write(
        self, tensors: EngineTensors, state: dict[str, Any], best: bool, begin: float
    ) -> None:
        target = checkpoint.step_folder(self.folder, state["step"])
        try:
            if self.metrics_log:
                self.metrics_log.sync()
            weights, moments, ema = tensors
            checkpoint.write(target, weights, moments, self.config, state, ema=ema)
            if best:
                checkpoint.set_pointer(self.folder, "BEST", target)
            checkpoint.set_pointer(self.folder, "LATEST", target)
            if self.metrics_log:
                self.metrics_log.commit(state["metrics_bytes"])
            self.failures, self._error = 0, None
            checkpoint.prune(self.folder, self.config.train.keep)
        except OSError as e:
            self.failures, self._error = self.failures + 1, str(e)
            logger.warning(
                f"{target.name} could not be written ({e}): trying again soon "
                f"(failure {self.failures} of {MAX_FAILURES})"
            )
        except Exception as e:
            self._fault = e
        self.seconds = time.monotonic() - begin
