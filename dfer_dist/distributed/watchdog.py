"""A watchdog that ends a rank which makes no progress and records its stacks."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dfer_dist.distributed import flight_recorder

logger = logging.getLogger(__name__)

_MAX_TICK = 1.0  # seconds between two checks, at most
_ABORT_DELAY = 10.0  # seconds that the report may take
_WORKER_DELAY = 0.5  # seconds of these for the stacks of loader workers


class Watchdog:
    """Ends this process by SIGABRT after ``seconds`` without a call of :meth:`beat`.

    Before that it appends the stacks of all threads to ``file``. Processes forked after the
    watchdog was made write theirs to standard error, as each of them does at SIGUSR1.

    A rank hangs where another rank does not answer, so all but the silent one end at about the same
    time. Death by a signal makes the launcher and the batch script start the job again. The timeout
    of collective calls is a little longer
    (:func:`~dfer_dist.distributed.process_group.init_distributed`), so the stacks are written
    first.

    Parameters
    ----------
    file : Path
        Where to append the stacks.
    seconds : float
        Time without progress after which the process is ended.
    on_hang : callable
        Called with a one-line description before the process ends.
    nccl_trace : Path, optional
        Where to keep NCCL's flight recorder, on a GPU.
    """

    def __init__(
        self,
        file: Path,
        seconds: float,
        on_hang: Callable[[str], None],
        nccl_trace: Path | None = None,
    ) -> None:
        self.file = file
        self.nccl_trace = nccl_trace
        self.seconds = seconds
        self.on_hang = on_hang
        self._last_beat = time.monotonic()
        self._stopped = False
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Report progress."""
        self._last_beat = time.monotonic()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped = True

    def _watch(self) -> None:
        tick = min(_MAX_TICK, self.seconds / 10)
        before = time.monotonic()
        while not self._stopped:
            time.sleep(tick)
            now = time.monotonic()
            # This process itself was suspended: it gets its full time again.
            if now - before > 5 * tick + 1:
                self._last_beat = now
            before = now
            if now - self._last_beat > self.seconds:
                self._report_and_abort()

    def _report_and_abort(self) -> None:
        # The report goes to a file system, which may be what hangs.
        timer = threading.Timer(_ABORT_DELAY, _abort)
        timer.daemon = True
        timer.start()
        message = (
            f"no step for {self.seconds:.0f} s: this rank, or one it waits for, hangs; "
            f"its stacks are in {self.file}"
        )
        try:
            with self.file.open("a") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {message}\n")
                f.flush()
                faulthandler.dump_traceback(f, all_threads=True)
            logger.error(message)
            self.on_hang(message)
            # A loader worker may be what the rank waits for.
            for worker in multiprocessing.active_children():
                if worker.pid:
                    os.kill(worker.pid, signal.SIGUSR1)
            # Last, since torch may raise or wait here.
            if self.nccl_trace:
                flight_recorder.dump(self.nccl_trace)
            time.sleep(_WORKER_DELAY)
        finally:
            _abort()


def _abort() -> None:
    """End this process by SIGABRT, without a core file."""
    hard_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard_limit))
    os.kill(os.getpid(), signal.SIGABRT)
