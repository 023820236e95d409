"""A rank that makes no progress ends itself, and says where it stood."""

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

logger = logging.getLogger(__name__)

_TICK = 1.0  # seconds between two looks, at most
_LATE = 10.0  # seconds that the last words may take
_WORKERS = 0.5  # of them for the workers'


class Watchdog:
    """Ends this process by SIGABRT when ``seconds`` have passed without :meth:`beat`, after writing every thread's stack to ``file``.
    Processes that it has forked since write theirs to their standard error, as any of them does at SIGUSR1.

    A rank hangs where another one does not answer, so that all but the silent one come to their end at about the same time;
    death by a signal tells launcher and batch script to start the job again. What a collective call waits for is set a
    little longer (:func:`dfer_dist.distributed.process_group.start`), so that the stacks are written first.

    Parameters
    ----------
    file : Path
    seconds : float
    hung : callable
        Called with a line that says what happened, before the end.
    """

    def __init__(self, file: Path, seconds: float, hung: Callable[[str], None]) -> None:
        self.file, self.seconds, self.hung = file, seconds, hung
        self._last = time.monotonic()
        self._stopped = False
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """All is done."""
        self._stopped = True

    def _watch(self) -> None:
        tick = min(_TICK, self.seconds / 10)
        before = time.monotonic()
        while not self._stopped:
            time.sleep(tick)
            now = time.monotonic()
            if now - before > 5 * tick + 1:  # we were stopped ourselves, and woke up
                self._last = now
            before = now
            if now - self._last > self.seconds:
                self._end()

    def _end(self) -> None:
        late = threading.Timer(
            _LATE, _abort
        )  # what follows writes to a file system, which may be what hangs
        late.daemon = True
        late.start()
        line = f"no step for {self.seconds:.0f} s: this rank, or one it waits for, hangs; its stacks are in {self.file}"
        try:
            with self.file.open("a") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {line}\n")
                f.flush()
                faulthandler.dump_traceback(f, all_threads=True)
            logger.error(line)
            self.hung(line)
            for (
                worker
            ) in multiprocessing.active_children():  # one of them may be what is waited for
                if worker.pid:
                    os.kill(worker.pid, signal.SIGUSR1)
            time.sleep(_WORKERS)
        finally:
            _abort()


def _abort() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.kill(os.getpid(), signal.SIGABRT)
