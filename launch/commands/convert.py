"""``dfer convert``: checkpoints of others into ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dfer_dist.config.schema import TokenPosition
from launch.console import new_app, print_line
from launch.options import Checkpoint, Overrides

convert = new_app(
    help="""Convert the authors' checkpoints to ours, or back.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """,
)


@convert.command(name="official")
def convert_official(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint of the authors. Nothing in it is executed.")
    ],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to create.")],
    token_position: Annotated[
        Literal["front", "middle", "end"],
        typer.Option(
            help="Position of the class text: front, middle or end. "
            "The file does not store it; the authors' scripts use end."
        ),
    ] = "end",
    experiment: Annotated[
        Path | None,
        typer.Option(
            help="Also write an experiment with the authors' sentences, a YAML file for "
            "dfer crossval.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of the authors to ours.

    Sizes, classes and their sentences are read from its tensors.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """
    from dfer_dist.inference.convert import from_official, write_experiment

    found = from_official(file, out, TokenPosition[token_position])
    if experiment:
        write_experiment(found, experiment, file.name)
    model, data = found.model, found.data
    sharing = "of each class" if model.class_specific else "shared"
    print_line(
        f"{model.backbone}, frames {data.num_frames} x {data.image_size} x {data.image_size}, "
        f"temporal layers {model.temporal_layers}, "
        f"context tokens {model.context_tokens} {sharing}, "
        f"token position {token_position} (not in the file)"
    )
    for name, (sentence,) in (model.sentences or {}).items():
        print_line(f"  {name:15s} {sentence}")
    print_line(f"test it: dfer eval {out} --fold K data.shards=FOLDER")


@convert.command(name="to-official")
def convert_to_official(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="File to create.")],
    overrides: Overrides = None,
) -> None:
    """Convert a checkpoint of ours to the file that the authors' code loads.

    Example:
    [bold]dfer convert to-official runs/dfew/fold-1/checkpoints/LATEST dfew-1.pth[/bold]
    """
    from dfer_dist.inference.convert import to_official

    to_official(checkpoint, out, overrides or [])
    print(out)


@convert.command(name="videomae")
def convert_videomae(
    file: Annotated[
        Path,
        typer.Argument(help="Checkpoint of VideoMAE, MAE-DFER or S4D. Nothing in it is executed."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of the frames that it was trained on, pixels, if the file does not say it: "
            "160 for S4D.",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of VideoMAE's kind to a video tower.

    A decoder or classifier is left out.

    Example: [bold]dfer convert videomae checkpoint-49.pth weights/mae-dfer[/bold]
    """
    from dfer_dist.inference.video_checkpoint import convert_video

    tower = convert_video(file, out, image_size)
    print_line(tower.summary)
    print_line(f"use it: model.backbone={tower.backbone} model.pretrained={tower.pretrained}")
