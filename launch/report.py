"""Write the report of a run, print it, and send it to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from launch.console import print_line
from launch.tracking import print_mlflow_hint, update_mlflow_runs

if TYPE_CHECKING:
    from dfer_dist.reporting.extra_tables import Published
    from dfer_dist.reporting.sections import Section
    from dfer_dist.runs.layout import RunDir


def write_run_report(
    run: RunDir,
    status: str | None = None,
    published: Published | None = None,
    frames: Path | None = None,
) -> tuple[dict[str, Any], list[Section]]:
    """Write the report of the finished folds to the run's folder and to MLflow.

    Parameters
    ----------
    status : str, optional
        Close the parent run at MLflow with this status.
    published : Published, optional
        Results of papers to compare with.
    frames : Path, optional
        A picture of confident errors for the HTML page.
    """
    from dfer_dist.reporting.files import write_report

    summary, sections = write_report(run, published, frames)
    update_mlflow_runs(run, status)
    return summary, sections


def report_run(
    console: Console,
    run: RunDir,
    status: str | None = None,
    published: Published | None = None,
    frames: Path | None = None,
    all_tables: bool = False,
) -> None:
    """Write the report as :func:`write_run_report` does, and print its scores or ``all_tables``."""
    from dfer_dist.reporting.sections import summary_table

    summary, sections = write_run_report(run, status, published, frames)
    console.print(summary_table(summary))
    if all_tables:
        print_tables(console, sections, omit="scores")
    print_line(console, f"report: {run.report}, {run.latex.name}, {run.page.name}")
    print_mlflow_hint(console, run)


def print_tables(console: Console, sections: list[Section], omit: str) -> None:
    """Print the tables of all sections but the one with the key ``omit``."""
    from dfer_dist.reporting.tables import terminal

    for section in sections:
        if section.key != omit:
            for table in section.tables:
                console.print(terminal(table))
