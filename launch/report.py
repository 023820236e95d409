"""Report a run to its folder, to the terminal and to MLflow."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launch.console import announced, print_line, print_table

if TYPE_CHECKING:
    from dfer_dist.reporting.comparison.published import Published
    from dfer_dist.reporting.tables import Section
    from dfer_dist.runs.layout import RunDir
    from dfer_dist.runs.sweep import SweepDir

MAX_SENTENCES = 2  # of the verdict on a run; the files have all
_OPEN_TIMEOUT = 10.0  # seconds that a slow server gets after training has ended


def report_run(
    run: RunDir,
    status: str | None = None,
    published: Published | None = None,
    frames: Path | None = None,
    all_tables: bool = False,
) -> None:
    """Write the report of the finished folds to the run's folder and to MLflow, and print it.

    Parameters
    ----------
    status : str, optional
        Close the parent run at MLflow with this status.
    published : Published, optional
        Results of papers to compare with.
    frames : Path, optional
        A picture of confident errors for the HTML page.
    all_tables : bool
        Print all tables, not only the scores.
    """
    from dfer_dist.reporting.files import write_report

    with announced(f"writing the report of {run.root.name}"):
        report = write_report(run, published, frames)
        update_mlflow_runs(run, status)
    for sentence in report.verdict.sentences[:MAX_SENTENCES]:
        print_line(sentence)
    print_tables(report.sections if all_tables else report.sections[:1], run.report.name)
    print_line(f"report: {run.report}, {run.latex.name}, {run.page.name}")
    if run.info().tracking:
        print_line(f"MLflow: dfer ui {run.root}")


def report_sweep(sweep: SweepDir) -> None:
    """Write the comparison of a sweep's runs to its folder and to MLflow, and print it."""
    from dfer_dist.reporting.files import write_sweep

    with announced(f"comparing the runs of {sweep.name}"):
        report = write_sweep(sweep.runs(), sweep.root)
        update_mlflow_sweep(sweep)
    for sentence in report.verdict.sentences:
        print_line(sentence)
    print_tables(report.sections, "comparison.md")
    print_line(f"comparison: {sweep.root / 'comparison.md'}, with .html and .tex next to it")


def update_mlflow_sweep(sweep: SweepDir) -> None:
    """Send what the server of a sweep lacks. A failure is only a warning."""
    from dfer_dist.tracking.sync_sweep import sync_sweep

    uris = (info.uri for run in sweep.runs() if (info := run.info().tracking))
    with _failure_as_warning(next(uris, ""), sweep.root):
        sync_sweep(sweep)


def print_tables(sections: Sequence[Section], file: str) -> None:
    """Print the tables of sections, except the long list of clips of a comparison.

    ``file`` has all columns, also those that do not fit on a narrow terminal.
    """
    from dfer_dist.reporting.tables import terminal

    for section in sections:
        if section.key != "clips":
            for table in section.tables:
                print_table(terminal(table), file)


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
    from dfer_dist.tracking.identity import own_tracking

    # before the ranks read what was sent to the server
    own_tracking(run)
    thread = threading.Thread(target=open_mlflow_runs, args=(run,), name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(_OPEN_TIMEOUT)


def update_mlflow_runs(run: RunDir, status: str | None, given_up: list[int] | None = None) -> None:
    """Send what the server of a run lacks, if the run has one. A failure is only a warning.

    Parameters
    ----------
    status : str, optional
        Close the parent run with this status.
    given_up : list of int, optional
        Folds that will never run.
    """
    from dfer_dist.tracking.identity import own_tracking
    from dfer_dist.tracking.sync import end_run

    tracking = own_tracking(run)
    if tracking:
        with _failure_as_warning(tracking.uri, run.root):
            end_run(run, status, given_up)


@contextmanager
def _failure_as_warning(uri: str, folder: Path) -> Iterator[None]:
    from dfer_dist.tracking.server import describe_failure

    try:
        yield
    # MLflow raises many types; the files are complete without it
    except Exception as error:
        print(
            f"warning: {describe_failure(uri, error)}; "
            f"run dfer sync {folder} to send what is missing",
            file=sys.stderr,
        )
