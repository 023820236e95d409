"""Folds of a data set without official ones: stratified, and disjoint in groups if there are some.

Without groups, clips are distributed class by class, so that classes and fold sizes are as equal
as possible. With groups (such as people or sources) no group is in two folds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfer_dist.data.sources.names import plain_name
from dfer_dist.data.sources.probe import VIDEO_SUFFIX
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.data.sources.text_lists import find_delimiter, read_text
from dfer_dist.utils.errors import UserError


def make_folds(
    records: Sequence[ClipRecord],
    home: Path,
    folds: int | None = None,
    seed: int | None = None,
    file: Path | None = None,
    column: str | None = None,
) -> list[ClipRecord]:
    """Return clips with their folds as splits: those of a group are in one fold.

    Parameters
    ----------
    records : sequence of ClipRecord
    home : Path
        Where the clips are, for messages.
    folds, seed : int, optional
        By default 5, and 0. The seed is not used if there are as many groups as folds.
    file, column : optional
        A CSV file with a row per clip, and its column of groups. By default the groups of the
        records count, if any.

    Raises
    ------
    UserError
        If there are fewer than two folds, fewer clips or groups than folds, a file without a
        column, or clips of which only some have a group.
    """
    folds = 5 if folds is None else folds
    if folds < 2:
        raise UserError(f"--folds {folds} is too small: give 2 or more")
    if file is not None and column is None:
        raise UserError(f"--groups {file} needs --group-by, the name of its column of groups")
    if len(records) < folds:
        raise UserError(f"{home} holds {len(records)} clips, too few for {folds} folds")
    groups = [record.group for record in records]
    if file is not None and column is not None:
        groups = _groups_of_clips(records, file, column)
    if any(groups):
        if not all(groups):
            alone = records[groups.index("")]
            raise UserError(f"clip {alone.source} has no group, others have: give one to each clip")
        assigned = split_groups([r.label for r in records], groups, folds, seed or 0)
    else:
        assigned = assign_folds(records, folds, seed or 0)
    return [replace(r, split=f"fold{k}") for r, k in zip(records, assigned, strict=True)]


def assign_folds(records: Sequence[ClipRecord], folds: int, seed: int) -> list[int]:
    """Return a fold from 1 for each clip: clips are shuffled within their class, and take turns."""
    digests = [hashlib.sha256(f"{seed} {record.source}".encode()).digest() for record in records]
    order = sorted(range(len(records)), key=lambda i: (records[i].label, digests[i]))
    assigned = [0] * len(records)
    for position, i in enumerate(order):
        assigned[i] = position % folds + 1
    return assigned


def split_groups(labels: Sequence[int], groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Return a fold from 1 for each clip: no group is in two, classes are as equal as possible.

    Raises
    ------
    UserError
        If the groups are too few.
    """
    names = sorted(set(groups))
    if len(names) < folds:
        raise UserError(
            f"{len(names)} groups are too few for {folds} folds: "
            f"give --folds {max(len(names), 2)} or another column"
        )
    if len(names) == folds:
        return [names.index(group) + 1 for group in groups]
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    assigned = np.zeros(len(labels), int)
    with warnings.catch_warnings():
        # a class may have fewer clips than folds: the table of counts shows it
        warnings.simplefilter("ignore")
        try:
            for fold, (_, test) in enumerate(splitter.split(groups, labels, groups), 1):
                assigned[test] = fold
        except ValueError as e:
            raise UserError(f"groups cannot be balanced: {e}") from e
    if len(set(assigned.tolist())) < folds:
        raise UserError(
            f"a fold has no group: give another --seed or fewer than {folds} with --folds"
        )
    return assigned.tolist()


def _groups_of_clips(records: Sequence[ClipRecord], file: Path, column: str) -> list[str]:
    """Return the group of each clip."""
    rows = read_groups(file, column)
    sources = [clip_name(record.source) for record in records]
    names = [source.rpartition("/")[2] for source in sources]
    counts = Counter(names)
    groups = []
    for source, name in zip(sources, names, strict=True):
        if source not in rows and name in rows and counts[name] > 1:
            raise UserError(f"{file}: clips of several classes are named {name}: write {source}")
        if source not in rows and name not in rows:
            raise UserError(f"{file} has no row for clip {name} ({source})")
        groups.append(rows.get(source, rows.get(name, "")))
    return groups


def _open_table(file: Path) -> csv.DictReader[str]:
    text = read_text(file)
    reader = csv.DictReader(io.StringIO(text), delimiter=find_delimiter(text))
    reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    return reader


def has_column(file: Path, column: str) -> bool:
    """Return whether a CSV file exists and has a column."""
    return file.is_file() and column in (_open_table(file).fieldnames or [])


def read_groups(file: Path, column: str) -> Mapping[str, str]:
    """Return the groups in a column of a CSV file by clip, without the suffix of its video.

    Raises
    ------
    UserError
        If the file or the column is missing, a row is incomplete, or a clip is in two groups.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing: --groups takes a CSV file with a row per clip")
    reader = _open_table(file)
    header = reader.fieldnames or []
    if "clip" not in header or column not in header:
        raise UserError(
            f"{file} has the columns {', '.join(header) or '(none)'}: "
            f"'clip' and '{column}' are needed"
        )
    groups: dict[str, str] = {}
    for row in reader:
        name = (row["clip"] or "").strip()
        group = (row[column] or "").strip()
        if not name or not group:
            raise UserError(f"{file}:{reader.line_num}: a row without a clip or without a group")
        name = VIDEO_SUFFIX.sub("", clip_name(name))
        if groups.setdefault(name, group) != group:
            raise UserError(
                f"{file}:{reader.line_num}: clip {name} is in two groups, "
                f"{groups[name]} and {group}"
            )
    return groups


def clip_name(name: str) -> str:
    """Return the name of a clip such that a table and a file system agree on it."""
    # not the backslash of a byte that is no UTF-8
    return plain_name(re.sub(r"\\(?!x[0-9a-f]{2})", "/", name)).strip()
