"""Data sets as lists of clips: which clip, what label, which split, where its frames are.

Read here: the lists that the authors of DFER-CLIP released, one clip a line, ``path frames label``. DFEW and MAFW come as
five pairs of lists, of which the test lists are disjoint and cover the data; FERV39k as one pair. The owners' own lists are
read by :mod:`dfer_dist.data.sources.official`, folders of classes by :mod:`dfer_dist.data.sources.folder`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.utils.errors import UserError

SEVEN = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
ELEVEN = (*SEVEN, "contempt", "anxiety", "helplessness", "disappointment")

CLASSES = {"demo": SEVEN, "dfew": SEVEN, "mafw": ELEVEN, "ferv39k": SEVEN}  # in label order

_OTHER_NAMES = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
}
_OTHER_NAMES |= {
    "fearful": "fear",
    "anxious": "anxiety",
    "helpless": "helplessness",
    "disappointed": "disappointment",
}
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # a tar member's name has 100 bytes, suffix included


@dataclass(frozen=True)
class Fault:
    """What is wrong with a clip: one of few kinds, the reason in words, and whether the clip is left out for it."""

    kind: str
    reason: str
    left_out: bool = False


@dataclass(frozen=True)
class ClipRecord:
    """One clip before packing.

    ``key`` is its name in the shards, ``source`` its name in the data set. ``media`` is its frame files in order of time, or
    the path of its folder of frames or of its film (without the film's suffix, if need be); whether anything is there is seen
    when it is packed. ``listed`` is how many frames its list promises, ``faults`` what was wrong with it in the lists.
    """

    key: str
    label: int
    split: str
    source: str
    media: tuple[Path, ...] | Path
    listed: int | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a list: a clip's name, its label and, where the list says so, its number of frames."""

    source: str
    label: int
    frames: int | None = None


def read_lists(dataset: str, root: Path, lists: Path) -> list[ClipRecord]:
    """Clips of a data set in the order of DFER-CLIP's lists.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw``, ``ferv39k`` or ``demo``.
    root : Path
        Folder that the paths in the lists start from; each clip is a folder of frames there.
    lists : Path
        Folder of ``*_set_K_test.txt`` (and ``_train.txt``), or of ``*_train.txt`` and ``*_test.txt``. Where it holds files
        that begin with the data set's name, only those are read. Absolute paths, as in the released lists, name folders of
        the authors' machine: what all of them begin with is cut off.

    Raises
    ------
    UserError
        Empty or missing folders, unreadable lines, labels out of range, a clip in two splits, not one clip below ``root``.
    """
    if dataset not in CLASSES:
        raise UserError(f"unknown data set '{dataset}': one of {', '.join(CLASSES)}")
    for folder in (root, lists):
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(f"{folder} is empty or no folder: nothing to pack there")
    files = _find_lists(lists, dataset)
    tests = {split: _read_list(file, len(CLASSES[dataset])) for split, file in files.items()}
    trains = {}
    for split, file in files.items():
        twin = file.with_name(file.name.replace("_test.txt", "_train.txt"))
        if split.startswith("fold") and twin.is_file():
            trains[split] = _read_list(twin, len(CLASSES[dataset]))
    if not any(tests.values()):
        raise UserError(f"the test lists in {lists} are empty: nothing to pack")
    front = _common_front([row.source for rows in tests.values() for row in rows])
    records = [
        ClipRecord(
            make_key(row.source[front:]),
            row.label,
            split,
            row.source[front:],
            root / row.source[front:],
            row.frames,
            faults,
        )
        for split, row, faults in join_splits(tests, trains, CLASSES[dataset])
    ]
    if not any(
        video_or_folder(record.media) for record in records if isinstance(record.media, Path)
    ):
        raise UserError(
            f"none of the {len(records)} listed clips is there, such as {records[0].media} (is --root right?)"
        )
    return records


def join_splits(
    tests: Mapping[str, Sequence[Row]], trains: Mapping[str, Sequence[Row]], classes: Sequence[str]
) -> Iterator[tuple[str, Row, tuple[Fault, ...]]]:
    """Every clip of a set of lists once, with its split and what is wrong with it there.

    A clip belongs to the split that tests it: packing takes a fold's training part to be the other folds. Where training
    lists are given they must say the same, and what differs is told: a clip that no list tests, or that has two labels, is
    left out; one that a training list lacks, or that a fold both trains and tests, is kept where it is tested.

    Parameters
    ----------
    tests : mapping of split name to rows
        Lists that must be disjoint: ``fold1`` …, or ``train`` and ``test``.
    trains : mapping of split name to rows
        Training lists of folds; may be empty.
    classes : sequence of str
        Names in label order, for the words of a fault.

    Raises
    ------
    UserError
        If a clip is in two splits.
    """
    splits: dict[str, str] = {}
    labels: dict[str, dict[int, str]] = defaultdict(dict)  # of each clip, with a list that says so
    faults: dict[str, list[Fault]] = defaultdict(list)
    for split, rows in tests.items():
        for row in rows:
            if row.source in splits:
                if splits[row.source] != split:
                    raise UserError(
                        f"clip {row.source} is in two splits, {splits[row.source]} and {split}: mend the lists"
                    )
                faults[row.source].append(Fault("listed twice", f"twice in the list of {split}"))
            splits[row.source] = split
            labels[row.source].setdefault(row.label, split)
    for fold, rows in trains.items():
        trained = {row.source for row in rows}
        for row in rows:
            labels[row.source].setdefault(row.label, f"training list of {fold}")
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
                faults[source].append(
                    Fault(
                        "not trained",
                        f"not in the training list of {fold}; trained on all the same",
                    )
                )
    for source, said in labels.items():
        if len(said) > 1:
            words = ", ".join(f"{classes[label]} in {where}" for label, where in said.items())
            faults[source].append(Fault("label conflict", f"two labels: {words}", True))
    once: set[str] = set()
    for split, row in [(s, r) for s, rows in tests.items() for r in rows] + [
        ("none", r) for rows in trains.values() for r in rows
    ]:
        if row.source not in once and (split != "none" or row.source not in splits):
            once.add(row.source)
            yield split, row, tuple(faults[row.source])


def known_class(name: str) -> str | None:
    """The class that a name in any case means (``Happy``: happiness), or None."""
    word = name.strip().lower()
    word = _OTHER_NAMES.get(word, word)
    return word if word in ELEVEN else None


def read_text(file: Path) -> str:
    """A list's text: UTF-8, with or without a byte order mark, or GB18030 as in MAFW.

    Raises
    ------
    UserError
        If it is neither.
    """
    data = file.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except ValueError:
            continue
    raise UserError(f"{file} is no text in UTF-8 or GB18030")


def make_key(source: str) -> str:
    """A clip's name in the shards.

    Raises
    ------
    UserError
        If the name is not fit for one.
    """
    key = source.strip("/").replace("/", "_")
    if not _KEY.fullmatch(key):
        raise UserError(
            f"clip '{source}': a key is at most 90 letters, digits, - and _ (each / becomes _)"
        )
    return key


VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")


def video_or_folder(path: Path) -> Path | None:
    """What lies at a clip's path: its folder of frames before its film; None if neither is there."""
    if path.is_dir() or (path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()):
        return path
    videos = (path.with_name(path.name + suffix) for suffix in VIDEO_SUFFIXES)
    return next((video for video in videos if video.is_file()), None)


def _find_lists(lists: Path, dataset: str) -> dict[str, Path]:
    every = sorted(lists.iterdir())
    files = [f for f in every if f.name.lower().startswith(f"{dataset}_")] or every
    tests: dict[int, Path] = {}
    for file in files:
        if match := re.fullmatch(r".*_set_(\d+)_test\.txt", file.name):
            twin = tests.setdefault(int(match[1]), file)
            if twin is not file:
                raise UserError(
                    f"{lists} has two test lists of fold {match[1]}, {twin.name} and {file.name}: keep one set there"
                )
    if tests:
        return number_folds(tests, lists)
    pair = {
        s: [f for f in files if re.fullmatch(rf".*_{s}\.txt", f.name)] for s in ("train", "test")
    }
    if any(len(found) != 1 for found in pair.values()):
        raise UserError(
            f"{lists} has neither *_set_K_test.txt nor one *_train.txt and one *_test.txt"
        )
    return {s: found[0] for s, found in pair.items()}


def number_folds(tests: Mapping[int, Path], where: Path) -> dict[str, Path]:
    """``fold1`` … with their test lists.

    Raises
    ------
    UserError
        If a number is left out.
    """
    if sorted(tests) != list(range(1, len(tests) + 1)):
        raise UserError(
            f"{where}: test lists for folds {sorted(tests)}; they must run from 1 without a gap"
        )
    return {f"fold{k}": tests[k] for k in sorted(tests)}


def _read_list(file: Path, num_classes: int) -> list[Row]:
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not re.fullmatch(r"[0-9]+ [0-9]+", " ".join(words[1:])):
            raise UserError(f"{file}:{number}: '{line}' is not of the form 'path frames label'")
        if int(words[2]) >= num_classes:
            raise UserError(
                f"{file}:{number}: label {words[2]} is out of range 0 to {num_classes - 1}"
            )
        rows.append(Row(words[0], int(words[2]), int(words[1])))
    return rows


def _common_front(sources: list[str]) -> int:
    """How many characters absolute paths have in common as whole folders; 0 for relative ones."""
    return (
        len(os.path.commonpath([os.path.dirname(s) for s in sources]).rstrip("/")) + 1
        if all(map(os.path.isabs, sources))
        else 0
    )
