"""Read a table: CSV, TSV, or text with blanks between the fields, with or without a header.

Without a header a line is ``path label``, as of VideoMAE, or ``path frames label``, as of
DFER-CLIP. A middle field that is no number, such as the sound file of HiCMAE, is not read.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.sources.text_lists import read_text
from dfer_dist.utils.errors import UserError

_SEPARATORS = "\t,;"
# what a column may be called; of several the first one counts
COLUMNS = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("video_path", "clip_path", "image_path", "video", "clip", "image"),
        *("video_name", "clip_name", "image_name", "order", "name"),
    ),
    "label": ("label", "labels", "class", "classes", "emotion", "emotions", "expression"),
    "split": ("split", "subset", "partition", "usage"),
    "fold": ("fold",),
    "group": ("group",),
    "frames": ("frames", "num_frames", "n_frames", "frame_count"),
    "votes": ("votes",),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes
    ----------
    file : Path
    columns : tuple of str
        Names in lower case, with ``_`` for blanks and hyphens.
    rows : list of tuple of str
        Fields without blanks around them, as many as columns.
    lines : list of int
        The number of each row's line, from 1.
    """

    file: Path
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lines: list[int]

    def find(self, kind: str) -> int | None:
        """Return the position of the column of a kind in :data:`COLUMNS`; None if there is none."""
        found = (self.columns.index(name) for name in COLUMNS[kind] if name in self.columns)
        return next(found, None)

    def where(self, row: int) -> str:
        """Return the place of a row for messages: ``FILE:LINE``."""
        return f"{self.file}:{self.lines[row]}"


def column_name(text: str) -> str:
    """Return the name of a column as in :attr:`Table.columns`."""
    return re.sub(r"[ -]", "_", text.strip().lower())


def read_table(file: Path) -> Table:
    """Read a table; the first line is a header if it names the path or the label.

    Raises
    ------
    UserError
        If the file is missing or empty, has lines of different lengths, or has neither a header
        nor lines of one of the known forms.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing or not a file: check its path")
    text = [(n, line) for n, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    if not text:
        raise UserError(f"{file} is empty: nothing to pack there")
    separator = _separator(text[0][1])
    columns = tuple(column_name(name) for name in _split(text[0][1], separator))
    if not {*COLUMNS["path"], *COLUMNS["label"]} & set(columns):
        return _read_plain(file, text)
    rows = [_split(line, separator) for _, line in text[1:]]
    for (number, line), row in zip(text[1:], rows, strict=True):
        if len(row) != len(columns):
            raise UserError(
                f"{file}:{number}: '{line.strip()}' has {len(row)} fields, the header "
                f"{len(columns)}: {', '.join(columns)}"
            )
    return Table(file, columns, rows, [number for number, _ in text[1:]])


def _separator(line: str) -> str:
    """Return the separator that is most often in a line, else a blank."""
    return max(_SEPARATORS if any(c in line for c in _SEPARATORS) else " ", key=line.count)


def _split(line: str, separator: str) -> tuple[str, ...]:
    if separator == " ":
        line = line.strip()
    fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return tuple(field.strip() for field in fields)


def _read_plain(file: Path, text: list[tuple[int, str]]) -> Table:
    """Read a table without a header."""
    lines = [line.strip().rstrip(f"{_SEPARATORS} ") for _, line in text]
    rows: list[tuple[str, ...]] = []
    for separator in (*sorted(_SEPARATORS, key=lines[0].count, reverse=True), " "):
        rows = [_split(line, separator) for line in lines]
        if len(rows[0]) in (2, 3) and all(len(row) == len(rows[0]) for row in rows):
            break
    else:
        # paths with blanks
        rows = [tuple(line.rsplit(None, 1)) for line in lines]
        more = [tuple(line.rsplit(None, 2)) for line in lines]
        if all(len(row) == 3 and row[1].isdecimal() for row in more):
            rows = more
    for (number, line), row in zip(text, rows, strict=True):
        if not 2 <= len(row) <= 3:
            raise UserError(
                f"{file}:{number}: '{line.strip()}' is not of the form 'path label' or 'path "
                "frames label': name more columns in a first line"
            )
    columns: tuple[str, ...] = ("path", "label")
    if len(rows[0]) == 3:
        counted = all(re.fullmatch("[0-9]+", row[1]) for row in rows)
        columns = ("path", "frames" * counted, "label")
    return Table(file, columns, rows, [number for number, _ in text])
