"""``dfer folds``: other folds of a packed set, and whether folds share groups."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dfer_dist.utils.errors import UserError, first_of
from launch.commands.data import Workers
from launch.console import number_columns, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from dfer_dist.data.folds.overlay import FoldOverlay
    from dfer_dist.data.folds.packed import PackedClips
    from dfer_dist.data.shards.index import Index

_MAX_CLIPS = 5  # printed


class By(Enum):
    """What the folds are made by."""

    group = "group"
    movie = "movie"
    face = "face"
    file = "file"


Shards = Annotated[str, typer.Argument(help="Folder of shards, or its URL.", metavar="SHARDS")]
MadeBy = Annotated[
    By,
    typer.Option(
        help="What no two folds share: a group (recorded when the set was packed, or of "
        "--groups), a movie (of --groups), people found by their faces; or folds of --groups."
    ),
]
Groups = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="CSV file with a row per clip and a column 'clip'."),
]
Column = Annotated[str | None, typer.Option(help="Column of that file. Default: the name of --by.")]
Count = Annotated[int, typer.Option("--folds", min=2, help="Number of folds.")]
Seed = Annotated[int, typer.Option(help="Seed of the folds.")]
Name = Annotated[str | None, typer.Option(help="Name in reports. Default: the name of --out.")]
Out = Annotated[Path | None, typer.Option(help="File to write, for data.folds.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Count test clips whose group is trained on; write nothing."),
]
Overlay = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Check the folds of this file, not the set's own."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with status 1 if --check finds such clips.")
]
Distance = Annotated[
    float | None,
    typer.Option(min=0, help="Largest mean distance of one person's faces, for --by face."),
]


def folds(
    shards: Shards,
    by: MadeBy = By.group,
    groups: Groups = None,
    column: Column = None,
    count: Count = 5,
    seed: Seed = 0,
    name: Name = None,
    out: Out = None,
    check: Check = False,
    overlay: Overlay = None,
    strict: Strict = False,
    distance: Distance = None,
    workers: Workers = None,
) -> None:
    """Make folds of a packed set that share no group, or check folds.

    The shards do not change: train with data.folds=FILE.

    Example: [bold]dfer folds data/dfew --by group --groups people.csv --out people.json[/bold]
    """
    from dfer_dist.data.folds.packed import read_packed
    from dfer_dist.data.shards.index import load_index
    from dfer_dist.data.shards.store import open_store

    index = load_index(open_store(shards, None, 50.0))
    clips = read_packed(index)
    if check:
        _check(index, clips, groups, column or "group", overlay, strict)
        return
    if out is None:
        raise UserError("--out FILE is missing: the folds are written there (or give --check)")
    column = column or {By.file: "fold", By.face: "group"}.get(by, by.value)
    options: dict[str, Any] = {"folds": count, "seed": seed}
    if groups:
        options |= {"groups": groups.name, "column": column}
    made: dict[str, Any] = {"name": name or out.stem, "made_by": by.value}
    if by is By.face:
        made |= _by_face(index, clips, options, out, distance, workers)
    else:
        made |= _by_file(index, clips, by, groups, column, options)
    _write(index, clips, out, {**made, "options": options})


def _by_file(
    index: Index,
    clips: PackedClips,
    by: By,
    file: Path | None,
    column: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return the fold and the group of each clip, from a file or from the sidecars."""
    from dfer_dist.data.folds import make
    from dfer_dist.data.folds.packed import groups_in_file, stored_groups
    from dfer_dist.data.sources.folds import has_column

    if by is By.movie:
        file = make.movie_file(index, file)
    if by is By.file:
        if file is None:
            raise UserError("--by file needs --groups FILE with the columns 'clip' and 'fold'")
        del options["folds"], options["seed"]
        known = has_column(file, "group")
        group_of = groups_in_file(clips, file, "group") if known else {}
        return {"fold_of": make.folds_in_file(clips, file, column), "group_of": group_of}
    group_of = groups_in_file(clips, file, column) if file else stored_groups(index, clips)
    fold_of = make.assign_groups(clips, group_of, options["folds"], options["seed"])
    return {"fold_of": fold_of, "group_of": group_of}


def _by_face(
    index: Index,
    clips: PackedClips,
    options: dict[str, Any],
    out: Path,
    distance: float | None,
    workers: int | None,
) -> dict[str, Any]:
    """Return the fold, the group and the confidence of each clip; draw the clusters."""
    from dfer_dist.data.folds import faces as people_of
    from dfer_dist.data.folds.make import assign_groups

    options["distance"] = distance or people_of.DISTANCE
    stored, sheet = out.with_suffix(".npz"), out.with_suffix(".png")
    with progress_bar("describe faces") as progress:
        faces = people_of.describe_faces(index, stored, workers, progress)
    people = people_of.cluster_faces(faces, options["distance"])
    groups, found = len(set(people.group_of.values())), int(faces.found.sum())
    faceless = len(faces.keys) - found
    mean = sum(people.confidence.values()) / found
    print_line(
        f"{found} clips with a face in {groups - faceless} clusters, mean silhouette {mean:.2f}; "
        f"{faceless} clips without a face are groups of their own"
    )
    shown = people_of.draw_people(faces, people, sheet)
    print_line(f"{sheet} shows {shown} clusters: look at them; to change some, edit the groups in")
    print_line(f"{out.with_suffix('.csv')} and give that file with --by group --groups")
    fold_of = assign_groups(clips, people.group_of, options["folds"], options["seed"])
    made = {"fold_of": fold_of, "group_of": people.group_of}
    return made | {"confidence": people.confidence}


def _write(index: Index, clips: PackedClips, out: Path, made: dict[str, Any]) -> None:
    """Write the overlay and its table as CSV, and print what is in each fold."""
    from dfer_dist.data.folds.make import make_overlay
    from dfer_dist.data.folds.packed import check_overlay
    from dfer_dist.utils.files import csv_text, write_text

    overlay = make_overlay(index, **made)
    warnings = check_overlay(overlay, index, clips, str(out))
    overlay.write(out)
    rows: list[tuple[Any, ...]] = [("clip", "fold", "group", "confidence")]
    for key, fold in overlay.fold_of.items():
        sure = overlay.confidence.get(key, "")
        rows.append((key, fold, overlay.group_of.get(key, ""), sure))
    write_text(out.with_suffix(".csv"), csv_text(rows))
    print_table(_table(index, clips, overlay))
    for line in warnings:
        print_line(line, style="bold red")
    print_line(f"{out} (hash {overlay.hash[:12]}): train with data.folds={out}")


def _table(index: Index, clips: PackedClips, overlay: FoldOverlay) -> Table:
    """Return the clips of each class and the groups of each fold, a column per fold."""
    columns = number_columns(*(f"fold {k}" for k in overlay.numbers))
    table = Table("", *columns, title=f"{index.name}: {overlay.name}", title_justify="left")
    labels = [
        (overlay.fold_of[key], label)
        for key, label, is_tested in zip(clips.keys, clips.labels, clips.testable, strict=True)
        if is_tested
    ]
    table.add_row("clips", *(str(sum(k == fold for fold, _ in labels)) for k in overlay.numbers))
    for c, name in enumerate(index.classes):
        table.add_row(name, *(str(labels.count((k, c))) for k in overlay.numbers))
    if overlay.group_of:
        found = {(overlay.fold_of[key], group) for key, group in overlay.group_of.items()}
        counts = (sum(k == fold for fold, _ in found) for k in overlay.numbers)
        table.add_row("groups", *map(str, counts))
    return table


def _check(
    index: Index,
    clips: PackedClips,
    file: Path | None,
    column: str,
    overlay: Path | None,
    strict: bool,
) -> None:
    """Print for each fold how many test clips have a group that is trained on."""
    from dfer_dist.config.schema import DataConfig
    from dfer_dist.data.folds.make import find_leaks
    from dfer_dist.data.folds.packed import groups_in_file, open_folds, stored_groups

    group_of = groups_in_file(clips, file, column) if file else stored_groups(index, clips)
    folds = open_folds(DataConfig(folds=str(overlay)), index) if overlay else None
    leaks = find_leaks(index, group_of, folds)
    title = f"{index.name}: {folds.name if folds else 'its own folds'}"
    columns = number_columns("test clips", "in a trained group", "%", "such groups")
    table = Table("", *columns, title=title, title_justify="left")
    for leak in leaks:
        counts = (leak.tested, len(leak.leaking))
        table.add_row(
            f"fold {leak.fold}", *map(str, counts), f"{leak.percent:.2f}", str(leak.groups)
        )
    tested, found = sum(x.tested for x in leaks), [key for x in leaks for key in x.leaking]
    table.add_section()
    table.add_row("all", str(tested), str(len(found)), f"{100 * len(found) / max(tested, 1):.2f}")
    print_table(table)
    if found:
        print_line(f"such as {first_of(found, _MAX_CLIPS)}")
    if found and strict:
        sys.exit(1)
