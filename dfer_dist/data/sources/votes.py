"""Votes of annotators: how many chose each class, in a table or in the columns of a list.

DFEW's annotation file is such a table, with the columns ``1happy``, ``2sad``, ``3neutral``,
``4angry``, ``5surprise``, ``6disgust``, ``7fear``, ``order`` (the number of the clip) and ``label``
(0 for a clip without a majority).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfer_dist.data.sources.folds import clip_name
from dfer_dist.data.sources.lists.classes import ClassNames
from dfer_dist.data.sources.lists.table import column_name, read_table
from dfer_dist.data.sources.probe import VIDEO_SUFFIX
from dfer_dist.data.sources.records import ClipRecord, Fault
from dfer_dist.utils.errors import UserError

# votes_happiness, 1happy, happiness
_VOTE_COLUMN = re.compile(r"(?:votes?_)?(?:[0-9]+_?)?(.+)")
_NO_MAJORITY = "0"


@dataclass(frozen=True)
class ClipVotes:
    """The votes for a clip, in label order, and whether its annotators chose no class."""

    votes: tuple[float, ...]
    is_ambiguous: bool


def parse_votes(fields: Sequence[str], classes: Sequence[str], where: str) -> tuple[float, ...]:
    """Return the votes of a row in label order.

    Raises
    ------
    UserError
        If there is not one for each class, one is no number or negative, or all are zero.
    """
    text = ";".join(fields)
    if len(fields) != len(classes):
        raise UserError(
            f"{where}: {len(fields)} votes, {text}, for {len(classes)} classes, {','.join(classes)}"
        )
    try:
        votes = tuple(float(field) for field in fields)
    except ValueError as e:
        raise UserError(f"{where}: votes {text} are no numbers") from e
    if not all(math.isfinite(vote) and vote >= 0 for vote in votes):
        raise UserError(f"{where}: votes {text} are not all zero or more")
    if not any(votes):
        raise UserError(f"{where}: votes {text} have no vote at all: leave them empty if unknown")
    return votes


def most_voted(votes: Sequence[float]) -> tuple[int, bool]:
    """Return the smallest of the most voted classes, and whether it is the only one."""
    best = max(votes)
    return votes.index(best), votes.count(best) == 1


def vote_columns(columns: Sequence[str], classes: ClassNames, prefix: str = "") -> list[int]:
    """Return the position of the column of each class in label order; none if no class has one.

    Raises
    ------
    UserError
        If some classes have no column, or one has two.
    """
    labels = {column_name(name): label for label, name in enumerate(classes.names)}
    found: dict[int, int] = {}
    for position, column in enumerate(columns):
        name = _VOTE_COLUMN.fullmatch(column)
        if not name or not column.startswith(prefix):
            continue
        label = labels.get(name[1], classes.find(name[1]))
        if label is None:
            continue
        if label in found:
            raise UserError(f"columns {columns[found[label]]} and {column} are of one class")
        found[label] = position
    missing = [name for label, name in enumerate(classes.names) if label not in found]
    if found and missing:
        raise UserError(f"votes for {', '.join(missing)} have no column in {', '.join(columns)}")
    return [found[label] for label in range(len(found))]


def read_votes(file: Path, classes: Sequence[str]) -> dict[str, ClipVotes]:
    """Return the votes in a table by clip: a column of the clip, and one of each class, or `votes`.

    Raises
    ------
    UserError
        If a column is missing, a clip has two rows, or as :func:`parse_votes`.
    """
    table = read_table(file)
    clip, label, joined = (table.find(kind) for kind in ("path", "label", "votes"))
    try:
        positions = vote_columns(table.columns, ClassNames(tuple(classes)))
    except UserError as e:
        raise UserError(f"{file}: {e}") from e
    if clip is None or (joined is None and not positions):
        raise UserError(
            f"{file} has the columns {', '.join(table.columns)}: 'clip', and 'votes' or one for "
            f"each of {', '.join(classes)}, are needed"
        )
    votes: dict[str, ClipVotes] = {}
    for row, fields in enumerate(table.rows):
        given = [fields[position] for position in positions]
        if not positions and joined is not None:
            given = split_votes(fields[joined])
        name = VIDEO_SUFFIX.sub("", clip_name(fields[clip]))
        if name in votes:
            raise UserError(f"{table.where(row)}: clip {name} has two rows: remove one")
        if not any(given):
            continue
        of_clip = parse_votes(given, classes, table.where(row))
        ambiguous = not most_voted(of_clip)[1]
        if label is not None:
            ambiguous = fields[label] in (_NO_MAJORITY, "")
        votes[name] = ClipVotes(of_clip, ambiguous)
    return votes


def split_votes(field: str) -> list[str]:
    """Return the votes in one field."""
    return [vote for vote in re.split(r"[;,|\s]+", field.strip("[]() \"'")) if vote]


def add_votes(
    records: Sequence[ClipRecord],
    votes: Mapping[str, ClipVotes],
    classes: Sequence[str],
    file: Path,
    num_absent: int = 0,
) -> tuple[list[ClipRecord], tuple[str, ...]]:
    """Return clips with their votes, found by their names, and notes for the user.

    ``num_absent`` clips without a majority do not exist.

    Raises
    ------
    UserError
        If no clip has votes.
    """
    by_name = {_plain_number(name): of_clip for name, of_clip in votes.items()}
    names = [_plain_number(clip_name(record.source)) for record in records]
    lasts = [name.rpartition("/")[2] for name in names]
    counts = Counter(lasts)
    found = [
        by_name.get(name) or by_name.get(last if counts[last] == 1 else "")
        for name, last in zip(names, lasts, strict=True)
    ]
    if not any(found):
        raise UserError(
            f"{file} has votes for none of the clips, such as {records[0].source}, but for clips "
            f"such as {next(iter(votes), '(none)')}"
        )
    notes = [f"votes are read from {file.name}; {found.count(None):,} clips have none"]
    if num_absent:
        notes.append(f"{num_absent:,} clips without a majority do not exist")
    voted = [
        replace(record, votes=of_clip.votes if of_clip else ())
        for record, of_clip in zip(records, found, strict=True)
    ]
    return [check_majority(record, classes) for record in voted], tuple(notes)


def _plain_number(name: str) -> str:
    """Return a clip's name without suffix, and a number without zeros before it."""
    return re.sub(r"(^|/)0+(?=[0-9]+$)", r"\1", VIDEO_SUFFIX.sub("", name))


def check_majority(record: ClipRecord, classes: Sequence[str]) -> ClipRecord:
    """Return a clip with a fault if most votes are for another class than its label."""
    if not record.votes:
        return record
    best, is_only = most_voted(record.votes)
    if best == record.label or not is_only:
        return record
    reason = (
        f"its label is {classes[record.label]}, but most votes, {record.votes[best]:g} of "
        f"{sum(record.votes):g}, are for {classes[best]}"
    )
    return replace(record, faults=(*record.faults, Fault("votes differ", reason)))
