"""``dfer backbones`` and ``fetch-weights``: which image towers there are, and their weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from dfer_dist.utils.files import write_text
from launch.console import number_columns, print_line, print_table
from launch.options import JsonFile

if TYPE_CHECKING:
    from dfer_dist.models.towers.catalog import Entry

Pattern = Annotated[
    str | None,
    typer.Argument(
        help="Part of a name, such as SigLIP2 or ViT-L*336; timm: for the ViTs of timm, videomae: "
        "for video towers. Default: all of open_clip.",
        metavar="[PATTERN]",
    ),
]


def backbones(pattern: Pattern = None, json_file: JsonFile = None) -> None:
    """List image and video towers, and their weights.

    Prints sizes, operations and tags of weights, and why a model is refused.

    Example: [bold]dfer backbones SigLIP2[/bold], or [bold]dfer backbones timm:*dinov3[/bold]
    """
    from dfer_dist.models.towers.catalog import FRAMES, find

    entries = find(pattern)
    if json_file:
        content = [asdict(entry) for entry in entries]
        write_text(json_file, json.dumps(content, indent=2) + "\n")
    accepted = [entry for entry in entries if entry.sizes]
    if accepted:
        print_table(_table(accepted, FRAMES))
        print_line("use one: model.backbone=NAME model.pretrained=TAG")
    if not all(entry.has_text for entry in accepted):
        print_line("without a text tower, also set model.head=linear")
    refused: dict[str, list[str]] = {}
    for entry in entries:
        if entry.refusal:
            refused.setdefault(entry.refusal, []).append(entry.name)
    for reason, names in refused.items():
        print_line(f"refused, each {reason}: {', '.join(names)}")
    if pattern is None:
        print_line("dfer backbones timm: and videomae: list towers without text")


def _table(entries: list[Entry], frames: int) -> Table:
    """Return a row for each backbone, with text towers only if there is one."""
    heads = ["Pixels, patch", "Image M", "Text M", "GFLOPs"]
    notes = [
        "M: million parameters of a tower.",
        f"GFLOPs: 10^9 operations of the tower for a clip of {frames} frames, forward; "
        "a multiplication and an addition are two.",
    ]
    if any(_cells(entry)["Text M"] == "?" for entry in entries):
        notes.append("?: not counted, since its settings are on the Hugging Face Hub.")
    if not any(entry.has_text for entry in entries):
        heads.remove("Text M")
    columns = [Column("Backbone"), *number_columns(*heads), Column("Weights")]
    table = Table(
        *columns, caption=" ".join(notes), caption_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    for entry in entries:
        cells = _cells(entry)
        table.add_row(entry.name, *map(cells.__getitem__, heads), ", ".join(entry.tags) or "none")
    return table


def _cells(entry: Entry) -> dict[str, str]:
    """Return the numbers of a backbone by the head of their column."""
    sizes = entry.sizes
    assert sizes is not None, "refused ones have no row"
    text = "none"
    if entry.has_text:
        text = "?" if sizes.text_parameters is None else f"{sizes.text_parameters / 1e6:.0f}"
    return {
        "Pixels, patch": f"{sizes.image_size}/{sizes.patch}",
        "Image M": f"{sizes.image_parameters / 1e6:.0f}",
        "Text M": text,
        "GFLOPs": f"{sizes.gflops:,.0f}",
    }


def fetch_weights(
    backbone: Annotated[
        str,
        typer.Argument(
            help="A backbone, such as ViT-B-32-quickgelu (see dfer backbones) or "
            "videomae:MCG-NJU/videomae-base."
        ),
    ],
    tag: Annotated[str, typer.Argument(help="Tag of its weights; main for videomae:.")] = "openai",
) -> None:
    """Download pretrained weights for offline training.

    Also fetches the tokenizer and the settings of a text tower that are on the Hugging Face Hub.
    Training itself never downloads.

    Example: [bold]dfer fetch-weights ViT-B-16-SigLIP2 webli[/bold]
    """
    from dfer_dist.models.backbone import fetch_weights as fetch

    print(fetch(backbone, tag))
