"""Data sets as lists of clips: which clip, what label, which split, which frame files.

Read here: the lists that the authors of DFER-CLIP released, one clip a line, ``path frames label``. DFEW and MAFW come as
five pairs of lists, of which the test lists are disjoint and cover the data; FERV39k as one pair.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dfer_dist import UserError

SEVEN = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
ELEVEN = (*SEVEN, "contempt", "anxiety", "helplessness", "disappointment")

CLASSES = {"demo": SEVEN, "dfew": SEVEN, "mafw": ELEVEN, "ferv39k": SEVEN}  # in label order

_FRAME_SUFFIXES = (".jpg", ".jpeg")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # a tar member's name has 100 bytes, suffix included


@dataclass(frozen=True)
class ClipRecord:
    """One clip before packing: ``key`` is its name in the shards, ``source`` its path below the data set's root."""

    key: str
    label: int
    split: str
    source: str
    frames: tuple[Path, ...]


def read_lists(dataset: str, root: Path, lists: Path) -> list[ClipRecord]:
    """Clips of a data set in the order of its lists.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw``, ``ferv39k`` or ``demo``.
    root : Path
        Folder that the paths in the lists start from; each clip is a folder of JPEG files there.
    lists : Path
        Folder of ``*_set_K_test.txt`` (and ``_train.txt``), or of ``*_train.txt`` and ``*_test.txt``. Where it holds files
        that begin with the data set's name, only those are read. Absolute paths, as in the released lists, name folders of
        the authors' machine: what all of them begin with is cut off.

    Raises
    ------
    UserError
        Empty or missing folders, unreadable lines, labels out of range, a clip in two splits, training lists that are not
        the rest of their test list, clips without frames.
    """
    if dataset not in CLASSES:
        raise UserError(f"unknown data set '{dataset}': one of {', '.join(CLASSES)}")
    for folder in (root, lists):
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(f"{folder} is empty or no folder: nothing to pack there")
    files = _find_lists(lists, dataset)
    rows = {split: _read_list(file, len(CLASSES[dataset])) for split, file in files.items()}
    _check_disjoint(rows)
    if "fold1" in rows:
        _check_training_lists(files, rows)
    front = _common_front([source for listed in rows.values() for source in listed])
    return [_record(root, split, source[front:], label) for split, listed in rows.items() for source, label in listed.items()]


def _find_lists(lists: Path, dataset: str) -> dict[str, Path]:
    every = sorted(lists.iterdir())
    files = [f for f in every if f.name.lower().startswith(f"{dataset}_")] or every
    tests: dict[int, Path] = {}
    for file in files:
        if match := re.fullmatch(r".*_set_(\d+)_test\.txt", file.name):
            twin = tests.setdefault(int(match[1]), file)
            if twin is not file:
                raise UserError(f"{lists} has two test lists of fold {match[1]}, {twin.name} and {file.name}: keep one set there")
    if tests:
        if sorted(tests) != list(range(1, len(tests) + 1)):
            raise UserError(f"{lists}: test lists for folds {sorted(tests)}; they must run from 1 without a gap")
        return {f"fold{k}": tests[k] for k in sorted(tests)}
    pair = {s: [f for f in files if re.fullmatch(rf".*_{s}\.txt", f.name)] for s in ("train", "test")}
    if any(len(found) != 1 for found in pair.values()):
        raise UserError(f"{lists} has neither *_set_K_test.txt nor one *_train.txt and one *_test.txt")
    return {s: found[0] for s, found in pair.items()}


def _read_list(file: Path, num_classes: int) -> dict[str, int]:
    rows: dict[str, int] = {}
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except ValueError as e:
        raise UserError(f"{file} is no text in UTF-8: {e}") from e
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not words[1].isdecimal() or not words[2].isdecimal():
            raise UserError(f"{file}:{number}: '{line}' is not of the form 'path frames label'")
        source, label = words[0], int(words[2])
        if label >= num_classes:
            raise UserError(f"{file}:{number}: label {label} is out of range 0 to {num_classes - 1}")
        if source in rows:
            raise UserError(f"{file}:{number}: clip {source} is listed twice")
        rows[source] = label
    return rows


def _check_disjoint(rows: dict[str, dict[str, int]]) -> None:
    seen: dict[str, str] = {}
    for split, listed in rows.items():
        for source in listed:
            if source in seen:
                raise UserError(f"clip {source} is in two splits, {seen[source]} and {split}")
            seen[source] = split


def _common_front(sources: list[str]) -> int:
    """How many characters absolute paths have in common as whole folders; 0 for relative ones."""
    return (
        len(os.path.commonpath([os.path.dirname(s) for s in sources]).rstrip("/")) + 1 if all(map(os.path.isabs, sources)) else 0
    )


def _check_training_lists(files: dict[str, Path], rows: dict[str, dict[str, int]]) -> None:
    """Where training lists lie beside the test lists, each must be the other four folds: packing relies on it."""
    every = {source: label for listed in rows.values() for source, label in listed.items()}
    for split, listed in rows.items():
        k, file = split.removeprefix("fold"), files[split].with_name(files[split].name.replace("_test.txt", "_train.txt"))
        if file.is_file():
            train = _read_list(file, max(every.values()) + 1)
            rest = {source: label for source, label in every.items() if source not in listed}
            if train != rest:
                odd = min(set(train.items()) ^ set(rest.items()))[0]
                raise UserError(f"{file} is not the rest of fold {k}: clip {odd} differs")


def _record(root: Path, split: str, source: str, label: int) -> ClipRecord:
    key = source.strip("/").replace("/", "_")
    if not _KEY.fullmatch(key):
        raise UserError(f"clip '{source}': a key is at most 90 letters, digits, - and _ (each / becomes _)")
    folder = root / source
    if not folder.is_dir():
        raise UserError(f"clip {source}: {folder} is missing (is --root right?)")
    frames = tuple(sorted((f for f in folder.iterdir() if f.suffix.lower() in _FRAME_SUFFIXES), key=_by_number))
    if not frames:
        raise UserError(f"clip {source}: {folder} holds no JPEG frames")
    return ClipRecord(key, label, split, source, frames)


def _by_number(frame: Path) -> tuple[list[int], str]:
    """Frames in order of time: 2.jpg comes before 10.jpg."""
    return [int(n) for n in re.findall(r"[0-9]+", frame.stem)], frame.name
