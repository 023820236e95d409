"""Folders of classes: ``CLASS/CLIP/`` with frames, or ``CLASS/CLIP.mp4``. Folds are made here.

Without groups, clips are distributed class by class, so that classes and fold sizes are as equal
as possible. With groups (such as people or sources) no group is in two folds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfer_dist.data.sources.records import (
    ELEVEN,
    VIDEO_SUFFIXES,
    ClipRecord,
    canonical_class,
    make_key,
    read_text,
)
from dfer_dist.utils.errors import UserError

_VIDEO_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, VIDEO_SUFFIXES))})$", re.IGNORECASE)


def read_folder(
    root: Path,
    folds: int = 5,
    seed: int = 0,
    groups: Path | None = None,
    group_by: str | None = None,
    prefer_videos: bool = False,
) -> tuple[list[ClipRecord], tuple[str, ...]]:
    """Return the clips of folders of classes with their folds, and the classes in label order.

    Classes are the names of the subfolders in alphabetical order. If all of them name known
    expressions, in any case or as adjectives, they get the usual names and order.

    Parameters
    ----------
    root : Path
        Folder of the classes, which hold clips: folders of frames, and videos.
    folds : int
        Number of folds, at least 2.
    seed : int
        Seed of the folds. Not used if there are as many groups as folds.
    groups : Path, optional
        CSV file with a header and a row per clip: column ``clip`` (``CLIP`` or ``CLASS/CLIP``) and
        the column of its group.
    group_by : str, optional
        Name of the group's column.
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.

    Raises
    ------
    UserError
        If there are no classes or clips, two classes of the same name, fewer clips or groups than
        folds, or a clip without a row.
    """
    _check_arguments(root, folds, groups, group_by)
    classes, folders = _find_classes(root)
    records = _list_clips(folders, prefer_videos)
    if len(records) < folds:
        raise UserError(f"{root} holds {len(records)} clips, too few for {folds} folds")
    if groups is None or group_by is None:
        assigned = _assign_folds(records, folds, seed)
    else:
        names = _groups_of_clips(records, groups, group_by)
        assigned = _assign_grouped_folds(records, names, folds, seed)
    records = [replace(r, split=f"fold{k}") for r, k in zip(records, assigned, strict=True)]
    return records, classes


def _check_arguments(root: Path, folds: int, groups: Path | None, group_by: str | None) -> None:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: nothing to pack there")
    if folds < 2:
        raise UserError(f"--folds {folds} is too small: give 2 or more")
    if (groups is None) != (group_by is None):
        raise UserError(
            "give --groups and --group-by together: a CSV file, and the name of its group column"
        )


def _find_classes(root: Path) -> tuple[tuple[str, ...], list[Path]]:
    """Return the classes in label order, and their folders."""
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(folders) < 2:
        raise UserError(
            f"{root} holds {len(folders)} folders: at least two are needed, one for each class"
        )
    names = [canonical_class(folder.name) for folder in folders]
    known = [name for name in names if name is not None]
    if len(known) < len(folders):
        return tuple(folder.name for folder in folders), folders
    if len(set(known)) < len(known):
        raise UserError(
            f"two folders of {root} mean the same class: {', '.join(f.name for f in folders)}"
        )
    pairs = sorted(zip(known, folders, strict=True), key=lambda pair: ELEVEN.index(pair[0]))
    return tuple(name for name, _ in pairs), [folder for _, folder in pairs]


def _list_clips(folders: Sequence[Path], prefer_videos: bool) -> list[ClipRecord]:
    """Return the clips of all classes, which have no split yet."""
    records = []
    for label, folder in enumerate(folders):
        clips = _find_clips(folder, prefer_videos)
        if not clips:
            raise UserError(
                f"{folder} holds no clip, neither a folder of frames nor a video: remove or fill it"
            )
        for name, media in sorted(clips.items()):
            source = f"{folder.name}/{name}"
            key = make_key(re.sub(r"[^A-Za-z0-9_/-]", "_", source))
            records.append(ClipRecord(key, label, "", source, media))
    return records


def _find_clips(folder: Path, prefer_videos: bool) -> dict[str, Path]:
    """Return the clips of a class by name."""
    clips: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        is_video = path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        if path.name.startswith(".") or not (is_video or path.is_dir()):
            continue
        name = path.stem if is_video else path.name
        if name not in clips or is_video == prefer_videos:
            clips[name] = path
    return clips


def _assign_folds(records: Sequence[ClipRecord], folds: int, seed: int) -> list[int]:
    """Return a fold from 1 for each clip: clips are shuffled within their class, and take turns."""
    digests = [hashlib.sha256(f"{seed} {record.source}".encode()).digest() for record in records]
    order = sorted(range(len(records)), key=lambda i: (records[i].label, digests[i]))
    assigned = [0] * len(records)
    for position, i in enumerate(order):
        assigned[i] = position % folds + 1
    return assigned


def _assign_grouped_folds(
    records: Sequence[ClipRecord], groups: Sequence[str], folds: int, seed: int
) -> list[int]:
    """Return a fold from 1 for each clip, such that no group is in two folds."""
    names = sorted(set(groups))
    if len(names) < folds:
        raise UserError(
            f"{len(names)} groups are too few for {folds} folds: "
            f"give --folds {max(len(names), 2)} or another column"
        )
    if len(names) == folds:
        return [names.index(group) + 1 for group in groups]
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([record.label for record in records])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    assigned = np.zeros(len(records), int)
    with warnings.catch_warnings():
        # a class may have fewer clips than folds: the table of counts shows it
        warnings.simplefilter("ignore")
        try:
            for fold, (_, test) in enumerate(splitter.split(labels, labels, groups), 1):
                assigned[test] = fold
        except ValueError as e:
            raise UserError(f"groups cannot be balanced: {e}") from e
    if len(set(assigned.tolist())) < folds:
        raise UserError(
            f"a fold has no group: give another --seed or fewer than {folds} with --folds"
        )
    return assigned.tolist()


def _groups_of_clips(records: Sequence[ClipRecord], file: Path, column: str) -> list[str]:
    """Return the group of each clip."""
    rows = _read_groups(file, column)
    names = [record.source.partition("/")[2] for record in records]
    counts = Counter(names)
    groups = []
    for record, name in zip(records, names, strict=True):
        source = record.source
        if source not in rows and name in rows and counts[name] > 1:
            raise UserError(f"{file}: clips of several classes are named {name}: write {source}")
        if source not in rows and name not in rows:
            raise UserError(f"{file} has no row for clip {name} ({source})")
        groups.append(rows.get(source, rows.get(name, "")))
    return groups


def _read_groups(file: Path, column: str) -> Mapping[str, str]:
    """Return the groups in a CSV file by clip."""
    if not file.is_file():
        raise UserError(f"{file} is missing: --groups takes a CSV file with a row per clip")
    reader = csv.DictReader(io.StringIO(read_text(file)))
    header = reader.fieldnames or []
    if "clip" not in header or column not in header:
        raise UserError(
            f"{file} has the columns {', '.join(header) or '(none)'}: "
            f"'clip' and '{column}' are needed"
        )
    groups: dict[str, str] = {}
    for row in reader:
        name = (row["clip"] or "").strip()
        group = (row[column] or "").strip()
        if not name or not group:
            raise UserError(f"{file}:{reader.line_num}: a row without a clip or without a group")
        name = _VIDEO_SUFFIX.sub("", name)
        if groups.setdefault(name, group) != group:
            raise UserError(
                f"{file}:{reader.line_num}: clip {name} is in two groups, "
                f"{groups[name]} and {group}"
            )
    return groups
