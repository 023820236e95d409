"""``dfer report``: the report of a run, or a comparison of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.console import new_console, print_line
from launch.report import print_tables, report_run

if TYPE_CHECKING:
    from dfer_dist.reporting.extra_tables import Published


Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Folders of runs; the first is the baseline."),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="published",
        help="Show published results next to them: 'published', or a YAML file.",
    ),
]


def report(
    runs: Runs,
    against: Against = None,
    errors: Annotated[
        int | None,
        typer.Option(min=1, help="Draw this many of the most confident errors (frames of people)."),
    ] = None,
    share_frames: Annotated[
        bool, typer.Option("--share-frames", help="Put that picture into the HTML page too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a comparison. Default: compared/ in the first run."),
    ] = None,
) -> None:
    """Write the report of a run, or compare runs.

    Prints the tables, and writes Markdown, LaTeX and one HTML page.

    Example: [bold]dfer report runs/demo[/bold]; two runs:
    [bold]dfer report runs/first runs/second[/bold]; with published results and confident errors:
    [bold]dfer report runs/dfew_vitb32 --against published --errors 20[/bold]
    """
    from dfer_dist.reporting.extra_tables import read_published

    if share_frames and not errors:
        raise UserError("--share-frames is about the picture of --errors: give --errors N too")
    if out and len(runs) == 1:
        raise UserError("--out is for a comparison: give several runs, or leave --out out")
    console, run_dirs = new_console(), [RunDir(run.resolve()) for run in runs]
    published = read_published(against) if against else None
    # check that all of them are runs before anything is written
    for run in run_dirs:
        run.info()
    for run in run_dirs:
        picture = _draw_errors(console, run, errors) if errors else None
        shared = picture if share_frames else None
        is_single = len(run_dirs) == 1
        report_run(console, run, published=published, frames=shared, all_tables=is_single)
    if len(run_dirs) > 1:
        _compare(console, run_dirs, out or run_dirs[0].root / "compared", published)


def _compare(
    console: Console, runs: list[RunDir], folder: Path, published: Published | None
) -> None:
    """Write the comparison and print its tables, except the long list of clips."""
    from dfer_dist.reporting.files import write_comparison

    print_tables(console, write_comparison(runs, folder, published), omit="clips")
    page = folder / "comparison.html"
    print_line(console, f"comparison: {page}, with .md, .tex, .json and lists of clips next to it")


def _draw_errors(console: Console, run: RunDir, count: int) -> Path:
    from dfer_dist.reporting.errors_sheet import draw_confident_errors

    path, errors = draw_confident_errors(run, count)
    print_line(
        console, f"{len(errors)} errors with frames of people, do not share this file: {path}"
    )
    return path
