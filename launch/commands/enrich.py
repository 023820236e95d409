"""``dfer enrich``: landmarks and parsing maps beside packed shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from launch.console import ProgressBar

if TYPE_CHECKING:
    from dfer_dist.data.faces.enrich import Added


def enrich(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that dfer pack wrote.")],
    landmarks: Annotated[
        bool, typer.Option("--landmarks", help="Find the 68 landmarks of the face, by dlib.")
    ] = False,
    parsing: Annotated[
        bool, typer.Option("--parsing", help="Draw maps of the face's parts, from its landmarks.")
    ] = False,
    parser: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Maps by this face-parsing network instead, a TorchScript file."
        ),
    ] = None,
    landmarks_from: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Ready landmarks instead: KEY.npy or KEY.txt for each clip."
        ),
    ] = None,
    parsing_from: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Ready maps instead: KEY/*.png, a picture of labels for each frame."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; a core each by default.")
    ] = None,
) -> None:
    """Add landmarks and parsing maps to packed clips, in tars of their own beside the shards, for model.modalities.

    A stopped run goes on when the command is given again; what is there already is kept. The shards stay as they are.

    Example: [bold]dfer enrich data/dfew --landmarks --parsing[/bold]
    """
    from dfer_dist.data.faces.enrich import EnrichRequest
    from dfer_dist.data.faces.enrich import enrich as add

    console = Console(highlight=False)
    wish = EnrichRequest(landmarks, parsing, landmarks_from, parsing_from, parser)
    with ProgressBar(console, f"add {' and '.join(wish.kinds)}") as advance:
        added = add(shards, wish, workers, advance)
    for kind in wish.kinds:
        console.print(
            _line(kind, [a for a in added if a.kind == kind]), soft_wrap=True, markup=False
        )


def _line(kind: str, added: list[Added]) -> str:
    """Such as "landmarks: 700 clips in 15 shards (dlib); 12 of 25,104 frames without a face, 0 clips without any"."""
    sources = ", ".join(dict.fromkeys(str(a.made["by"]) for a in added))
    kept = sum(a.kept for a in added)
    words = f"{kind}: {sum(a.clips for a in added)} clips in {len(added)} shards ({sources}{f', {kept} were there' if kept else ''})"
    told = [a.made for a in added if "frames" in a.made]
    frames, without, clips = (
        sum(made[name] for made in told)
        for name in ("frames", "without_face", "clips_without_face")
    )
    return words + (
        f"; {without:,} of {frames:,} frames without a face, {clips} clips without any"
        if told
        else ""
    )
