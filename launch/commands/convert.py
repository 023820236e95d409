"""``dfer convert …``: the authors' checkpoints of DFER-CLIP into ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfer_dist.config.schema import TokenPosition
from launch.console import new_app

convert = new_app(
    help="""The authors' checkpoints of DFER-CLIP into ours, and back.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """,
    short_help="The authors' checkpoints of DFER-CLIP into ours, and back.",
)


@convert.command(name="official")
def convert_official(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint of the authors; nothing that it names is run.")
    ],
    out: Annotated[Path, typer.Argument(help="The checkpoint folder to make.")],
    token_position: Annotated[
        TokenPosition,
        typer.Option(
            help="Where the class text stands: the file does not tell, the authors' scripts say end."
        ),
    ] = TokenPosition.end,
) -> None:
    """Turn a checkpoint of the authors into one of ours. Sizes, classes and their sentences are read from its tensors.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """
    from rich.console import Console

    from dfer_dist.inference.convert import from_official

    found = from_official(file, out, token_position)
    model, data = found.model, found.data
    console = Console(highlight=False)
    console.print(
        f"{model.backbone}, frames {data.num_frames} x {data.image_size} x {data.image_size}, temporal layers {model.temporal_layers}, "
        f"context tokens {model.context_tokens} {'of each class' if model.class_specific else 'shared'}, "
        f"token position {token_position.name} (not in the file)",
        soft_wrap=True,
    )
    for name, (sentence,) in (model.sentences or {}).items():
        console.print(f"  {name:15s} {sentence}", soft_wrap=True, markup=False)
    console.print(
        f"test it: dfer eval {out} --fold K data.shards=FOLDER", soft_wrap=True, markup=False
    )


@convert.command(name="to-official")
def convert_to_official(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder such as runs/dfew_vitb32/fold-1/checkpoints/LATEST.")
    ],
    out: Annotated[Path, typer.Argument(help="The file to make.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as data.shards=FOLDER.", metavar="[KEY=VALUE]..."),
    ] = None,
) -> None:
    """Write a checkpoint of ours as the authors' code reads it.

    Example: [bold]dfer convert to-official runs/dfew_vitb32/fold-1/checkpoints/LATEST dfew-1.pth[/bold]
    """
    from dfer_dist.inference.convert import to_official

    to_official(checkpoint, out, overrides or [])
    print(out)
