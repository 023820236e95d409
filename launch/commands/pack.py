"""``dfer pack``: data sets into shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from launch.console import ProgressBar, new_console, print_line

if TYPE_CHECKING:
    from dfer_dist.data.packing.report import PackReport
    from dfer_dist.data.sources.datasets import Listing

_MAX_CLIPS = 5  # with problems, printed for each kind; the report has all

Dataset = Annotated[
    str,
    typer.Option(help="dfew, mafw, ferv39k, folder (CLASS/CLIP/frames or CLASS/CLIP.mp4) or demo."),
]
Root = Annotated[
    Path,
    typer.Option(help="The unpacked download; with --lists, the folder their paths start from."),
]
Lists = Annotated[
    Path | None,
    typer.Option(help="Folder of DFER-CLIP's lists 'path frames label'. Default: the owner's."),
]
Resize = Annotated[
    int | None, typer.Option(min=8, help="Resize frames to N x N pixels. Default: as they are.")
]
Faces = Annotated[
    bool, typer.Option("--faces", help="Crop the face of each video to 224 x 224 pixels.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first problem instead of reporting it.")
]
NumFolds = Annotated[int | None, typer.Option(help="Number of folds of a folder. Default: 5.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the folds of a folder. Default: 0.")]
Groups = Annotated[
    Path | None, typer.Option(help="CSV file for a folder, with a row per clip and column 'clip'.")
]
GroupBy = Annotated[
    str | None, typer.Option(help="Column of that file; clips of a group stay in one fold.")
]


def pack(
    dataset: Dataset,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder for the shards and pack_report.json.")],
    lists: Lists = None,
    resize: Resize = None,
    faces: Faces = False,
    strict: Strict = False,
    folds: NumFolds = None,
    seed: Seed = None,
    groups: Groups = None,
    group_by: GroupBy = None,
    clips_per_shard: Annotated[
        int, typer.Option(min=1, help="Maximum number of clips in a shard.")
    ] = 256,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """Pack a data set into shards.

    The shards serve all folds. Every clip with a problem is reported. JPEG frames are copied
    without re-encoding; PNG frames and frames of videos become JPEGs. Run the same command again
    to resume. A finished set is kept if lists, settings, file names and sizes are the same.

    Example: [bold]dfer pack --dataset dfew --root DFEW --out data/dfew[/bold]
    """
    from dfer_dist.data.sources.datasets import read_dataset

    console = new_console()
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
    sources = " and ".join(map(str, listing.folders))
    print_line(console, f"{len(listing.records)} clips listed; from {sources}")
    options = {"size": resize, "strict": strict, "workers": workers, "faces": faces}
    report = pack_listing(console, listing, out, clips_per_shard, **options)
    console.print(_table(report))
    _print_problems(console, report, out)


def pack_listing(
    console: Console, listing: Listing, out: Path, clips_per_shard: int, **settings: Any
) -> PackReport:
    """Pack clips with a progress bar and return the report that is stored next to the shards."""
    from dfer_dist.data.packing.packer import pack as write_shards
    from dfer_dist.data.packing.report import REPORT, PackReport

    was_finished = (out / "index.json").is_file()
    with ProgressBar(console, "pack clips") as progress:
        index = write_shards(
            listing.records,
            listing.name,
            out,
            clips_per_shard,
            classes=listing.classes,
            progress=progress,
            **settings,
        )
    report = PackReport.read(out / REPORT)
    prefix = "already packed, nothing to do: " if was_finished else ""
    print_line(console, f"{prefix}{report.clips} clips in {len(index.shards)} shards: {out}")
    return report


def _table(report: PackReport) -> Table:
    """Return the counts of each split, a column per split."""
    splits = report.splits
    table = Table(title=report.dataset, title_justify="left")
    table.add_column("")
    for split in (*splits, "all"):
        table.add_column(split, justify="right")

    def add(name: str, counts: list[int], last: bool = False) -> None:
        table.add_row(name, *(f"{n:,}" for n in (*counts, sum(counts))), end_section=last)

    for name in ("listed", "clips", "frames"):
        add(name, [getattr(split, name) for split in splits.values()], name == "frames")
    classes = list(next(iter(splits.values())).classes)
    for name in classes:
        add(name, [split.classes[name] for split in splits.values()], name == classes[-1])
    add("problems", [split.problems for split in splits.values()])
    return table


def _print_problems(console: Console, report: PackReport, out: Path) -> None:
    problems = report.problems
    if report.encoded_frames:
        console.print(
            f"{report.encoded_frames:,} frames were no JPEGs of this size, "
            "and were encoded as JPEGs of quality 95"
        )
    if not problems:
        return
    lost = {problem.clip for problem in problems if problem.left_out}
    kept = {problem.clip for problem in problems} - lost
    console.print(
        f"[bold red]{len(lost)} of {report.listed} clips left out[/bold red], "
        f"{len(kept)} kept with faults:"
    )
    for kind in dict.fromkeys(problem.kind for problem in problems):
        found = [problem for problem in problems if problem.kind == kind]
        print_line(console, f"  {kind}: {len(found)}")
        for problem in found[:_MAX_CLIPS]:
            print_line(console, f"    {problem.clip}: {problem.reason}")
        if len(found) > _MAX_CLIPS:
            console.print(f"    and {len(found) - _MAX_CLIPS} more")
    print_line(console, f"all of them: {out}/pack_report.json; --strict stops at the first")
