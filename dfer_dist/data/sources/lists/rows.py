"""The rows of general lists as clips."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dfer_dist.data.sources.folder import match_split
from dfer_dist.data.sources.lists.classes import ClassNames
from dfer_dist.data.sources.lists.table import COLUMNS, Table, column_name
from dfer_dist.data.sources.records import AMBIGUOUS, ClipRecord, listed_clip
from dfer_dist.data.sources.votes import most_voted, parse_votes, split_votes, vote_columns
from dfer_dist.utils.errors import UserError

_VOTES = re.compile("votes?_(.+)")
_FOLD = re.compile(r"(?:fold|set|split)?[ _-]?([0-9]+)(?:\.0+)?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")


@dataclass
class RowParser:
    """Reads the rows of a table.

    Attributes
    ----------
    table : Table
    group_by : str, optional
        Name of the column of groups; by default ``group``, which may be absent.
    vote_names : tuple of str
        Classes that have a column of votes.

    Raises
    ------
    UserError
        If a column is missing, or two exclude each other.
    """

    table: Table
    group_by: str | None = None
    vote_names: tuple[str, ...] = ()
    _columns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the columns."""
        columns, file = self.table.columns, self.table.file
        found = {kind: self.table.find(kind) for kind in COLUMNS}
        if self.group_by is not None:
            name = column_name(self.group_by)
            if name not in columns:
                raise UserError(f"{file} has the columns {', '.join(columns)}, but no '{name}'")
            found["group"] = columns.index(name)
        self._columns = {kind: place for kind, place in found.items() if place is not None}
        matches = map(_VOTES.fullmatch, columns)
        self.vote_names = tuple(match[1] for match in matches if match)
        needed = {"path", "label"} - self._columns.keys()
        if self.vote_names or self.has("votes"):
            needed -= {"label"}
        if needed:
            missing = " and no ".join(sorted(needed))
            raise UserError(f"{file} has the columns {', '.join(columns)}, but no {missing}")
        if self.has("split") and self.has("fold"):
            raise UserError(f"{file} has the columns split and fold: remove one")

    def has(self, *kinds: str) -> bool:
        """Return whether there is a column of one of some kinds."""
        return not self._columns.keys().isdisjoint(kinds)

    def label_fields(self) -> dict[str, str]:
        """Return the place of the first row with each label field."""
        places = {name: str(self.table.file) for name in self.vote_names}
        for row in range(len(self.table.rows)):
            text = self._field(row, "label")
            if text:
                places.setdefault(text, self.table.where(row))
        return places

    def rows(self, classes: ClassNames) -> list[ClipRecord]:
        """Return the clips of all rows.

        Their split is that of the column, if there is one, and ``ambiguous`` without a majority.

        Raises
        ------
        UserError
            If a field cannot be used.
        """
        try:
            votes = vote_columns(self.table.columns, classes, prefix="vote")
        except UserError as e:
            raise UserError(f"{self.table.file}: {e}") from e
        return [self._row(row, classes, votes) for row in range(len(self.table.rows))]

    def _field(self, row: int, kind: str) -> str:
        """Return a field; empty if there is no such column."""
        if kind not in self._columns:
            return ""
        return self.table.rows[row][self._columns[kind]]

    def _row(self, row: int, classes: ClassNames, vote_places: Sequence[int]) -> ClipRecord:
        where = self.table.where(row)
        fields = [self.table.rows[row][place] for place in vote_places]
        fields = fields or split_votes(self._field(row, "votes"))
        votes: tuple[float, ...] = ()
        if any(fields):
            votes = parse_votes(fields, classes.names, where)
        split = ""
        if self.has("split", "fold"):
            split = split_value(self._field(row, "split") or self._field(row, "fold"), where)
        text = self._field(row, "label")
        labels = classes.labels(text) or ()
        if not text:
            if not votes:
                raise UserError(f"{where}: the clip has neither a label nor votes")
            label, is_only = most_voted(votes)
            labels = (label,)
            if not is_only:
                split = AMBIGUOUS
        start, end = self._seconds(row, "start"), self._seconds(row, "end")
        if end is not None and (start or 0) >= end:
            raise UserError(f"{where}: start {start or 0:g} is not before end {end:g}")
        if not self._field(row, "path"):
            raise UserError(f"{where}: the row has no path")
        path = posixpath.normpath(self._field(row, "path").replace("\\", "/"))
        several = tuple(sorted(labels)) * (len(labels) > 1)
        group, frames = self._field(row, "group"), self._frames(row)
        clip = listed_clip(path, labels[0], frames, split)
        return replace(clip, group=group, votes=votes, labels=several, start=start, end=end)

    def _seconds(self, row: int, kind: str) -> float | None:
        text = self._field(row, kind)
        if text and not _NUMBER.fullmatch(text):
            raise UserError(f"{self.table.where(row)}: {kind} '{text}' is not a time in seconds")
        return float(text) if text else None

    def _frames(self, row: int) -> int | None:
        text = re.sub(r"\.0+$", "", self._field(row, "frames"))
        if text and not text.isdecimal():
            raise UserError(f"{self.table.where(row)}: frames '{text}' is not a number of frames")
        return int(text) if text else None


def split_value(text: str, where: str) -> str:
    """Return the split that a field of column ``split`` or ``fold`` means.

    Raises
    ------
    UserError
        If it means none.
    """
    name = match_split(text)
    fold = _FOLD.fullmatch(text)
    if name in ("train", "val", "test"):
        return name
    if fold:
        return f"fold{int(fold[1])}"
    if text.lower() == AMBIGUOUS:
        return AMBIGUOUS
    raise UserError(
        f"{where}: split '{text}' is unknown: give train, val, test, {AMBIGUOUS} or a fold's number"
    )
