"""``dfer enrich``: landmarks and parsing maps for packed shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.console import ProgressBar, new_console, print_line

if TYPE_CHECKING:
    from dfer_dist.data.faces.enrich import EnrichResult


def enrich(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that dfer pack wrote.")],
    landmarks: Annotated[
        bool, typer.Option("--landmarks", help="Detect the 68 landmarks of the face with dlib.")
    ] = False,
    parsing: Annotated[
        bool, typer.Option("--parsing", help="Draw maps of the face's parts from its landmarks.")
    ] = False,
    parser: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the maps with this TorchScript network instead."),
    ] = None,
    landmarks_from: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Import landmarks instead: KEY.npy or KEY.txt for each clip."
        ),
    ] = None,
    parsing_from: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Import maps instead: KEY/*.png, a label image for each frame."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """Add landmarks and parsing maps to packed shards.

    They are written to tars next to the shards, for model.modalities; the shards do not change.
    Run the same command again to resume: what exists is kept.

    Example: [bold]dfer enrich data/dfew --landmarks --parsing[/bold]
    """
    from dfer_dist.data.faces.enrich import EnrichRequest
    from dfer_dist.data.faces.enrich import enrich as add

    console = new_console()
    request = EnrichRequest(landmarks, parsing, landmarks_from, parsing_from, parser)
    with ProgressBar(console, f"add {' and '.join(request.kinds)}") as progress:
        added = add(shards, request, workers, progress)
    for kind in request.kinds:
        print_line(console, _summary(kind, [one for one in added if one.kind == kind]))


def _summary(kind: str, added: list[EnrichResult]) -> str:
    """Describe what was added to all shards.

    Such as "landmarks: 700 clips in 15 shards (dlib); 12 of 25,104 frames without a face, 0 clips
    without any".
    """
    notes = list(dict.fromkeys(str(one.made["by"]) for one in added))
    num_kept = sum(one.kept for one in added)
    if num_kept:
        notes.append(f"{num_kept} existed before")
    num_clips = sum(one.clips for one in added)
    text = f"{kind}: {num_clips} clips in {len(added)} shards ({', '.join(notes)})"
    detected = [one.made for one in added if "frames" in one.made]
    if not detected:
        return text
    frames, faceless_frames, faceless_clips = (
        sum(made[name] for made in detected)
        for name in ("frames", "without_face", "clips_without_face")
    )
    return (
        f"{text}; {faceless_frames:,} of {frames:,} frames without a face, "
        f"{faceless_clips} clips without any"
    )
