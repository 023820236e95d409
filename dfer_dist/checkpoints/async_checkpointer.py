"""Checkpoints written in the background, one at a time, and again when there was no room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.optimizer_state import gather
from dfer_dist.config.schema import Config
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.training.engine import Engine
from dfer_dist.utils.errors import UserError

logger = logging.getLogger(__name__)

TRIES = 10  # failed writes in a row that end the run
_GUESS = 1e8  # bytes a second
_RETRY = 30.0  # seconds to the next try, at most


class AsyncCheckpointer:
    """Saves a fold. Every rank has one and calls it at the same steps; rank 0 keeps one full copy in main memory and writes it.

    A write that fails, as on a full disk, leaves the last good checkpoint as it is; training goes on and the next try comes
    soon, from the weights of that moment. After :data:`TRIES` failures in a row :attr:`hopeless` is true.

    Parameters
    ----------
    folder : Path
        The fold's ``checkpoints``.
    trained : int
        Parameters, for a guess at how long a save takes until one has been made.
    tracker : MetricsLog, optional
        Rank 0's: what it logged up to a checkpoint is made to stand before that, and sent after it.
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
        self.failures = 0  # in a row
        self.seconds = 12 * trained / _GUESS  # the last save, gathering and writing
        self._thread: threading.Thread | None = None
        self._tried = time.monotonic()
        self._error: str | None = None  # not the exception, whose traceback would keep the copy
        self._fault: Exception | None = None  # of this program

    @property
    def due(self) -> bool:
        """Whether it is time for a save."""
        return time.monotonic() - self._tried > (
            self._pause if self.failures else 60 * self.config.train.save_minutes
        )

    @property
    def _pause(self) -> float:
        return min(60 * self.config.train.save_minutes, _RETRY)

    @property
    def failed(self) -> bool:
        return self.failures >= TRIES

    def save(self, engine: Engine, state: dict[str, Any], best: bool = False) -> None:
        """Copy weights and moments, and begin to write them as the checkpoint of ``state["step"]`` steps. Collective.

        Waits first for a write that is under way.

        Parameters
        ----------
        state : dict
            Goes into ``state.json``; what rank 0 gives counts.
        best : bool
            Let BEST name it too.
        """
        self.join()
        begin = time.monotonic()
        weights, moments = gather(
            engine, self.config, state["step"] - state["skipped_steps"], self.ranks
        )
        if self.ranks.is_main:
            self._tried = time.monotonic()
            words = (weights, moments, state, best, begin)
            self._thread = threading.Thread(target=self._write, args=words, name="saver")
            self._thread.start()

    def wait(self, again: Callable[[], None] | None = None) -> None:
        """Wait until what was saved last stands. Collective: nobody goes on, or leaves, before.

        Parameters
        ----------
        again : callable, optional
            Saves once more; called after a pause as long as there is hope.

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
        """Why a run ends that cannot save."""
        stands = checkpoint.complete(self.folder)
        last = (
            f"the last good checkpoint is {stands[-1].name}"
            if stands
            else "there is no checkpoint yet"
        )
        return f"{self.folder} takes no checkpoint ({error or self._error}): make room; {last}, the same command goes on from there"

    def join(self) -> None:
        """Wait until this rank writes nothing."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._fault:
            raise self._fault

    def _prune(self) -> None:
        try:
            checkpoint.prune(self.folder, self.config.train.keep)
        except (OSError, UserError) as e:
            logger.warning(f"old checkpoints stay for now: {e}")

    def _write(
        self,
        weights: dict[str, Tensor],
        moments: dict[str, Tensor],
        state: dict[str, Any],
        best: bool,
        begin: float,
    ) -> None:
        target = checkpoint.step_folder(self.folder, state["step"])
        try:
            if self.metrics_log:
                self.metrics_log.sync()
            checkpoint.write(target, weights, moments, self.config, state)
            if best:
                checkpoint.set_pointer(self.folder, "BEST", target)
            checkpoint.set_pointer(self.folder, "LATEST", target)
            if self.metrics_log:
                self.metrics_log.commit(state["metrics_bytes"])
            self.failures, self._error = 0, None
            self._prune()
        except OSError as e:
            self.failures, self._error = self.failures + 1, str(e)
            logger.warning(
                f"{target.name} could not be written ({e}): trying again soon (failure {self.failures} of {TRIES})"
            )
        except Exception as e:
            self._fault = e
        self.seconds = time.monotonic() - begin
