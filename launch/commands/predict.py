"""``dfer export`` and ``dfer predict``: a model on its own, and what it says of films."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from dfer_dist.inference.predict import VideoPrediction

_SHOWN = 24  # windows of a film in the console; all are in its table


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder such as runs/demo/fold-1/checkpoints/LATEST.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="model.pretrained=FILE, where that lies elsewhere now.", metavar="[KEY=VALUE]..."
        ),
    ] = None,
) -> None:
    """Write a checkpoint as a model on its own: all weights, settings, class texts, a card, and what MLflow wants.

    Example: [bold]dfer export runs/demo/fold-1/checkpoints/LATEST models/demo-1[/bold]
    """
    from dfer_dist.inference.export import export as write

    info = write(checkpoint, out, overrides or [])
    result = info.result
    tested = (
        f"UAR {result['uar']:.2f}  WAR {result['war']:.2f} on fold {result['fold']}"
        if result
        else "no test result beside the checkpoint"
    )
    console = Console(highlight=False)
    console.print(
        f"{out}: {info.parameters:,} parameters, {len(info.classes)} classes, {tested}",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"card: {out}/README.md; use it: dfer predict {out} VIDEO --faces",
        soft_wrap=True,
        markup=False,
    )


def predict(
    model: Annotated[Path, typer.Argument(help="A folder that dfer export wrote.")],
    videos: Annotated[list[Path], typer.Argument(help="Films.", metavar="VIDEO...")],
    window: Annotated[
        float,
        typer.Option(help="Seconds that one prediction sees; inf: the whole film as one clip."),
    ] = 3.0,
    step: Annotated[float, typer.Option(help="Seconds from one window to the next.")] = 1.0,
    faces: Annotated[
        bool,
        typer.Option("--faces", help="Find the face and cut it out, as dfer pack --faces does."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for tables and plots.")] = Path("predictions"),
    precision: Annotated[
        str | None, typer.Option(help="bf16 or fp32; by default as the checkpoint was tested.")
    ] = None,
) -> None:
    """Probabilities of films over time: a table and a plot of each, and one line for the whole film.

    Example: [bold]dfer predict models/demo-1 interview.mp4 --faces[/bold]
    """
    if precision not in (None, "bf16", "fp32"):
        raise UserError(f"--precision {precision}: give bf16 or fp32")
    names = [video.name for video in videos]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"two films are called {twice}, and so would be their tables: give them one at a time, with --out"
        )
    console = Console(highlight=False)
    from dfer_dist.inference.exported import load
    from dfer_dist.inference.predict import predict_video, write_csv

    loaded = load(model, precision=precision)
    done: list[VideoPrediction] = []
    failed: list[UserError] = []
    for video in videos:
        try:
            with console.status(f"reading {video.name}") as status:
                course = predict_video(
                    loaded, video, window, step, faces, partial(_tell, status, video.name)
                )
        except UserError as e:
            failed.append(e)
            continue
        done.append(course)
        _write(course, out)
        _show(console, course)
    if done:
        rows = [
            (
                c.video,
                f"{c.seconds:.3f}",
                c.num_predicted,
                c.classes[c.overall.argmax()],
                *(f"{p:.6f}" for p in c.overall),
            )
            for c in done
        ]
        _write_text(
            out / "overall.csv",
            write_csv([("video", "seconds", "windows", "prediction", *loaded.classes), *rows]),
        )
        console.print(
            f"tables and plots: {out}/NAME.csv, {out}/NAME.png; whole films: {out}/overall.csv",
            soft_wrap=True,
            markup=False,
        )
    for error in failed[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if failed:
        raise failed[-1]


def _tell(status: Status, name: str, done: int, total: int) -> None:
    status.update(f"{name}: {done} of {total} windows")


def _write_text(path: Path, text: str) -> None:
    from dfer_dist.utils.files import write_text

    write_text(path, text)


def _write(course: VideoPrediction, out: Path) -> None:
    from dfer_dist.reporting.figures import course_figure, save
    from dfer_dist.utils.files import atomic_path

    _write_text(out / f"{course.video.name}.csv", course.csv())
    arrays = (course.spans, course.probabilities, course.overall)
    figure = course_figure(_title(course), *arrays, course.classes, course.seconds)
    with atomic_path(out / f"{course.video.name}.png") as temporary:
        save(figure, temporary)


def _title(course: VideoPrediction) -> str:
    best = int(course.overall.argmax())
    length = course.spans[0, 1] - course.spans[0, 0]
    how = (
        f"mean of {course.num_predicted} windows of {length:.3g} s"
        if len(course.spans) > 1
        else f"one window of {length:.3g} s"
    )
    return f"{course.video.name}: {course.classes[best]} {course.overall[best]:.2f} ({how})"


def _show(console: Console, course: VideoPrediction) -> None:
    console.print(_title(course), style="bold", soft_wrap=True, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    heads = [
        "seconds",
        *([] if course.faces is None else ["face"]),
        "most probable",
        "",
        "next",
        "",
    ]
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i == 0 or not head else "left", no_wrap=True)
    for i in range(min(_SHOWN, len(course.spans))):
        begin, end = course.spans[i]
        face = [] if course.faces is None else [f"{100 * course.faces[i]:.0f} %"]
        words = _two_best(course.probabilities[i], course.classes) if course.top[i] else ["no face"]
        table.add_row(f"{begin:.1f} to {end:.1f}", *face, *words)
    gap = [] if course.faces is None else [""]
    if len(course.spans) > _SHOWN:
        table.add_row(
            "…", *gap, f"{len(course.spans) - _SHOWN} more", "", f"in {course.video.name}.csv"
        )
    table.add_row("whole film", *gap, *_two_best(course.overall, course.classes), style="bold")
    console.print(table)


def _two_best(probabilities: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    return [
        word
        for c in probabilities.argsort()[::-1][:2]
        for word in (classes[c], f"{probabilities[c]:.2f}")
    ]
