"""The lists of clips that the authors of DFER-CLIP released: lines of ``path frames label``.

DFEW and MAFW have five pairs of lists, whose test lists are disjoint and cover the data.
FERV39k has one pair.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from dfer_dist.data.sources.names import is_system, make_keys, plain_name
from dfer_dist.data.sources.probe import VIDEO_SUFFIX
from dfer_dist.data.sources.records import (
    CLASSES,
    NO_SPLIT,
    ClipRecord,
    Fault,
    find_media,
    listed_clip,
    unlisted_kind,
)
from dfer_dist.data.sources.text_lists import read_rows
from dfer_dist.utils.errors import UserError

# Whose test is in it, train or test, and what may follow, as in MMA-DFER's *_test_faces.txt.
_LIST_NAME = re.compile(r"(.*_)(train|test)((?:_[a-z]+)?\.(?:txt|csv))", re.IGNORECASE)


def read_lists(dataset: str, root: Path, lists: Path) -> list[ClipRecord]:
    """Return the clips of a data set in the order of DFER-CLIP's lists.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw``, ``ferv39k`` or ``demo``.
    root : Path
        Folder that the paths in the lists start from. Each clip is a folder of frames there.
    lists : Path
        Folder of ``*_set_K_test.txt`` (and ``_train.txt``), or of ``*_train.txt`` and
        ``*_test.txt``; more may follow, as in ``*_test_faces.txt``. If some of its files begin with
        the name of the data set, only those are read. The released lists have absolute paths of the
        authors' machine: the folders that all of them start with are removed.

    Raises
    ------
    UserError
        If a folder is empty or missing, a line cannot be read, a label is out of range, a clip is
        in two splits, or no clip at all is below ``root``.
    """
    for folder in (root, lists):
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(f"{folder} is empty or not a folder: nothing to pack there")
    classes, files = CLASSES[dataset], _find_lists(lists, dataset)
    tests = {split: _read_list(file, len(classes)) for split, file in files.items()}
    if not any(tests.values()):
        raise UserError(f"the test lists in {lists} are empty: nothing to pack")
    by_name = {file.name.lower(): file for file in lists.iterdir()}
    trainings = {
        split: by_name.get(_LIST_NAME.sub(r"\1train\3", file.name).lower())
        for split, file in files.items()
        if split.startswith("fold")
    }
    trains = {s: _read_list(f, len(classes)) for s, f in trainings.items() if f}
    prefix = common_prefix([row.source for rows in tests.values() for row in rows])
    rows = join_splits(tests, trains, classes)
    sources = [row.source[prefix:] for row in rows]
    records = [
        replace(r, key=key, source=source, media=root / source)
        for key, source, r in zip(make_keys(sources), sources, rows, strict=True)
    ]
    if not any(find_media(record.media) for record in records if isinstance(record.media, Path)):
        raise UserError(
            f"none of the {len(records)} listed clips exists, such as {records[0].media} "
            "(is --root right?)"
        )
    return records


def count_unlisted(root: Path, sources: Sequence[str]) -> Counter[str]:
    """Count what is in the folder of all clips and in no list, by kind."""
    names = {plain_name(source.lstrip("/").partition("/")[0]) for source in sources}
    names |= {VIDEO_SUFFIX.sub("", name) for name in names}
    unread: Counter[str] = Counter()
    for entry in os.scandir(root):
        name = plain_name(entry.name)
        if not is_system(name) and not names & {name, os.path.splitext(name)[0]}:
            unread[unlisted_kind(entry)] += 1
    return unread


def join_splits(
    tests: Mapping[str, Sequence[ClipRecord]],
    trains: Mapping[str, Sequence[ClipRecord]],
    classes: Sequence[str],
) -> list[ClipRecord]:
    """Return every clip of a set of lists once, with its split and the faults of the lists.

    A clip belongs to the split that tests it: a fold is trained on all other folds. Training
    lists, if any, have to agree with that, and differences become faults. A clip that no list
    tests, or that has two labels, is left out. A clip that a training list lacks, or that a fold
    both trains and tests, is kept in the split that tests it.

    Parameters
    ----------
    tests : mapping of split name to rows
        Lists that must be disjoint: ``fold1``, ``fold2``, ..., or ``train`` and ``test``.
    trains : mapping of split name to rows
        Training lists of folds; may be empty.
    classes : sequence of str
        Class names in label order, for the text of faults.

    Raises
    ------
    UserError
        If a clip is in two splits.
    """
    faults: dict[str, list[Fault]] = defaultdict(list)
    splits = _assign_splits(tests, faults)
    for fold, rows in trains.items():
        _check_training_list(fold, rows, splits, faults)
    first_rows: dict[str, ClipRecord] = {}
    # of each clip and label the first list with it
    labels: dict[str, dict[int, str]] = defaultdict(dict)
    named = {**tests, **{f"training list of {fold}": rows for fold, rows in trains.items()}}
    for name, rows in named.items():
        for row in rows:
            first_rows.setdefault(row.source, row)
            labels[row.source].setdefault(row.label, name)
    for source, lists_of in labels.items():
        if len(lists_of) > 1:
            text = ", ".join(f"{classes[label]} in {name}" for label, name in lists_of.items())
            faults[source].append(Fault("label conflict", f"two labels: {text}", True))
    return [
        replace(row, split=splits.get(source, NO_SPLIT), faults=tuple(faults[source]))
        for source, row in first_rows.items()
    ]


def add_test_list(tests: dict[int, Path], fold: int, file: Path) -> None:
    """Add the test list of a fold.

    Raises
    ------
    UserError
        If the fold has another one.
    """
    other = tests.setdefault(fold, file)
    if other is not file:
        raise UserError(f"two test lists of fold {fold}, {other} and {file}: remove one")


def number_folds(tests: Mapping[int, Path], folder: Path) -> dict[str, Path]:
    """Return test lists by split, ``fold1``, ``fold2``, ..., from test lists by fold number.

    Raises
    ------
    UserError
        If a number is missing.
    """
    if sorted(tests) != list(range(1, len(tests) + 1)):
        raise UserError(
            f"{folder} has test lists of folds {sorted(tests)}: number them from 1 without a gap"
        )
    return {f"fold{k}": tests[k] for k in sorted(tests)}


def _find_lists(lists: Path, dataset: str) -> dict[str, Path]:
    """Return the test list of each fold, or the lists ``train`` and ``test``."""
    entries = sorted(lists.iterdir())
    files = [f for f in entries if f.name.lower().startswith(f"{dataset}_")] or entries
    named = [(match, file) for file in files if (match := _LIST_NAME.fullmatch(file.name))]
    tests: dict[int, Path] = {}
    for match, file in named:
        fold = re.search(r"_set_(\d+)_$", match[1], re.IGNORECASE)
        if fold and match[2].lower() == "test":
            add_test_list(tests, int(fold[1]), file)
    if tests:
        return number_folds(tests, lists)
    pair = {
        split: [file for match, file in named if match[2].lower() == split]
        for split in ("train", "test")
    }
    if any(len(found) != 1 for found in pair.values()):
        raise UserError(
            f"{lists} has neither *_set_K_test.txt nor one *_train.txt and one *_test.txt, but "
            f"{', '.join(file.name for file in entries[:5])}: give the folder of DFER-CLIP's lists "
            "with lines 'path frames label' (others: --dataset list)"
        )
    return {split: found[0] for split, found in pair.items()}


def _read_list(file: Path, num_classes: int) -> list[ClipRecord]:
    def parse(fields: list[str]) -> ClipRecord | None:
        path, *numbers = fields
        if not all(re.fullmatch("[0-9]+", number) for number in numbers):
            return None
        frames, label = map(int, numbers)
        if label >= num_classes:
            return None
        return listed_clip(posixpath.normpath(path.replace("\\", "/")), label, frames)

    form = (
        f"'path frames label' with a label of 0 to {num_classes - 1} (lists 'path label', as of "
        "VideoMAE, are not read: they do not name the classes, see --dataset list)"
    )
    return read_rows(file, parse, 3, form)


def common_prefix(sources: Sequence[str]) -> int:
    """Return how many characters absolute paths share as whole folders; 0 for relative paths.

    ``D:/`` starts an absolute path as / does.
    """
    if not all(re.match("[A-Za-z]:/|/", source) for source in sources):
        return 0
    columns = zip(*(source.split("/")[:-1] for source in sources), strict=False)
    shared = takewhile(lambda folders: len(set(folders)) == 1, columns)
    return sum(len(folders[0]) + 1 for folders in shared)


def _assign_splits(
    tests: Mapping[str, Sequence[ClipRecord]], faults: dict[str, list[Fault]]
) -> dict[str, str]:
    """Return the split of each clip, and add the faults of clips that are listed twice."""
    splits: dict[str, str] = {}
    for split, rows in tests.items():
        for row in rows:
            other = splits.get(row.source)
            if other == split:
                faults[row.source].append(Fault("listed twice", f"twice in the list of {split}"))
            elif other is not None:
                raise UserError(
                    f"clip {row.source} is in two splits, {other} and {split}: "
                    "remove it from one of the lists"
                )
            splits[row.source] = split
    return splits


def _check_training_list(
    fold: str, rows: Sequence[ClipRecord], splits: Mapping[str, str], faults: dict[str, list[Fault]]
) -> None:
    """Add the faults of clips whose training list does not fit the split that tests them."""
    trained = {row.source for row in rows}
    for source in sorted(trained - splits.keys()):
        faults[source].append(
            Fault("not tested", f"in the training list of {fold}, but in no test list", True)
        )
    for source, split in splits.items():
        if split == fold and source in trained:
            faults[source].append(
                Fault("trained and tested", f"in both lists of {fold}; kept as a test clip")
            )
        elif split != fold and source not in trained:
            reason = f"not in the training list of {fold}; trained on all the same"
            faults[source].append(Fault("not trained", reason))
