"""Run ``dfer``: as a process, as a user does, or in this process."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from pathlib import Path
from unittest import mock

from dfer_dist.data.shards.index import Index
from tests.helpers.forked import Done, Forked
from tests.helpers.paths import DFER

_ENVIRONMENT = {"COLUMNS": "200", "DFER_DEBUG": ""}


def dfer(*arguments: object, cwd: Path, forks_ranks: bool = True, **env: str) -> Done:
    """Run a command in a process, with its ranks."""
    command, environment = [DFER, *map(str, arguments)], os.environ | _ENVIRONMENT | env
    return Forked(command, environment, cwd, forks_ranks).wait(timeout=120)


def invoke(*arguments: object, cwd: Path) -> Done:
    """Run a command in this process, with the output and the exit status of a process."""
    from launch.cli import main

    argv = ["dfer", *map(str, arguments)]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, _ENVIRONMENT),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else int(e.code is not None)
        except Exception:
            traceback.print_exc()
            status = 1
    return Done(argv, status, out.getvalue(), err.getvalue())


def check_refusal(done: Done, *parts: str) -> None:
    """Check that a command printed one line of error with ``parts``, and has status 2."""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout
    for part in parts:
        assert part in done.stderr


def small_run(index: Index) -> list[str]:
    """Return the settings of a small run on packed shards, without tracking."""
    return [f"data.shards={index.root}", "tracking.enabled=false", "train.global_batch=8"]
