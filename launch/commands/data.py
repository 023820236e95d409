"""``dfer pack``, ``dfer verify`` and ``dfer enrich``: data sets as shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from dfer_dist.utils.errors import UserError, first_of
from launch.console import console, number_columns, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from dfer_dist.data.faces.crop import FaceOptions
    from dfer_dist.data.faces.enrich import EnrichResult
    from dfer_dist.data.packing.report import PackReport
    from dfer_dist.data.sources.datasets import Listing

_MAX_CLIPS = 5  # with problems, printed for each kind or file

Workers = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")]
Location = Annotated[str, typer.Argument(help="Folder of shards, or its URL.", metavar="SHARDS")]
LandmarksFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Import landmarks instead: KEY.npy or KEY.txt for each clip."),
]
MapsFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Import maps instead: KEY/*.png, a label image for each frame."
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="dfew, mafw, mafw-compound, ferv39k, folder (CLASS/CLIP/frames or CLASS/CLIP.mp4), "
        "list (general lists), crema-d, ravdess, enterface, afew, raf-db or demo."
    ),
]
Root = Annotated[
    Path,
    typer.Option(help="The unpacked download; with --lists, the folder their paths start from."),
]
Lists = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder of DFER-CLIP's lists 'path frames label'. Default: the owner's. Of list: a "
        "CSV, TSV or text file of clips, or a folder of them; several may follow (repeatable).",
    ),
]
MoreLists = Annotated[
    list[Path] | None, typer.Argument(metavar="LIST", help="More lists after --lists.")
]
Classes = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Classes of a list or folder in order, if it has numbers."),
]
Votes = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="CSV file of annotators' votes: a column 'clip' and one for each class. Default: "
        "DFEW's annotation.csv below --root; 'none' leaves it unread.",
    ),
]
Images = Annotated[
    bool, typer.Option("--images", help="Each image in a class of a folder is a clip of one frame.")
]
Frames = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the clips below --root, if several fit."),
]
Resize = Annotated[
    int | None, typer.Option(min=8, help="Resize frames to N x N pixels. Default: as they are.")
]
Faces = Annotated[
    bool, typer.Option("--faces", help="Crop the face of each clip to 224 x 224 pixels.")
]
KeepUncropped = Annotated[
    bool,
    typer.Option(
        "--keep-uncropped",
        help="Keep clips in which --faces finds no face, as whole frames of the crops' size. "
        "Default: leave them out.",
    ),
]
Detector = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How --faces finds faces: hog, or cnn for tilted and covered ones too (slower; on a "
        "GPU if there is one). Default: hog.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first problem instead of reporting it.")
]
MaxBadFrames = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="PERCENT",
        help="Drop damaged frames if they are at most so many of a clip, else leave the clip out. "
        "Default: 0 for videos, no limit for folders of frames.",
    ),
]
ShardSize = Annotated[int, typer.Option(min=1, help="Maximum number of clips in a shard.")]
NumFolds = Annotated[
    int | None, typer.Option(help="Number of folds of a set without a split. Default: 5.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of these folds. Default: 0.")]
Groups = Annotated[
    Path | None,
    typer.Option(help="CSV file for a folder or list, with a row per clip and column 'clip'."),
]
GroupBy = Annotated[
    str | None,
    typer.Option(help="Column of that file or of the lists; clips of a group stay in one fold."),
]


def pack(
    dataset: Dataset,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder for the shards and pack_report.json.")],
    more: MoreLists = None,
    lists: Lists = None,
    frames: Frames = None,
    resize: Resize = None,
    faces: Faces = False,
    keep_uncropped: KeepUncropped = False,
    detector: Detector = None,
    strict: Strict = False,
    max_bad_frames: MaxBadFrames = None,
    folds: NumFolds = None,
    seed: Seed = None,
    groups: Groups = None,
    group_by: GroupBy = None,
    classes: Classes = None,
    votes: Votes = None,
    images: Images = False,
    clips_per_shard: ShardSize = 256,
    workers: Workers = None,
) -> None:
    """Pack a data set into shards.

    The shards serve all folds. Every clip with a problem is reported. JPEG frames are copied
    without re-encoding; other images and frames of videos become JPEGs. Run the same command again
    to resume. A finished set is kept if lists, settings, file names and sizes are the same.

    Example: [bold]dfer pack --dataset dfew --root DFEW --out data/dfew[/bold]
    """
    from dfer_dist.data.sources.datasets import check_out, read_dataset
    from dfer_dist.data.sources.names import printable

    check_out(root, out)
    crop = _face_options(faces, keep_uncropped, detector)
    about: dict[str, Any] = {"folds": folds, "seed": seed, "groups": groups, "group_by": group_by}
    about |= {"votes": votes, "classes": classes and classes.split(","), "images": images}
    lists = _join_lists(lists, more)
    listing = read_dataset(dataset, root, lists, prefer_videos=faces, frames=frames, **about)
    folders = " and ".join(printable(str(folder)) for folder in listing.folders)
    resized = f"; all frames are brought to {resize} x {resize} pixels" * bool(resize)
    print_line(f"{len(listing.records)} clips listed; from {folders}{resized}")
    options = {"faces": crop, "max_bad_frames": max_bad_frames}
    options |= {"size": resize, "strict": strict, "workers": workers}
    report = pack_listing(listing, out, clips_per_shard, **options)
    print_table(_table(report))
    _print_problems(report, out)


def _join_lists(lists: list[Path] | None, more: list[Path] | None) -> list[Path]:
    """Return the lists of ``--lists A B --lists C``, of which B is an argument of the command."""
    if more and not lists:
        raise UserError(f"unexpected argument {more[0]}: lists are given with --lists")
    return [*(lists or ()), *(more or ())]


def _face_options(
    faces: bool, keep_uncropped: bool, detector: str | None
) -> FaceOptions | Literal[False]:
    """Return how faces are cropped, False for whole frames."""
    from dfer_dist.data.faces.crop import FaceOptions
    from dfer_dist.data.faces.tracking import HOG

    if not faces:
        option = "--keep-uncropped" if keep_uncropped else "--detector"
        if keep_uncropped or detector:
            raise UserError(f"{option} is for --faces: give both, or neither")
        return False
    return FaceOptions(keep_uncropped, detector or HOG)


def pack_listing(listing: Listing, out: Path, clips_per_shard: int, **settings: Any) -> PackReport:
    """Pack clips with a progress bar and return the report that is stored next to the shards."""
    from dfer_dist.data.packing.packer import pack as write_shards
    from dfer_dist.data.packing.report import REPORT, PackReport

    was_finished = (out / "index.json").is_file()
    settings |= {"clips_per_shard": clips_per_shard, "classes": listing.classes}
    settings |= {"unread": listing.unread, "notes": listing.notes}
    with progress_bar("pack clips") as progress:
        index = write_shards(listing.records, listing.name, out, progress=progress, **settings)
    report = PackReport.read(out / REPORT)
    prefix = "already packed, nothing to do: " if was_finished else ""
    print_line(f"{prefix}{report.clips} clips in {len(index.shards)} shards: {out}")
    return report


def _table(report: PackReport) -> Table:
    """Return the counts of each split, a column per split."""
    splits = list(report.splits.values())
    columns = number_columns(*report.splits, "all")
    table = Table("", *columns, title=report.dataset, title_justify="left")

    def add(name: str, counts: list[int]) -> None:
        table.add_row(name, *(f"{n:,}" for n in (*counts, sum(counts))))

    for name in ("listed", "clips", "frames"):
        add(name, [getattr(split, name) for split in splits])
    table.add_section()
    for name in splits[0].classes:
        add(name, [split.classes[name] for split in splits])
    table.add_section()
    add("problems", [split.problems for split in splits])
    return table


def _print_problems(report: PackReport, out: Path) -> None:
    problems = report.problems
    if report.encoded_frames:
        console.print(
            f"{report.encoded_frames:,} frames were no upright JPEGs of this size, "
            "and were encoded as JPEGs of quality 95"
        )
    if report.dropped_frames:
        console.print(f"{report.dropped_frames:,} damaged frames were dropped")
    if report.uncropped_clips:
        console.print(f"clips without a face, packed uncropped: {report.uncropped_clips:,}")
    for line in (*report.notes, *(f"{n:,} {kind} not read" for kind, n in report.unread.items())):
        print_line(line)
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
        print_line(f"  {kind}: {len(found)}")
        for problem in found[:_MAX_CLIPS]:
            print_line(f"    {problem.clip}: {problem.reason}")
        if len(found) > _MAX_CLIPS:
            console.print(f"    and {len(found) - _MAX_CLIPS} more")
    print_line(f"all of them: {out}/pack_report.json; --strict stops at the first")


def verify(location: Location) -> None:
    """Check every byte of packed shards.

    Names the files to copy again, and exits with status 1 if any is damaged.

    Example: [bold]dfer verify data/dfew[/bold]
    """
    from dfer_dist.data.verify import verify as find_damage

    with progress_bar("verify shards") as progress:
        index, damaged = find_damage(location, progress)
    for file in damaged:
        affected = f"; affected clips: {first_of(file.clips, _MAX_CLIPS)}" if file.clips else ""
        print_line(f"copy again {file.file}: {file.reason}{affected}")
    if index:
        num_clips = sum(shard.clips for shard in index.shards)
        state = f"{len(damaged)} files are damaged" if damaged else "no file is damaged"
        console.print(f"{len(index.shards)} shards, {num_clips} clips: {state}")
    if damaged:
        sys.exit(1)


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
    landmarks_from: LandmarksFolder = None,
    parsing_from: MapsFolder = None,
    workers: Workers = None,
) -> None:
    """Add landmarks and parsing maps to packed shards.

    They are written to tars next to the shards, for model.modalities; the shards do not change.
    Run the same command again to resume: what exists is kept.

    Example: [bold]dfer enrich data/dfew --landmarks --parsing[/bold]
    """
    from dfer_dist.data.faces.enrich import EnrichRequest
    from dfer_dist.data.faces.enrich import enrich as add

    request = EnrichRequest(landmarks, parsing, landmarks_from, parsing_from, parser)
    with progress_bar(f"add {' and '.join(request.kinds)}") as progress:
        added = add(shards, request, workers, progress)
    for kind in request.kinds:
        print_line(_summary(kind, [one for one in added if one.kind == kind]))


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
    frames, faceless, clips = (
        sum(made[name] for made in detected)
        for name in ("frames", "without_face", "clips_without_face")
    )
    return f"{text}; {faceless:,} of {frames:,} frames without a face, {clips} clips without any"
