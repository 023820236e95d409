"""``dfer report``: runs in the terminal, as Markdown, LaTeX and one HTML page; several runs held against the first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs; others are held against the first."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="published", help="Figures of papers to show beside; or a YAML file of such."
        ),
    ] = None,
    errors: Annotated[
        int | None,
        typer.Option(min=1, help="Draw so many of the most confident mistakes: frames of people."),
    ] = None,
    share_frames: Annotated[
        bool, typer.Option("--share-frames", help="Put that picture into the HTML page too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a comparison; compared/ in the first run by default."),
    ] = None,
) -> None:
    """Write the report of a run again from its folds and print its tables; of several runs, a comparison too.

    Example: [bold]dfer report runs/demo[/bold]; of two runs [bold]dfer report runs/first runs/second[/bold]; beside papers, with the surest
    mistakes [bold]dfer report runs/dfew_vitb32 --against published --errors 20[/bold]
    """
    from dfer_dist.reporting.published import read_published
    from dfer_dist.reporting.tables import terminal
    from launch.report import report_run

    if share_frames and not errors:
        raise UserError("--share-frames is about the picture that --errors N draws: give both")
    if out and len(runs) == 1:
        raise UserError("--out is for a comparison: the files of a run lie in its folder")
    console, folders = Console(highlight=False), [RunDir(run.resolve()) for run in runs]
    published = read_published(against) if against else None
    for run in folders:
        run.describe()  # all of them are runs, before anything is written
    for run in folders:
        frames = _draw_mistakes(console, run, errors) if errors else None
        report_run(
            console,
            run,
            published=published,
            frames=frames if share_frames else None,
            all_tables=len(folders) == 1,
        )
    if len(folders) > 1:
        from dfer_dist.reporting.files import write_comparison

        folder = out or folders[0].root / "compared"
        for section in write_comparison(folders, folder, published):
            for table in section.tables if section.key != "clips" else ():
                console.print(terminal(table))
        console.print(
            f"comparison: {folder / 'comparison.html'}, and .md, .tex, .json and lists of clips beside it",
            soft_wrap=True,
        )


def _draw_mistakes(console: Console, run: RunDir, count: int) -> Path:
    from dfer_dist.reporting.errors_sheet import draw_confident_errors

    path, mistakes = draw_confident_errors(run, count)
    console.print(
        f"{len(mistakes)} mistakes with frames of people, to stay on this machine: {path}",
        soft_wrap=True,
    )
    return path
