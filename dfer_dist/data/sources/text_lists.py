"""Read lists of clips: text files of any usual encoding, separator and quoting."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from dfer_dist.utils.errors import UserError

Row = TypeVar("Row")

_SEPARATORS = "\t;,"

# of an integer that a table holds as a float
_ZERO_DECIMALS = re.compile(r"(?<=[0-9])\.0+$")

# what a first line consists of if it is a header
_HEADER = re.compile(
    r"(video|clip|file|frame|num|n)?[ _-]?"
    r"(name|path|video|clip|file|frames?|label|class|emotion|expression)s?",
    re.IGNORECASE,
)


def read_text(file: Path) -> str:
    """Read a text file in UTF-8 or UTF-16, or in GB18030 as in MAFW.

    Raises
    ------
    UserError
        If it is in none of them.
    """
    data = file.read_bytes()
    encodings = ["utf-8-sig", "gb18030"]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in data:
        # UTF-16 without a byte order mark: the zeros of ASCII characters tell which half is first
        is_big_endian = data[::2].count(0) > data[1::2].count(0)
        encodings = ["utf-16-be" if is_big_endian else "utf-16-le"]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except ValueError:
            continue
    raise UserError(f"{file} is not text in UTF-8, UTF-16 or GB18030: convert it to UTF-8")


def read_rows(
    file: Path, parse: Callable[[list[str]], Row | None], num_fields: int, line_format: str
) -> list[Row]:
    """Return the rows of a list; empty lines and a header are skipped.

    Fields are separated by tabs, semicolons, commas or blanks, may be quoted, and a separator may
    end the line. Of fields separated by blanks the first may have blanks itself. The others may be
    integers with decimals of zero.

    Parameters
    ----------
    file : Path
    parse : callable
        Returns the row of the fields of a line, or None if they are none.
    num_fields : int
    line_format : str
        What a line should be, for messages.

    Raises
    ------
    UserError
        If ``parse`` returns None for a line however it is separated.
    """
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        splits = [
            [first, *(_ZERO_DECIMALS.sub("", field) for field in rest)]
            for first, *rest in _split_line(line, num_fields)
        ]
        parsed = (parse(fields) for fields in splits if len(fields) == num_fields)
        row = next((row for row in parsed if row is not None), None)
        if row is not None:
            rows.append(row)
        elif number > 1 or not any(all(map(_HEADER.fullmatch, fields)) for fields in splits):
            raise UserError(f"{file}:{number}: '{line.strip()}' is not of the form {line_format}")
    return rows


def find_delimiter(text: str) -> str:
    """Return what separates the columns of a table: the first separator in it, else a comma."""
    first_line = text.partition("\n")[0] + ","
    return next(character for character in first_line if character in _SEPARATORS)


def _split_line(line: str, num_fields: int) -> Iterator[list[str]]:
    """Yield the fields of a line for each separator in it, and for blanks."""
    line = line.strip().rstrip(f"{_SEPARATORS} ")
    for separator in _SEPARATORS:
        if separator in line:
            fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
            yield [field.strip() for field in fields]
    yield [field.strip('"') for field in line.rsplit(None, num_fields - 1)]
