"""Read general lists of clips: where each is, of which class, and what else is known."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfer_dist.data.sources.dfer_clip_lists import common_prefix, count_unlisted, join_splits
from dfer_dist.data.sources.folds import make_folds
from dfer_dist.data.sources.lists.classes import ClassNames, choose_classes
from dfer_dist.data.sources.lists.rows import RowParser
from dfer_dist.data.sources.lists.splits import Splits, splits_of_column, splits_of_files
from dfer_dist.data.sources.lists.table import Table, read_table
from dfer_dist.data.sources.names import is_system, make_keys, printable
from dfer_dist.data.sources.probe import IMAGE_SUFFIXES, VIDEO_SUFFIX
from dfer_dist.data.sources.records import AMBIGUOUS, ClipRecord, Listing, find_clip, find_media
from dfer_dist.data.sources.votes import check_majority
from dfer_dist.utils.errors import UserError

# clips that are looked for to find which folder of absolute paths the root is
_TRIED = 20
_LIST_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class FoldRequest:
    """How folds are made where no list tells them; see :func:`make_folds`."""

    folds: int | None = None
    seed: int | None = None
    groups: Path | None = None
    group_by: str | None = None

    def given(self) -> str | None:
        """Return the first option that is not at its default."""
        options = {"folds": self.folds, "seed": self.seed, "groups": self.groups}
        return next((name for name, value in options.items() if value is not None), None)


def read_general_lists(
    root: Path,
    lists: Sequence[Path],
    classes: Sequence[str] | None = None,
    request: FoldRequest | None = None,
) -> Listing:
    """Return the clips of lists, with the splits of the lists or with folds.

    Parameters
    ----------
    root : Path
        Folder that relative paths in the lists start from. A path names a folder of frames, a
        video (its suffix may be absent) or an image. Of absolute paths of another machine the
        folders are removed that all of them start with.
    lists : sequence of Path
        Lists, and folders of lists, which are read with their subfolders.
    classes : sequence of str, optional
        See :func:`~dfer_dist.data.sources.lists.classes.choose_classes`.
    request : FoldRequest, optional
        Without a file, ``group_by`` names the column of groups in the lists, by default ``group``.

    Raises
    ------
    UserError
        If a list, a row or a column cannot be used, a clip is in two splits, or no clip exists.
    """
    request = request or FoldRequest()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: nothing to pack there")
    column = None if request.groups else request.group_by
    tables = [read_table(file) for file in _find_lists(lists)]
    parsers = [RowParser(table, column) for table in tables]
    names = _choose_classes(parsers, classes)
    rows = _make_sources({p.table.file: p.rows(names) for p in parsers}, root)
    joined, splits = _join(rows, parsers, names.names)
    records = _add_keys(joined, names.names)
    if not splits.tests:
        records = _make_folds(records, root, request)
    elif request.given():
        raise UserError(f"the lists have splits, which are kept: omit --{request.given()}")
    if not any(map(find_clip, records)):
        raise UserError(
            f"none of the {len(records)} listed clips exists, such as {records[0].media} "
            "(is --root right?)"
        )
    read = [path.name for path in lists if path.resolve().parent == root.resolve()]
    paths = [str(row.media).removeprefix(f"{root}/") for row in joined]
    unread = count_unlisted(root, paths + read)
    name, notes = printable(root.resolve().name), (*_label_notes(names, tables), *splits.notes)
    return Listing(name, names.names, records, (*lists, root), unread, notes)


def _find_lists(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.suffix.lower() in _LIST_SUFFIXES)
            found = sorted(file for file in below if file.is_file() and not is_system(file.name))
            if not found:
                raise UserError(f"{path} holds no list, {', '.join(_LIST_SUFFIXES)}")
        files += found
    return list(dict.fromkeys(files))


def _choose_classes(parsers: Sequence[RowParser], given: Sequence[str] | None) -> ClassNames:
    fields: dict[str, str] = {}
    for parser in parsers:
        if given is None and parser.has("votes") and not parser.vote_names:
            raise UserError(
                f"{parser.table.file} has a column of votes: name the classes in their order with "
                "--classes a,b,c"
            )
        fields = {**parser.label_fields(), **fields}
    return choose_classes(given, fields)


def _label_notes(classes: ClassNames, tables: Sequence[Table]) -> tuple[str, ...]:
    column = tables[0].find("label")
    if column is None or not tables[0].rows or not tables[0].rows[0][column][:1].isdecimal():
        return ()
    numbered = (f"{classes.first + label} {name}" for label, name in enumerate(classes.names))
    return (f"labels are {', '.join(numbered)}",)


def _make_sources(lists: dict[Path, list[ClipRecord]], root: Path) -> dict[Path, list[ClipRecord]]:
    """Return rows with media below the root, and names of clips: without suffix where they can.

    The name of a part of a video ends as in media fragments, ``#t=1.5,3``. Parts of a video become
    a group if the lists tell no groups.
    """
    rows = [row for of in lists.values() for row in of]
    home = _common_home([row.source for row in rows], root)
    stems: dict[str, str] = {}
    for row in rows:
        stems.setdefault(_stem(row.source), row.source)
    are_unique = all(stems[_stem(row.source)] == row.source for row in rows)
    has_parts = any(row.start is not None or row.end is not None for row in rows)
    has_groups = any(row.group for row in rows)

    def place(row: ClipRecord) -> ClipRecord:
        path, group = row.source.removeprefix(home), row.group
        if has_parts and not has_groups:
            group = _stem(path)
        source = printable(_stem(path))
        if not are_unique:
            source = printable(path)
        if row.end is not None:
            source += f"#t={row.start or 0:g},{row.end:g}"
        elif row.start is not None:
            source += f"#t={row.start:g}"
        return replace(row, media=root / path, source=source, group=group)

    return {file: [place(row) for row in of] for file, of in lists.items()}


def _common_home(paths: Sequence[str], root: Path) -> str:
    """Return the folders that absolute paths begin with, and whose copy the root is.

    These are as few as possible, such that one of the first clips is below the root.
    """
    shared = next(iter(paths), "")[: common_prefix(paths)]
    homes = [shared[: match.end()] for match in re.finditer("/", shared)]
    for home in homes:
        tried = [root / path.removeprefix(home) for path in paths[:_TRIED]]
        if any(path.exists() or find_media(path) for path in tried):
            return home
    return shared


def _stem(path: str) -> str:
    stem, suffix = posixpath.splitext(path)
    if suffix.lower() in IMAGE_SUFFIXES:
        return stem
    return VIDEO_SUFFIX.sub("", path)


def _find_splits(rows: dict[Path, list[ClipRecord]], parsers: Sequence[RowParser]) -> Splits:
    with_splits = [parser for parser in parsers if parser.has("split", "fold")]
    if not with_splits:
        return splits_of_files(rows)
    if len(with_splits) < len(parsers):
        other = next(parser for parser in parsers if not parser.has("split", "fold"))
        raise UserError(
            f"{with_splits[0].table.file} has a column of splits, {other.table.file} has none: "
            "give both or neither"
        )
    return splits_of_column([row for of in rows.values() for row in of])


def _join(
    lists: dict[Path, list[ClipRecord]], parsers: Sequence[RowParser], classes: Sequence[str]
) -> tuple[list[ClipRecord], Splits]:
    """Return each clip once with its split, those without a majority last, and what was found."""
    ambiguous = {r.source: r for rows in lists.values() for r in rows if r.split == AMBIGUOUS}
    clear = {f: [r for r in rows if r.source not in ambiguous] for f, rows in lists.items()}
    splits = _find_splits(clear, parsers)
    tests = splits.tests or {"": [row for rows in clear.values() for row in rows]}
    joined = join_splits(tests, splits.trains, classes)
    return joined + [replace(row, split=AMBIGUOUS) for row in ambiguous.values()], splits


def _make_folds(
    records: Sequence[ClipRecord], root: Path, request: FoldRequest
) -> list[ClipRecord]:
    clear = [record for record in records if record.split != AMBIGUOUS]
    ambiguous = [record for record in records if record.split == AMBIGUOUS]
    file, column = request.groups, request.group_by
    return make_folds(clear, root, request.folds, request.seed, file, column) + ambiguous


def _add_keys(rows: Sequence[ClipRecord], classes: Sequence[str]) -> list[ClipRecord]:
    keys = make_keys([row.source for row in rows])
    records = [replace(row, key=key) for key, row in zip(keys, rows, strict=True)]
    return [check_majority(record, classes) for record in records]
