"""The split of each clip of general lists: from a column, or from the names of the lists.

::

    train.csv, test.csv                      one split; val.csv too, or instead of the test
    fold1.csv, ..., fold5.csv                folds
    set_1_train.txt, set_1_test.txt, ...     folds, each tested by its test list
    split01/train.csv, split01/test.csv, ... the same
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfer_dist.data.sources.folder import BEFORE_SPLIT, match_split
from dfer_dist.data.sources.records import AMBIGUOUS, ClipRecord
from dfer_dist.utils.errors import UserError

_FOLD = re.compile(
    r"(?:fold|split|set|cv)[ _-]?([0-9]{1,2})(?![0-9])|(?<=[ _-])([0-9]{1,2})$", re.IGNORECASE
)


@dataclass
class Splits:
    """Lists by split, for :func:`~dfer_dist.data.sources.dfer_clip_lists.join_splits`.

    ``tests`` is empty if nothing tells the splits, and folds are to be made.
    """

    tests: dict[str, list[ClipRecord]] = field(default_factory=dict)
    trains: dict[str, list[ClipRecord]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def splits_of_column(rows: Sequence[ClipRecord]) -> Splits:
    """Return rows by their split.

    Raises
    ------
    UserError
        If folds have gaps, are next to other splits, or there is no split to test on.
    """
    splits = Splits()
    for row in rows:
        splits.tests.setdefault(row.split, []).append(row)
    _number_folds(splits, "column fold")
    _check_tests(splits, "column split")
    return splits


def splits_of_files(lists: Mapping[Path, Sequence[ClipRecord]]) -> Splits:
    """Return rows by the split that the name of their list, or of its folder, tells.

    Raises
    ------
    UserError
        If some names tell it and others do not, folds have gaps or no test list, or there is no
        split to test on.
    """
    parts = {file: _parse_name(file) for file in lists}
    folds = {fold for _, fold in parts.values() if fold is not None}
    if len(folds) < 2:
        parts = {file: (part, None) for file, (part, _) in parts.items()}
    unnamed = [file for file, name in parts.items() if name == (None, None)]
    if len(unnamed) == len(lists):
        return Splits()
    other = next(file for file in lists if file not in unnamed)
    if len(folds) > 1:
        unnamed = [file for file, (_, fold) in parts.items() if fold is None]
        other = next(file for file in lists if file not in unnamed)
    if unnamed:
        raise UserError(
            f"the name of {unnamed[0]} tells no split, that of {other} does: rename one, or give a "
            "column 'split' or 'fold'"
        )
    splits = Splits()
    for file, (part, fold) in parts.items():
        held, name = splits.tests, str(part)
        if fold is not None:
            name = f"fold{fold}" + " val" * (part == "val")
        if fold is not None and part == "train":
            held = splits.trains
        held.setdefault(name, []).extend(lists[file])
    _drop_repeated_val(splits)
    _number_folds(splits, str(other.parent))
    _check_tests(splits, ", ".join(str(file) for file in lists))
    return splits


def _parse_name(file: Path) -> tuple[str | None, int | None]:
    """Return which part a list is, ``train``, ``val`` or ``test``, and of which fold."""
    part = match_split(file.stem, ("", BEFORE_SPLIT))
    if part == "eval":
        part = "val"
    fold = _FOLD.search(file.stem) or _FOLD.fullmatch(file.parent.name)
    return part, int(fold[1] or fold[2]) if fold else None


def _drop_repeated_val(splits: Splits) -> None:
    """Remove validation lists that repeat a test list, as in VideoMAE's form."""
    for name in [name for name in splits.tests if name.endswith("val")]:
        test = splits.tests.get(name.removesuffix(" val").replace("val", "test"))
        clips = {row.source for row in splits.tests[name]}
        if test is not None and clips == {row.source for row in test}:
            del splits.tests[name]
            splits.notes.append(f"the list {name} has the clips of its test list, and is not read")
        elif " " in name:
            raise UserError(
                f"{name} has clips of its own: folds have no validation part, omit these lists"
            )


def _number_folds(splits: Splits, where: str) -> None:
    """Give folds numbers from 1, also if the lists count from 0."""
    numbers = {int(n[4:]) for n in {*splits.tests, *splits.trains} if n.startswith("fold")}
    tested = {int(n[4:]) for n in splits.tests if n.startswith("fold")}
    if numbers - tested:
        raise UserError(f"fold {min(numbers - tested)} of {where} has no test list: give one")
    others = splits.tests.keys() - {f"fold{k}" for k in numbers} - {AMBIGUOUS}
    if numbers and others:
        raise UserError(f"{where} has folds and {', '.join(sorted(others))}: give either")
    first = min(numbers, default=1)
    if sorted(numbers) != list(range(first, first + len(numbers))) or first > 1:
        raise UserError(
            f"{where} has folds {', '.join(map(str, sorted(numbers)))}: number them from 1 without "
            "a gap"
        )
    if len(numbers) == 1:
        raise UserError(f"{where} has one fold only: at least two are needed")
    if first == 0:
        last = len(numbers) - 1
        splits.notes.append(f"folds 0 to {last} of {where} are numbered 1 to {last + 1}")
        for held in (splits.tests, splits.trains):
            for k in sorted(tested, reverse=True):
                if f"fold{k}" in held:
                    held[f"fold{k + 1}"] = held.pop(f"fold{k}")


def _check_tests(splits: Splits, where: str) -> None:
    """Test on ``val`` if there is no ``test``."""
    tests = splits.tests
    if "val" in tests and "test" not in tests:
        tests["test"] = tests.pop("val")
        splits.notes.append("val is the test split: there is no test")
    if "train" in tests and "test" not in tests:
        raise UserError(f"{where} has a training split, but none to test on: give val or test too")
