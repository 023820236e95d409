"""The classes of a list: names, or numbers whose names the user gives in order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfer_dist.data.sources.names import plain_name
from dfer_dist.data.sources.records import ELEVEN, canonical_class
from dfer_dist.utils.errors import UserError

_NUMBER = re.compile(r"(-?[0-9]+)(\.0+)?")


@dataclass(frozen=True)
class ClassNames:
    """The classes of a set.

    Attributes
    ----------
    names : tuple of str
        In label order.
    first : int
        The number that the lists give the first class.
    """

    names: tuple[str, ...]
    first: int = 0

    def labels(self, text: str) -> tuple[int, ...] | None:
        """Return the labels that a field names, in its order; None if one of them is unknown.

        Several classes are separated by ``+``, ``|``, ``&`` or ``;``, and the eleven known ones by
        ``_`` as in MAFW.
        """
        whole = self.find(text)
        if whole is not None:
            return (whole,)
        found = dict.fromkeys(map(self.find, split_classes(text)))
        labels = tuple(label for label in found if label is not None)
        return labels if len(labels) == len(found) else None

    def find(self, text: str) -> int | None:
        """Return the label of one class; None if it is unknown."""
        number = _NUMBER.fullmatch(text)
        if number and text not in self.names:
            label = int(number[1]) - self.first
            return label if 0 <= label < len(self.names) else None
        keys = [_key(name) for name in self.names]
        known = canonical_class(text)
        return next((keys.index(key) for key in (_key(text), known) if key in keys), None)


def split_classes(text: str) -> list[str]:
    """Return the classes that a field names, as they are written."""
    parts = [part.strip() for part in re.split(r"[+|&;]", text)]
    if len(parts) == 1 and "_" in text and all(map(canonical_class, text.split("_"))):
        return text.split("_")
    return parts


def choose_classes(given: Sequence[str] | None, fields: Mapping[str, str]) -> ClassNames:
    """Return the classes of lists.

    Parameters
    ----------
    given : sequence of str, optional
        All names in label order. By default the names in the lists: in the usual order if all are
        known expressions, else in alphabetical order.
    fields : mapping of str to str
        The place of the first row with each label field, for messages.

    Raises
    ------
    UserError
        If labels are numbers without names or out of range, a name is not among those given, a
        name is given twice, or there is only one class.
    """
    parts = {part: where for text, where in fields.items() for part in split_classes(text)}
    numbers = {int(m[1]): where for p, where in parts.items() if (m := _NUMBER.fullmatch(p))}
    if given is None:
        if numbers:
            where = next(iter(numbers.values()))
            raise UserError(
                f"{where}: labels are numbers, {min(numbers)} to {max(numbers)}: name the classes "
                "in their order with --classes a,b,c"
            )
        return ClassNames(_check_names(_sort_names(parts)))
    names = _check_names(given)
    first = int(bool(numbers) and min(numbers) == 1 and max(numbers) == len(names))
    classes = ClassNames(names, first)
    for text, where in fields.items():
        if classes.labels(text) is None:
            raise UserError(f"{where}: {_unknown(text, classes)}")
    return classes


def _unknown(text: str, classes: ClassNames) -> str:
    part = next(part for part in split_classes(text) if classes.find(part) is None)
    count = len(classes.names)
    if _NUMBER.fullmatch(part):
        return f"label {part} is out of range: --classes names {count}, 0 to {count - 1}"
    return f"class '{part}' is none of --classes {','.join(classes.names)}"


def _key(name: str) -> str:
    return plain_name(name.strip()).casefold()


def _sort_names(parts: Mapping[str, str]) -> list[str]:
    known = {canonical_class(part) for part in parts}
    if None not in known:
        return [name for name in ELEVEN if name in known]
    return sorted({_key(part): part for part in parts}.values())


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that differ, as those of the known expressions if all of them are."""
    names = [name.strip() for name in names]
    known = [name for name in map(canonical_class, names) if name]
    if len(known) == len(names):
        names = known
    if "" in names or len({_key(name) for name in names}) < len(names):
        raise UserError(f"--classes {','.join(names)}: give names that differ")
    if len(names) < 2:
        raise UserError(f"{len(names)} class, {', '.join(names)}: at least two are needed")
    return tuple(names)
