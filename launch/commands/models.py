"""``dfer export``, ``predict`` and ``pretrain-demo``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import csv_text, sha256_file, write_text
from launch.console import console, number_columns, print_line, print_table, progress_bar
from launch.options import Checkpoint

if TYPE_CHECKING:
    import numpy as np

    from dfer_dist.inference.exported import ExportedModel
    from dfer_dist.inference.predict import VideoPrediction

_MAX_WINDOWS = 24  # of a video on the console; its table has all

Model = Annotated[Path, typer.Argument(help="Folder that dfer export wrote.")]
Videos = Annotated[
    list[Path],
    typer.Argument(help="Video files, folders of frames, or images.", metavar="VIDEO..."),
]
Window = Annotated[
    float, typer.Option(help="Seconds per prediction; inf: the whole video as one clip.")
]
FrameRate = Annotated[
    float | None,
    typer.Option(
        "--fps",
        help="Frames per second of folders of frames. Default: 25, and the plot counts frames.",
    ),
]
Step = Annotated[float, typer.Option(help="Seconds from one window to the next.")]
Faces = Annotated[
    bool, typer.Option("--faces", help="Detect and crop the face, as dfer pack --faces does.")
]
Precision = Annotated[
    Literal["bf16", "fp16", "fp32"] | None,
    typer.Option(help="bf16, fp16 or fp32. Default: as the checkpoint was tested."),
]


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="model.pretrained=FILE if the pretrained weights were moved.",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    license_id: Annotated[
        str,
        typer.Option(
            "--license",
            help="License of the weights for the model card, as the Hugging Face Hub calls it, "
            "such as cc-by-nc-4.0. other: none was chosen.",
        ),
    ] = "other",
    hub_layout: Annotated[
        bool,
        typer.Option(
            "--hub-layout",
            help="Add config.json and .gitattributes for a repository of the Hugging Face Hub.",
        ),
    ] = False,
) -> None:
    """Export a checkpoint as a standalone model.

    The folder has all weights, settings, class texts, a model card, and what MLflow loads. It needs
    nothing of the Hugging Face Hub.

    Example: [bold]dfer export runs/demo/fold-1/checkpoints/LATEST models/demo-1[/bold]
    """
    from dfer_dist.inference.export import export as write_model

    info = write_model(checkpoint, out, overrides or [], license_id, hub_layout)
    tested = "no test result next to the checkpoint"
    if info.result:
        scores = f"UAR {info.result['uar']:.2f}  WAR {info.result['war']:.2f}"
        tested = f"{scores} on fold {info.result['fold']}"
    print_line(f"{out}: {info.parameters:,} parameters, {len(info.classes)} classes, {tested}")
    print_line(f"card: {out}/README.md; use it: dfer predict {out} VIDEO --faces")
    if hub_layout:
        print_line(f"read the card, then publish it: hf upload USER/NAME {out}")


def predict(
    model: Model,
    videos: Videos,
    window: Window = 3.0,
    step: Step = 1.0,
    fps: FrameRate = None,
    faces: Faces = False,
    out: Annotated[Path, typer.Option(help="Folder for tables and plots.")] = Path("predictions"),
    precision: Precision = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also draw which frames and regions predictions rest on."),
    ] = False,
) -> None:
    """Predict expressions in videos and frames over time.

    Writes a table and a plot of each video, and one line for each whole video.

    Example: [bold]dfer predict models/demo-1 interview.mp4 --faces[/bold]
    """
    # "." has no name for its table
    videos = [video if video.name.strip(".") else video.resolve() for video in videos]
    _check_names(videos)
    from dfer_dist.inference.exported import load

    loaded = load(model, precision=precision)
    predictions: list[VideoPrediction] = []
    errors: list[UserError] = []
    for video in videos:
        try:
            prediction = _predict_video(loaded, video, window, step, fps, faces, explain)
        except UserError as error:
            errors.append(error)
            continue
        predictions.append(prediction)
        _write(prediction, out)
        _print_prediction(prediction)
    if predictions:
        _write_overall(predictions, out)
        if loaded.info.temperature:
            print_line(f"probabilities: softmax of the logits / {loaded.temperature:.3f}")
        example = predictions[0].name
        print_line(
            f"tables and plots: {out}/{example}.csv, {out}/{example}.png and so on; "
            f"whole videos: {out}/overall.csv"
        )
    for earlier in errors[:-1]:
        print(f"error: {earlier}", file=sys.stderr)
    if errors:
        raise errors[-1]


def _check_names(videos: list[Path]) -> None:
    """Refuse videos whose tables would have the same name, or that of the table of all."""
    if any(video.name == "overall" for video in videos):
        raise UserError("a folder called overall would have the table of whole videos: rename it")
    (name, count), *_ = Counter(video.name for video in videos).most_common(1)
    if count > 1:
        raise UserError(
            f"two videos are called {name}, and so would be their tables: "
            "predict them one at a time, with different --out"
        )


def _predict_video(
    model: ExportedModel,
    video: Path,
    window: float,
    step: float,
    fps: float | None,
    faces: bool,
    explain: bool,
) -> VideoPrediction:
    from dfer_dist.inference.predict import MAX_EXPLAINED, predict_video

    with console.status(f"reading {video.name}") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"{video.name}: {done} of {total} windows")

        count = MAX_EXPLAINED * explain
        return predict_video(model, video, window, step, faces, progress, fps, count)


def _write(prediction: VideoPrediction, out: Path) -> None:
    """Write the table and the plot of a video."""
    from dfer_dist.reporting.plots.scores import save
    from dfer_dist.reporting.plots.timeline import Timeline, timeline_figure

    name = prediction.video.name
    write_text(out / f"{name}.csv", prediction.csv())
    unit = 1.0 if prediction.has_times else prediction.interval
    timeline = Timeline(
        title=_title(prediction),
        classes=prediction.classes,
        spans=prediction.spans / unit,
        probabilities=prediction.probabilities,
        overall=prediction.overall,
        length=prediction.seconds / unit,
        thumbnails=prediction.thumbnails,
        in_frames=not prediction.has_times,
    )
    save(timeline_figure(timeline), out / f"{name}.png")
    if prediction.explained:
        save(prediction.explained_figure(), out / f"{name}.explained.png")


def _write_overall(predictions: list[VideoPrediction], out: Path) -> None:
    """Write ``overall.csv`` with a row per video."""
    from dfer_dist.data.sources.names import printable

    rows: list[tuple[object, ...]] = [
        ("video", "seconds", "windows", "prediction", *predictions[0].classes)
    ]
    for one in predictions:
        best = one.prediction(one.overall)
        probabilities = (f"{p:.6f}" for p in one.overall)
        path, seconds = printable(str(one.video)), f"{one.seconds:.3f}"
        rows.append((path, seconds, one.num_predicted, best, *probabilities))
    write_text(out / "overall.csv", csv_text(rows))


def _title(prediction: VideoPrediction) -> str:
    begin, end = prediction.spans[0]
    length = f"{end - begin:.3g} s"
    if not prediction.has_times:
        length = f"{(end - begin) / prediction.interval:.0f} frames"
    method = f"one window of {length}"
    if prediction.is_image:
        method = "a single image"
    elif len(prediction.spans) > 1:
        method = f"mean of {prediction.num_predicted} windows of {length}"
    overall = prediction.overall
    best = prediction.predicted(overall)
    score = " + ".join(f"{prediction.classes[c]} {overall[c]:.2f}" for c in best)
    return f"{prediction.name}: {score} ({method})"


def _print_prediction(prediction: VideoPrediction) -> None:
    print_line(_title(prediction), style="bold")
    num_windows = len(prediction.spans)
    columns = number_columns("seconds")
    if prediction.faces is not None:
        columns.append(Column("face"))
    for head in ("most probable", "next"):
        columns += [Column(head), *number_columns("")]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for i in range(min(_MAX_WINDOWS, num_windows)):
        table.add_row(*_window_cells(prediction, i))
    empty_face = [""] * (prediction.faces is not None)
    if num_windows > _MAX_WINDOWS:
        more = f"{num_windows - _MAX_WINDOWS} more"
        table.add_row("…", *empty_face, more, "", f"in {prediction.name}.csv")
    overall = _two_best(prediction.overall, prediction.classes)
    table.add_row("whole video", *empty_face, *overall, style="bold")
    print_table(table)


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


def pretrain_demo(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("tiny_demo.safetensors"),
) -> None:
    """Train the tiny CLIP of the demo on drawn faces.

    Writes the weights that come with this package, in minutes on two cores.

    Example: [bold]dfer pretrain-demo --out mine.safetensors[/bold], then
    [bold]dfer crossval demo model.pretrained=mine.safetensors[/bold]
    """
    from dfer_dist.demo.pretrain import Pairs, Recipe, pretrain, save_clip
    from dfer_dist.models.backbone import SHIPPED

    recipe, start = Recipe(), time.monotonic()
    # before training: this file may be the one that is overwritten
    shipped = sha256_file(SHIPPED["tiny", "demo"])
    with progress_bar("draw people") as progress:
        pairs = Pairs(recipe, progress=progress)
    with progress_bar("train steps") as progress:
        clip, losses = pretrain(recipe, pairs, progress)
    save_clip(clip, recipe, out)
    last_epoch = losses[-len(losses) // recipe.epochs :]
    console.print(
        f"loss {losses[0]:.3f} at first, {sum(last_epoch) / len(last_epoch):.3f} in the last "
        f"epoch; {time.monotonic() - start:.0f} s"
    )
    sha256 = sha256_file(out)
    verdict = "equal to" if sha256 == shipped else "different from"
    print_line(f"{out}: sha256 {sha256}, {verdict} the file of this package")
