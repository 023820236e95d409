"""How a rank reports an error."""

from __future__ import annotations

import errno
import logging
import os
import signal

import pytest

from dfer_dist.training import fold
from dfer_dist.utils.errors import UserError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("no weights"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (OSError(errno.EIO, "Input/output error"), 1),
        (ValueError("a bug"), 1),
    ],
)
def test_exit_status_says_whether_the_user_can_fix_it(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DFER_DEBUG", raising=False)
    assert fold._exit_status(error) == status


def test_user_error_of_a_loader_worker_is_logged_as_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traceback = (
        "Caught UserError in worker\nTraceback …\ndfer_dist.utils.errors.UserError: no shard"
    )
    assert fold._exit_status(UserError(traceback)) == 2
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "no shard")


def test_rank_whose_loader_worker_was_killed_kills_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher starts a killed rank again."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    fold._exit_status(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert sent == [(os.getpid(), signal.SIGKILL)]
