"""A data set of one's own: ``CLASS/CLIP/`` with frames, or ``CLASS/CLIP.mp4``; folds are made here.

Without groups, clips are dealt to the folds class by class, so that both classes and sizes are as equal as whole clips allow.
With groups (a person, a film, a source) no group is in two folds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfer_dist.data.sources.layouts import (
    ELEVEN,
    VIDEO_SUFFIXES,
    ClipRecord,
    known_class,
    make_key,
    read_text,
)
from dfer_dist.utils.errors import UserError

FOLDS = 5


def read_folder(
    root: Path,
    folds: int = FOLDS,
    seed: int = 0,
    groups: Path | None = None,
    group_by: str | None = None,
    videos: bool = False,
) -> tuple[list[ClipRecord], tuple[str, ...]]:
    """Clips of ``root``, with the folds they were given, and its classes in label order.

    Classes are the names of the sub-folders, in order of the alphabet; if all are names of expressions that are known here,
    in any case or as adjectives, they get the usual names and order.

    Parameters
    ----------
    root : Path
        Its folders are classes, and what they hold are clips: folders of frames, and films.
    folds : int
        How many, 2 or more.
    seed : int
        Another seed gives other folds; with groups, as many as folds excepted.
    groups : Path, optional
        A CSV file with a header and a row a clip: its name in column ``clip`` (``CLIP`` or ``CLASS/CLIP``), and its group.
    group_by : str, optional
        The column of the group.
    films : bool
        Where a clip has both, take its film and not its folder of frames.

    Raises
    ------
    UserError
        No classes or clips, two classes of one name, fewer clips or groups than folds, a clip without its row.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: nothing to pack there")
    if folds < 2:
        raise UserError(f"--folds {folds}: 2 or more")
    if (groups is None) != (group_by is None):
        raise UserError(
            "--groups and --group-by belong together: a CSV file, and its column with the groups"
        )
    classes, folders = _find_classes(root)
    records = []
    for label, folder in enumerate(folders):
        clips = _find_clips(folder, videos)
        if not clips:
            raise UserError(
                f"{folder} holds no clip, neither a folder of frames nor a film: remove it or fill it"
            )
        records += [
            _record(folder.name, name, media, label) for name, media in sorted(clips.items())
        ]
    if len(records) < folds:
        raise UserError(f"{root} holds {len(records)} clips, too few for {folds} folds")
    if groups is None or group_by is None:
        chosen = _deal(records, folds, seed)
    else:
        chosen = _deal_groups(records, _read_groups(records, groups, group_by), folds, seed)
    return [
        replace(record, split=f"fold{fold}") for record, fold in zip(records, chosen, strict=True)
    ], classes


def _find_classes(root: Path) -> tuple[tuple[str, ...], list[Path]]:
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(folders) < 2:
        raise UserError(
            f"{root} holds {len(folders)} folders: a folder a class is needed, two or more, with clips in them"
        )
    known = [known_class(folder.name) for folder in folders]
    if not all(known):
        return tuple(folder.name for folder in folders), folders
    if len(set(known)) < len(known):
        raise UserError(
            f"two folders of {root} mean the same class: {', '.join(f.name for f in folders)}"
        )
    pairs = sorted(zip(known, folders, strict=True), key=lambda pair: ELEVEN.index(pair[0] or ""))
    return tuple(name for name, _ in pairs if name), [folder for _, folder in pairs]


def _find_clips(folder: Path, videos: bool) -> dict[str, Path]:
    """Clips of a class by name."""
    clips: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        video = path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        if path.name.startswith(".") or not (video or path.is_dir()):
            continue
        name = path.stem if video else path.name
        if name not in clips or video == videos:
            clips[name] = path
    return clips


def _record(folder: str, name: str, media: Path, label: int) -> ClipRecord:
    source = f"{folder}/{name}"
    return ClipRecord(make_key(re.sub(r"[^A-Za-z0-9_/-]", "_", source)), label, "", source, media)


def _deal(records: Sequence[ClipRecord], folds: int, seed: int) -> list[int]:
    """A fold for each clip, from 1: in an order of chance, class by class, one fold after the other."""
    order = sorted(
        range(len(records)), key=lambda i: (records[i].label, _chance(seed, records[i].source))
    )
    chosen = [0] * len(records)
    for place, i in enumerate(order):
        chosen[i] = place % folds + 1
    return chosen


def _chance(seed: int, word: str) -> bytes:
    return hashlib.sha256(f"{seed} {word}".encode()).digest()


def _read_groups(records: Sequence[ClipRecord], file: Path, column: str) -> list[str]:
    """The group of each clip."""
    if not file.is_file():
        raise UserError(f"{file} is missing: --groups names a CSV file with a row a clip")
    reader = csv.DictReader(io.StringIO(read_text(file)))
    header = reader.fieldnames or []
    if "clip" not in header or column not in header:
        raise UserError(
            f"{file} has the columns {', '.join(header) or '(none)'}: 'clip' and '{column}' are needed"
        )
    found: dict[str, str] = {}
    for row in reader:
        name, group = (row["clip"] or "").strip(), (row[column] or "").strip()
        if not name or not group:
            raise UserError(f"{file}:{reader.line_num}: a row without a clip or without a group")
        name = re.sub(
            rf"({'|'.join(map(re.escape, VIDEO_SUFFIXES))})$", "", name, flags=re.IGNORECASE
        )
        if found.setdefault(name, group) != group:
            raise UserError(
                f"{file}:{reader.line_num}: clip {name} is in two groups, {found[name]} and {group}"
            )
    names = [record.source.partition("/")[2] for record in records]
    times, groups = Counter(names), []
    for record, name in zip(records, names, strict=True):
        if record.source not in found and name in found and times[name] > 1:
            raise UserError(
                f"{file}: {name} is the name of clips of several classes: write {record.source}"
            )
        if record.source not in found and name not in found:
            raise UserError(f"{file} has no row for clip {name} ({record.source})")
        groups.append(found.get(record.source, found.get(name, "")))
    return groups


def _deal_groups(
    records: Sequence[ClipRecord], groups: Sequence[str], folds: int, seed: int
) -> list[int]:
    """A fold for each clip, from 1, no group in two of them."""
    names = sorted(set(groups))
    if len(names) < folds:
        raise UserError(
            f"{len(names)} groups are too few for {folds} folds: give --folds {max(len(names), 2)} or another column"
        )
    if len(names) == folds:
        return [names.index(group) + 1 for group in groups]
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([record.label for record in records])
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
        labels, labels, groups
    )
    chosen = np.zeros(len(records), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer clips than folds: the table shows it
        try:
            for fold, (_, test) in enumerate(split, 1):
                chosen[test] = fold
        except ValueError as e:
            raise UserError(f"groups cannot be balanced: {e}") from e
    if len(set(chosen.tolist())) < folds:
        raise UserError(f"a fold got no group: give another --seed or fewer than {folds} --folds")
    return chosen.tolist()
