"""How a rank reports an error, and what is wrong with its node."""

from __future__ import annotations

import errno
import logging
import os
import signal
from pathlib import Path

import pytest
import torch

from dfer_dist.config.schema import Precision
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.runs.layout import RunDir
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


def test_start_refuses_bf16_on_a_gpu_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(fold, "package_mismatch", lambda _: "this node has torch 1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    ranks = Ranks(0, 1, 0, torch.device("cuda", 0))
    for precision in (Precision.fp32, Precision.fp16):
        fold._check_nodes(RunDir(tmp_path), precision, ranks)
    assert {(r.levelno, r.getMessage()) for r in caplog.records} == {
        (logging.WARNING, "this node has torch 1")
    }
    advice = r"Tesla V100 \(compute capability 7.0\) has no bf16.*: set train.precision=fp16"
    with pytest.raises(UserError, match=advice):
        fold._check_nodes(RunDir(tmp_path), Precision.bf16, ranks)
