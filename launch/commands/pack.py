"""``dfer pack``: data sets into shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from launch.console import ProgressBar

if TYPE_CHECKING:
    from dfer_dist.data.sources.datasets import Listing

_SHOWN = 5  # clips named on the terminal; the report has all


def pack(
    dataset: Annotated[
        str,
        typer.Option(
            help="dfew, mafw, ferv39k, folder (CLASS/CLIP/frames or CLASS/CLIP.mp4) or demo."
        ),
    ],
    root: Annotated[
        Path,
        typer.Option(
            help="The unpacked download; with --lists, the folder that their paths start from."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards and pack_report.json.")],
    lists: Annotated[
        Path | None,
        typer.Option(help="DFER-CLIP's lists 'path frames label', not the owner's below --root."),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=8, help="Bring frames to N x N pixels; as they are by default."),
    ] = None,
    faces: Annotated[
        bool,
        typer.Option("--faces", help="Find the face in each film, and pack 224 x 224 crops of it."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first fault instead of reporting it.")
    ] = False,
    folds: Annotated[int | None, typer.Option(help="folder: how many folds; 5 by default.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="folder: another seed, other folds; 0 by default.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="folder: CSV file, a row a clip, its name in the column 'clip'."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="folder: its column of groups, of which none is in two folds."),
    ] = None,
    clips_per_shard: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; a core each by default.")
    ] = None,
) -> None:
    """Pack a data set into shards, once for all folds, and report every clip that has a fault.

    JPEG frames are copied, never encoded again; PNG frames and those of films become JPEGs. A stopped packing goes on when the
    command is given again, and a finished one is left as it is: lists, settings, and names and sizes of files are compared, not
    pixels.

    Example: [bold]dfer pack --dataset dfew --root DFEW --out data/dfew[/bold]
    """
    from dfer_dist.data.sources.datasets import read_dataset

    console = Console(highlight=False)
    listing = read_dataset(
        dataset,
        root,
        lists,
        folds=folds,
        seed=seed,
        groups=groups,
        group_by=group_by,
        prefer_videos=faces,
    )
    console.print(
        f"{len(listing.records)} clips listed; from {' and '.join(map(str, listing.folders))}",
        soft_wrap=True,
        markup=False,
    )
    report = pack_listing(
        console,
        listing,
        out,
        clips_per_shard,
        resize=resize,
        strict=strict,
        workers=workers,
        faces=faces,
    )
    console.print(_table(report))
    _tell_faults(console, report, out)


def pack_listing(
    console: Console, listing: Listing, out: Path, clips_per_shard: int, **settings: Any
) -> dict[str, Any]:
    """Pack with a progress bar; returns the report that lies beside the shards."""
    from dfer_dist.data.packing.packer import REPORT
    from dfer_dist.data.packing.packer import pack as write_shards
    from dfer_dist.utils.files import read_json

    finished = (out / "index.json").is_file()
    given = {"classes": listing.classes, "size": settings.pop("resize", None), **settings}
    with ProgressBar(console, "pack clips") as advance:
        index = write_shards(
            listing.records, listing.name, out, clips_per_shard, progress=advance, **given
        )
    report = read_json(out / REPORT)
    words = "already packed, nothing to do: " if finished else ""
    console.print(
        f"{words}{report['clips']} clips in {len(index.shards)} shards: {out}",
        soft_wrap=True,
        markup=False,
    )
    return report


def _table(report: dict[str, Any]) -> Table:
    """Counts of each split, a column a split."""
    splits = report["splits"]
    table = Table(title=report["dataset"], title_justify="left")
    table.add_column("")
    for split in (*splits, "all"):
        table.add_column(split, justify="right")

    def add(name: str, counts: list[int], last: bool = False) -> None:
        table.add_row(name, *(f"{n:,}" for n in (*counts, sum(counts))), end_section=last)

    for name in ("listed", "clips", "frames"):
        add(name, [s[name] for s in splits.values()], name == "frames")
    classes = list(next(iter(splits.values()))["classes"])
    for name in classes:
        add(name, [s["classes"][name] for s in splits.values()], name == classes[-1])
    add("problems", [s["problems"] for s in splits.values()])
    return table


def _tell_faults(console: Console, report: dict[str, Any], out: Path) -> None:
    problems = report["problems"]
    if report["encoded_frames"]:
        console.print(
            f"{report['encoded_frames']:,} frames were no JPEGs of this size, and were encoded as JPEGs of quality 95"
        )
    if not problems:
        return
    lost = {p["clip"] for p in problems if p["left_out"]}
    kept = {p["clip"] for p in problems} - lost
    console.print(
        f"[bold red]{len(lost)} of {report['listed']} clips left out[/bold red], {len(kept)} kept with faults:"
    )
    for kind in dict.fromkeys(p["kind"] for p in problems):
        found = [p for p in problems if p["kind"] == kind]
        console.print(f"  {kind}: {len(found)}", markup=False)
        for p in found[:_SHOWN]:
            console.print(f"    {p['clip']}: {p['reason']}", soft_wrap=True, markup=False)
        if len(found) > _SHOWN:
            console.print(f"    and {len(found) - _SHOWN} more")
    console.print(
        f"all of them: {out}/pack_report.json; --strict stops at the first",
        soft_wrap=True,
        markup=False,
    )
