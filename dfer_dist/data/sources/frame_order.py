"""The temporal order of frame files, from the numbers in their names."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise, product
from pathlib import Path

# an integer; a Decimal if it has a decimal point, such as 1.0
_Number = int | Decimal

# digits of any script
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_SIGNED = re.compile(rf"-?{_NUMBERS.pattern}")
_SEPARATOR = re.compile(r"[.,]")
# after a letter or digit and before a number
_HYPHEN = re.compile(r"[^\W_]-\d")

# what tools that crop faces write before the number of a face
_FACE = re.compile(r"(?:det|face|id|identity|person|subject|track)s?[^a-z]*$", re.IGNORECASE)

# what is before a frame's number that counts anew in each part of one recording
_PART = re.compile(r"(?:sec|second|shot|scene|part|segment)s?[^a-z\d]*\d+\D*$", re.IGNORECASE)
# s01_f03 may be of a second or of another sequence: these are seconds at a usual rate
_SECOND = re.compile(r"(?<![a-z])s[^a-z\d]*\d+[^a-z\d]*f(?:rame)?[^a-z\d]*$", re.IGNORECASE)
_RATES = (5, 10, 12, 15, 20, 24, 25, 30, 50, 60)

# units of a clock: minutes of 60 seconds, seconds of 1,000 milliseconds
_CLOCK = (60, 1000)


def sort_frames(files: Iterable[Path]) -> list[Path]:
    """Sort frame files by time: 2.jpg comes before 10.jpg, and t_0.25.jpg before t_0.5.jpg.

    The numbers of a name count from left to right. If one of several counts the frames, as in
    ``score_0.98_frame_12.jpg``, it alone counts. A hyphen before a number is a minus if other names
    have none there.
    """
    files = list(files)
    simple = _find_numbers([file.name for file in files])
    if simple:
        return [file for _, file in sorted(zip(simple, files, strict=True))]
    names = _read_names(files)
    counter = _find_counter(names)

    def order(name: _Name) -> tuple[list[_Number], str]:
        numbers = name.numbers if counter is None else [name.numbers[counter]]
        return numbers, name.file.name

    return [name.file for name in sorted(names, key=order)]


def find_sequences(files: Iterable[Path]) -> list[Path]:
    """Return a file of each sequence if the frames of a clip are several sequences, else nothing.

    Such are the faces of several people: ``frame_det_00_000001.bmp``, ``frame_det_01_000001.bmp``.
    Their names have the same numbers with other text or suffixes, or two numbers of which none is
    of one frame only, unless these are the minutes, seconds or milliseconds of a clock, or count
    the frames of a second, a shot or a part of one recording.
    """
    files = list(files)
    if _find_numbers([file.name for file in files]):
        return []
    names = _read_names(files)
    texts: dict[str, list[_Name]] = defaultdict(list)
    for name in names:
        texts[name.text + name.file.suffix].append(name)
    # 0001.jpg, 0001 (1).jpg and 0001.jpeg have the same numbers, too
    shortest = min((len(name.numbers) for name in names if name.numbers), default=0)
    numbered = [tuple(name.numbers[:shortest]) for name in names if name.numbers]
    repeated = len(set(numbered)) < len(numbered)
    if 1 < len(texts) <= len(names) / 2 and repeated:
        return [same[0].file for same in texts.values()]
    for same in texts.values():
        groups = _group_by_face(same)
        if len(groups) > 1:
            return [group[0].file for group in groups]
    return []


def _find_numbers(names: Sequence[str]) -> list[int]:
    """Return the numbers of names that differ in one integer only, as most do; else nothing."""
    start = os.path.commonprefix(names).rstrip("0123456789")  # noqa: RUF071 (of text, not paths)
    first = re.match("[0-9]+", names[0][len(start) :]) if names else None
    if first is None or start.endswith((".", ",")):
        return []
    end = names[0][len(start) + first.end() :]
    digits = [name[len(start) : len(name) - len(end)] for name in names if name.endswith(end)]
    if len(digits) < len(names) or not all(d.isascii() and d.isdecimal() for d in digits):
        return []
    return list(map(int, digits))


class _Name:
    """The name of a file: its numbers, and the text around them."""

    def __init__(self, file: Path, pattern: re.Pattern[str]) -> None:
        self.file = file
        self.tokens = list(pattern.finditer(file.stem))
        self.text = pattern.sub("0", file.stem)
        self.numbers: list[_Number] = []
        # of each number its digits, and the text before it
        self.widths: list[int] = []
        self.labels: list[str] = []


def _read_names(files: Sequence[Path]) -> list[_Name]:
    """Return the names of files with their numbers.

    Hyphens are signs if names differ in text only by them. ``frame-1`` next to ``frame1`` is of
    another sequence.
    """
    names, signed = ([_Name(f, pattern) for f in files] for pattern in (_NUMBERS, _SIGNED))
    _read_numbers(names)
    _read_numbers(signed)
    is_joined = any(_HYPHEN.search(file.stem) for file in files)
    are_repeated = len({tuple(name.numbers) for name in names}) < len(names)
    have_signs = len({name.text for name in names}) > len({name.text for name in signed}) == 1
    return signed if have_signs and not (is_joined and are_repeated) else names


def _read_numbers(names: Sequence[_Name]) -> None:
    """Set the numbers of names, with decimals if those of all names can be decimals.

    ``1.5`` next to ``1.10`` are two counters, because no program writes the zero of the decimal 1.1
    unless all numbers have as many decimals.
    """
    split = [[_SEPARATOR.split(token[0]) for token in name.tokens] for name in names]
    decimals = {parts[1] for tokens in split for parts in tokens if len(parts) == 2}
    same_width = len({len(digits) for digits in decimals}) == 1
    are_decimals = same_width or not any(d.endswith("0") and d != "0" for d in decimals)
    for name, tokens in zip(names, split, strict=True):
        for token, parts in zip(name.tokens, tokens, strict=True):
            numbers: list[_Number] = [int(part) for part in parts]
            if len(parts) == 2 and are_decimals:
                numbers = [Decimal(".".join(parts))]
            name.widths += map(len, parts[: len(numbers)])
            name.numbers += numbers
            name.labels += [name.file.stem[: token.start()]] * len(numbers)


def _varying_columns(names: Sequence[_Name]) -> dict[int, list[_Number]]:
    """Return the numbers of names by position, without those that are equal in all names."""
    columns = enumerate(zip(*(name.numbers for name in names), strict=True))
    return {i: list(column) for i, column in columns if len(set(column)) > 1}


def _find_counter(names: Sequence[_Name]) -> int | None:
    """Return the position of the number that counts frames, None to sort by all numbers."""
    if len({name.text for name in names}) != 1 or len({len(name.numbers) for name in names}) != 1:
        return None
    columns = _varying_columns(names)
    distinct = {i: column for i, column in columns.items() if len(set(column)) == len(names)}
    if len(columns) < 2 or not distinct or _is_clock(list(columns.values())):
        return None
    even = [i for i, column in distinct.items() if _is_even(column)]
    if not even and _is_time_of_day(names, columns):
        return None
    counter = next(iter(even or distinct))
    leading = zip(*(column for i, column in columns.items() if i < counter), strict=True)
    is_nested = not even and _is_nested(list(leading), distinct[counter])
    return None if is_nested else counter


def _is_even(column: Iterable[_Number]) -> bool:
    """Return whether numbers are integers at one distance, in any order."""
    values = sorted(column)
    return len({b - a for a, b in pairwise(values)}) == 1 and not _has_decimals(values)


def _has_decimals(column: Iterable[_Number]) -> bool:
    return any(isinstance(number, Decimal) for number in column)


def _is_nested(leading: Sequence[tuple[_Number, ...]], counter: Sequence[_Number]) -> bool:
    """Return whether a number starts anew when those before it change, as seconds each minute.

    These are integers of few values, each of which is of neighbouring numbers: a score is not.
    """
    ordered = [numbers for _, numbers in sorted(zip(counter, leading, strict=True))]
    num_values = len(set(ordered))
    num_changes = sum(a != b for a, b in pairwise(ordered))
    is_even_split = 1 < num_values <= len(ordered) / 2 and num_changes == num_values - 1
    return is_even_split and not any(map(_has_decimals, ordered))


def _group_by_face(names: Sequence[_Name]) -> list[list[_Name]]:
    """Return names of the same text by the face that they are of, in one group if it is one face.

    The number of the face is the one with the fewest values.
    """
    columns = _varying_columns(names) if len({len(n.numbers) for n in names}) == 1 else {}
    if len(columns) < 2:
        return [list(names)]
    face = min(columns, key=lambda i: len(set(columns[i])))
    distinct = [i for i, column in columns.items() if len(set(column)) == len(names)]
    is_named = _FACE.search(names[0].labels[face]) and not _has_decimals(columns[face])
    first = min(columns)
    is_part = len(columns) == 2 and _is_part(columns[first], names[0].labels[first + 1])
    if face in distinct or is_part:
        return [list(names)]
    # minutes in a column of their own, or in hhmmss: else two columns may be a face and a frame
    has_minutes = len(columns) > 2 or names[0].widths[first] == 6
    is_time = has_minutes and _is_time_of_day(names, columns)
    if not is_named and (distinct or is_time or _is_clock(list(columns.values()))):
        return [list(names)]
    groups: dict[_Number, list[_Name]] = defaultdict(list)
    for name, number in zip(names, columns[face], strict=True):
        groups[number].append(name)
    return list(groups.values())


def _is_part(column: Sequence[_Number], label: str) -> bool:
    """Return whether numbers are of parts of one recording; ``label`` is before the next number."""
    if _PART.search(label):
        return True
    counts = Counter(column)
    *full, last = (counts[second] for second in sorted(counts))
    return (
        _SECOND.search(label) is not None
        and max(counts) - min(counts) == len(full)
        and max(full) in _RATES
        and min(full) >= max(full) - 1 >= last - 1
    )


def _is_time_of_day(names: Sequence[_Name], columns: dict[int, list[_Number]]) -> bool:
    """Return whether numbers are those of a clock that is read at uneven times.

    Minutes and seconds have two digits before the decimals, milli- and microseconds three and six,
    and the last ones are far apart.
    """
    for i in list(columns)[1:]:
        widths = {name.widths[i] for name in names}
        is_minute = all(n < 60 for n in columns[i]) and widths == {2}
        is_fraction = i == max(columns) and widths in ({3}, {6})
        if not is_minute and not is_fraction:
            return False
    last = columns[max(columns)]
    return _has_decimals(last) or max(last) - min(last) >= 4 * len(names)


def _is_clock(columns: Sequence[Sequence[_Number]]) -> bool:
    """Return whether numbers are those of a clock that is read at even times."""
    rows = sorted(zip(*columns, strict=True))
    # a period of 1/30 s is 33 or 34 ms
    exponents = (n.as_tuple().exponent for row in rows for n in row if isinstance(n, Decimal))
    tolerance = Decimal(1).scaleb(min(map(int, exponents), default=0))
    for units in product(_CLOCK, repeat=len(columns) - 1):
        if any(n >= unit for row in rows for n, unit in zip(row[1:], units, strict=True)):
            continue
        times = []
        for row in rows:
            time = row[0]
            for number, unit in zip(row[1:], units, strict=True):
                time = time * unit + number
            times.append(time)
        steps = [b - a for a, b in pairwise(times)]
        if min(steps) > 0 and max(steps) - min(steps) <= tolerance:
            return True
    return False
