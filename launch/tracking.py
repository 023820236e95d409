"""A run at its MLflow server, as commands see it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from launch.console import print_line

if TYPE_CHECKING:
    from dfer_dist.runs.layout import RunDir

OPEN_TIMEOUT = 10.0  # seconds that a slow server gets after training has ended


def open_mlflow_runs(run: RunDir) -> None:
    """Create the MLflow runs of a run, or reopen them."""
    from dfer_dist.tracking.mlflow_runs import begin

    begin(run)


@contextmanager
def opening_mlflow_runs(run: RunDir) -> Iterator[None]:
    """Call :func:`open_mlflow_runs` in a thread while the block starts the ranks.

    Both take seconds. What a slow server has not created when the block ends is created by the
    next command.
    """
    thread = threading.Thread(target=open_mlflow_runs, args=(run,), name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(OPEN_TIMEOUT)


def update_mlflow_runs(run: RunDir, status: str | None, given_up: list[int] | None = None) -> None:
    """Send what the server of a run lacks, if the run has one. A failure is only a warning.

    Parameters
    ----------
    status : str, optional
        Close the parent run with this status.
    given_up : list of int, optional
        Folds that will never run.
    """
    from dfer_dist.tracking.sync import end_run
    from dfer_dist.tracking.uploader import reason

    try:
        end_run(run, status, given_up)
    # MLflow raises many types; the files are complete without it
    except Exception as error:
        print(
            f"warning: tracking: {reason(error)}; run dfer sync {run.root} to send what is missing",
            file=sys.stderr,
        )


def print_mlflow_hint(console: Console, run: RunDir) -> None:
    """Print the command that opens a run in MLflow, if it is tracked."""
    if run.info().tracking:
        print_line(console, f"MLflow: dfer ui {run.root}")
