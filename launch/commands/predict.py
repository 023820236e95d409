"""``dfer predict``: expressions in videos over time."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_text
from launch.console import console, number_columns, print_line

if TYPE_CHECKING:
    import numpy as np

    from dfer_dist.inference.exported import ExportedModel
    from dfer_dist.inference.predict import VideoPrediction

_MAX_WINDOWS = 24  # of a video on the console; its table has all

Model = Annotated[Path, typer.Argument(help="Folder that dfer export wrote.")]
Videos = Annotated[list[Path], typer.Argument(help="Video files.", metavar="VIDEO...")]
Window = Annotated[
    float, typer.Option(help="Seconds per prediction; inf: the whole video as one clip.")
]
Step = Annotated[float, typer.Option(help="Seconds from one window to the next.")]
Faces = Annotated[
    bool, typer.Option("--faces", help="Detect and crop the face, as dfer pack --faces does.")
]
Precision = Annotated[
    Literal["bf16", "fp32"] | None,
    typer.Option(help="bf16 or fp32. Default: as the checkpoint was tested."),
]


def predict(
    model: Model,
    videos: Videos,
    window: Window = 3.0,
    step: Step = 1.0,
    faces: Faces = False,
    out: Annotated[Path, typer.Option(help="Folder for tables and plots.")] = Path("predictions"),
    precision: Precision = None,
) -> None:
    """Predict expressions in videos over time.

    Writes a table and a plot of each video, and one line for each whole video.

    Example: [bold]dfer predict models/demo-1 interview.mp4 --faces[/bold]
    """
    _check_names(videos)
    from dfer_dist.inference.exported import load

    loaded = load(model, precision=precision)
    predictions: list[VideoPrediction] = []
    errors: list[UserError] = []
    for video in videos:
        try:
            prediction = _predict_video(loaded, video, window, step, faces)
        except UserError as error:
            errors.append(error)
            continue
        predictions.append(prediction)
        _write(prediction, out)
        _print_prediction(prediction)
    if predictions:
        _write_overall(predictions, out)
        print_line(
            f"tables and plots: {out}/NAME.csv, {out}/NAME.png; whole videos: {out}/overall.csv"
        )
    for earlier in errors[:-1]:
        print(f"error: {earlier}", file=sys.stderr)
    if errors:
        raise errors[-1]


def _check_names(videos: list[Path]) -> None:
    """Refuse videos whose tables would have the same name."""
    (name, count), *_ = Counter(video.name for video in videos).most_common(1)
    if count > 1:
        raise UserError(
            f"two videos are called {name}, and so would be their tables: "
            "predict them one at a time, with different --out"
        )


def _predict_video(
    model: ExportedModel, video: Path, window: float, step: float, faces: bool
) -> VideoPrediction:
    from dfer_dist.inference.predict import predict_video

    with console.status(f"reading {video.name}") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"{video.name}: {done} of {total} windows")

        return predict_video(model, video, window, step, faces, progress)


def _write(prediction: VideoPrediction, out: Path) -> None:
    """Write the table and the plot of a video."""
    from dfer_dist.reporting.plots import save
    from dfer_dist.reporting.timeline import timeline_figure

    name = prediction.video.name
    write_text(out / f"{name}.csv", prediction.csv())
    figure = timeline_figure(
        _title(prediction),
        prediction.spans,
        prediction.probabilities,
        prediction.overall,
        prediction.classes,
        prediction.seconds,
    )
    save(figure, out / f"{name}.png")


def _write_overall(predictions: list[VideoPrediction], out: Path) -> None:
    """Write ``overall.csv`` with a row per video."""
    from dfer_dist.inference.predict import write_csv

    rows: list[tuple[object, ...]] = [
        ("video", "seconds", "windows", "prediction", *predictions[0].classes)
    ]
    for one in predictions:
        best = one.classes[one.overall.argmax()]
        probabilities = (f"{p:.6f}" for p in one.overall)
        rows.append((one.video, f"{one.seconds:.3f}", one.num_predicted, best, *probabilities))
    write_text(out / "overall.csv", write_csv(rows))


def _title(prediction: VideoPrediction) -> str:
    best = int(prediction.overall.argmax())
    begin, end = prediction.spans[0]
    method = f"one window of {end - begin:.3g} s"
    if len(prediction.spans) > 1:
        method = f"mean of {prediction.num_predicted} windows of {end - begin:.3g} s"
    score = f"{prediction.classes[best]} {prediction.overall[best]:.2f}"
    return f"{prediction.video.name}: {score} ({method})"


def _print_prediction(prediction: VideoPrediction) -> None:
    print_line(_title(prediction), style="bold")
    num_windows = len(prediction.spans)
    columns = number_columns("seconds", no_wrap=True)
    if prediction.faces is not None:
        columns.append(Column("face", no_wrap=True))
    for head in ("most probable", "next"):
        columns += [Column(head, no_wrap=True), *number_columns("", no_wrap=True)]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for i in range(min(_MAX_WINDOWS, num_windows)):
        table.add_row(*_window_cells(prediction, i))
    empty_face = [""] * (prediction.faces is not None)
    if num_windows > _MAX_WINDOWS:
        more = f"{num_windows - _MAX_WINDOWS} more"
        table.add_row("…", *empty_face, more, "", f"in {prediction.video.name}.csv")
    overall = _two_best(prediction.overall, prediction.classes)
    table.add_row("whole video", *empty_face, *overall, style="bold")
    console.print(table)


def _window_cells(prediction: VideoPrediction, i: int) -> list[str]:
    """Return the cells of one window."""
    begin, end = prediction.spans[i]
    cells = [f"{begin:.1f} to {end:.1f}"]
    if prediction.faces is not None:
        cells.append(f"{100 * prediction.faces[i]:.0f} %")
    if not prediction.top[i]:
        return [*cells, "no face"]
    return cells + _two_best(prediction.probabilities[i], prediction.classes)


def _two_best(probabilities: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Return the two most probable classes, each with its probability."""
    cells = []
    for c in probabilities.argsort()[::-1][:2]:
        cells += [classes[c], f"{probabilities[c]:.2f}"]
    return cells
