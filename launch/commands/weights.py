"""``dfer fetch-weights`` and ``dfer pretrain-demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from launch.console import ProgressBar, new_console, print_line


def fetch_weights(
    backbone: Annotated[str, typer.Argument(help="open_clip model, such as ViT-B-32-quickgelu.")],
    tag: Annotated[str, typer.Argument(help="Tag of its weights.")] = "openai",
) -> None:
    """Download pretrained weights for offline training.

    Training itself never downloads.

    Example: [bold]dfer fetch-weights ViT-B-32-quickgelu openai[/bold]
    """
    from dfer_dist.models.backbone import fetch_weights as fetch

    print(fetch(backbone, tag))


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
    from dfer_dist.utils.files import sha256_file

    console, recipe, start = new_console(), Recipe(), time.monotonic()
    # before training: this file may be the one that is overwritten
    shipped = sha256_file(SHIPPED["tiny", "demo"])
    with ProgressBar(console, "draw people") as progress:
        pairs = Pairs(recipe, progress)
    with ProgressBar(console, "train steps") as progress:
        clip, losses = pretrain(recipe, pairs, progress)
    save_clip(clip, recipe, out)
    last_epoch = losses[-len(losses) // recipe.epochs :]
    console.print(
        f"loss {losses[0]:.3f} at first, {sum(last_epoch) / len(last_epoch):.3f} in the last "
        f"epoch; {time.monotonic() - start:.0f} s"
    )
    sha256 = sha256_file(out)
    verdict = "equal to" if sha256 == shipped else "different from"
    print_line(console, f"{out}: sha256 {sha256}, {verdict} the file of this package")
