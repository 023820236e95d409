"""``dfer export``, ``convert``, ``fetch-weights`` and ``pretrain-demo``: models as files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfer_dist.config.schema import TokenPosition
from launch.console import console, new_app, print_line, progress_bar
from launch.options import Checkpoint, Overrides

convert = new_app(
    help="""Convert the authors' DFER-CLIP checkpoints to ours and back.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """,
)


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
) -> None:
    """Export a checkpoint as a standalone model.

    The folder has all weights, settings, class texts, a model card, and what MLflow loads.

    Example: [bold]dfer export runs/demo/fold-1/checkpoints/LATEST models/demo-1[/bold]
    """
    from dfer_dist.inference.export import export as write_model

    info = write_model(checkpoint, out, overrides or [])
    tested = "no test result next to the checkpoint"
    if info.result:
        scores = f"UAR {info.result['uar']:.2f}  WAR {info.result['war']:.2f}"
        tested = f"{scores} on fold {info.result['fold']}"
    print_line(f"{out}: {info.parameters:,} parameters, {len(info.classes)} classes, {tested}")
    print_line(f"card: {out}/README.md; use it: dfer predict {out} VIDEO --faces")


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
) -> None:
    """Convert a checkpoint of the authors to ours.

    Sizes, classes and their sentences are read from its tensors.

    Example: [bold]dfer convert official DFEW-set1-model_best.pth runs/authors-dfew-1[/bold]
    """
    from dfer_dist.inference.convert import from_official

    found = from_official(file, out, TokenPosition[token_position])
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

    recipe, start = Recipe(), time.monotonic()
    # before training: this file may be the one that is overwritten
    shipped = sha256_file(SHIPPED["tiny", "demo"])
    with progress_bar("draw people") as progress:
        pairs = Pairs(recipe, progress)
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
