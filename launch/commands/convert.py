"""``dfer convert``: the authors' checkpoints of DFER-CLIP into ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfer_dist.config.schema import TokenPosition
from launch.console import new_app, new_console, print_line
from launch.options import Checkpoint, Overrides

convert = new_app(
    help="""Convert the authors' DFER-CLIP checkpoints to ours and back.

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
        TokenPosition,
        typer.Option(
            help="Position of the class text: front, middle or end. "
            "The file does not store it; the authors' scripts use end."
        ),
    ] = TokenPosition.end,
) -> None:
    """Convert a checkpoint of the authors to ours.

    Sizes, classes and their sentences are read from its tensors.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """
    from dfer_dist.inference.convert import from_official

    console = new_console()
    found = from_official(file, out, token_position)
    model, data = found.model, found.data
    sharing = "of each class" if model.class_specific else "shared"
    print_line(
        console,
        f"{model.backbone}, frames {data.num_frames} x {data.image_size} x {data.image_size}, "
        f"temporal layers {model.temporal_layers}, "
        f"context tokens {model.context_tokens} {sharing}, "
        f"token position {token_position.name} (not in the file)",
    )
    for name, (sentence,) in (model.sentences or {}).items():
        print_line(console, f"  {name:15s} {sentence}")
    print_line(console, f"test it: dfer eval {out} --fold K data.shards=FOLDER")


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
