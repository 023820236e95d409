"""``dfer export``: a checkpoint as a standalone model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import new_console, print_line
from launch.options import Checkpoint


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

    console = new_console()
    info = write_model(checkpoint, out, overrides or [])
    result = info.result
    tested = "no test result next to the checkpoint"
    if result:
        scores = f"UAR {result['uar']:.2f}  WAR {result['war']:.2f}"
        tested = f"{scores} on fold {result['fold']}"
    print_line(
        console,
        f"{out}: {info.parameters:,} parameters, {len(info.classes)} classes, {tested}",
    )
    print_line(console, f"card: {out}/README.md; use it: dfer predict {out} VIDEO --faces")
