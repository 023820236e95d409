"""Log lines of a rank or a command, on standard error.

Modules log to ``logging.getLogger(__name__)``; :func:`setup_logging` says what of it is shown.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_PACKAGES = ("dfer_dist", "launch")
_CHATTER = ("DeepSpeed", "torch")

logger = logging.getLogger(__name__)


def setup_logging(rank: int = 0) -> None:
    """Write log lines to standard error: from INFO on for rank 0, from WARNING on for others.

    A line at WARNING or above begins with its level in lower case, such as ``error: ``, by which
    the launcher finds it in a log; other lines begin with the time. With ``DFER_DEBUG`` set,
    lines at DEBUG are shown too, and with them what DeepSpeed and torch say of themselves.
    """
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _StderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    level = logging.INFO if rank == 0 else logging.WARNING
    if os.environ.get("DFER_DEBUG"):
        level = logging.DEBUG
    for name in _PACKAGES:
        logging.getLogger(name).setLevel(level)


def demote_dependencies() -> None:
    """Log at DEBUG what DeepSpeed and torch, both imported by now, log below ERROR.

    Their deprecation notices are shown with ``DFER_DEBUG`` only.
    """
    for name in _CHATTER:
        chatter = logging.getLogger(name)
        chatter.handlers[:] = [_DebugHandler()]
        chatter.propagate = False
    if not os.environ.get("DFER_DEBUG"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|deepspeed)\.")


@contextmanager
def prints_at_debug() -> Iterator[None]:
    """Log at DEBUG what is printed to standard output inside the block."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logger.debug(line)


class _StderrHandler(logging.Handler):
    """Writes to the ``sys.stderr`` of the moment, and drops a line for which the disk is full."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except OSError:
            pass
        except Exception:
            self.handleError(record)


class _DebugHandler(logging.Handler):
    """Passes records of a dependency to this module's logger, at DEBUG unless they are errors."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelno if record.levelno >= logging.ERROR else logging.DEBUG
        logger.log(level, f"{record.name}: {record.getMessage()}", exc_info=record.exc_info)


class _Formatter(logging.Formatter):
    """Puts the level before warnings and errors, the time before other lines."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {text}"
