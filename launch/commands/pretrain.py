"""``dfer pretrain-demo``: the weights that `model.pretrained=demo` of the backbone ``tiny`` means, made again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from launch.console import Bar


def pretrain_demo(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("tiny_demo.safetensors"),
) -> None:
    """Train a tiny CLIP on drawn faces and sentences about their movements: the weights that come with this package, in minutes on two cores.

    Example: [bold]dfer pretrain-demo --out mine.safetensors[/bold], then [bold]dfer crossval demo model.pretrained=mine.safetensors[/bold]
    """
    from rich.console import Console

    from dfer_dist.demo.pretrain import Pairs, Recipe, pretrain, save_clip
    from dfer_dist.models.backbone import SHIPPED
    from dfer_dist.utils.files import sha256_file

    console, recipe, start = Console(highlight=False), Recipe(), time.monotonic()
    shipped = sha256_file(SHIPPED["tiny", "demo"])  # now, since that may be what is written
    with Bar(console, "draw people") as advance:
        pairs = Pairs(recipe, advance)
    with Bar(console, "train steps") as advance:
        clip, losses = pretrain(recipe, pairs, advance)
    save_clip(clip, recipe, out)
    last = losses[-len(losses) // recipe.epochs :]
    console.print(
        f"loss {losses[0]:.3f} at first, {sum(last) / len(last):.3f} in the last epoch; {time.monotonic() - start:.0f} s"
    )
    sha256 = sha256_file(out)
    same = "the same bytes as" if sha256 == shipped else "other bytes than"
    console.print(f"{out}: sha256 {sha256}, {same} the file of this package", soft_wrap=True)
