"""Folders of classes: ``CLASS/CLIP/`` with frames, or ``CLASS/CLIP.mp4``.

Folds are made here, unless ``train/``, ``val/`` and ``test/``, or folders of folds, are above the
classes.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from dfer_dist.data.sources.folds import make_folds
from dfer_dist.data.sources.lists.classes import choose_classes
from dfer_dist.data.sources.names import is_system, make_keys, plain_name, printable
from dfer_dist.data.sources.probe import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_video
from dfer_dist.data.sources.records import ELEVEN, ClipRecord, Listing, canonical_class, unread_kind
from dfer_dist.utils.errors import UserError, first_of

# such as train, Training, trainval, valid, val_set, test1 and Test_AFEW
_SPLITS = {
    "train": "train(ing|val)?|训练",
    "val": "val(id|idation)?|dev(elopment)?|publictest|验证",
    "eval": "eval(uation)?",
    "test": "(private)?test(ing)?|测试",
}
_MORE = "(set|data|集)?([ _-].*|[0-9]+)?"
# as in split_train
BEFORE_SPLIT = ".*[ _-]"
_FOLD = re.compile("fold[ _-]?([0-9]+)", re.IGNORECASE)


class _ClassFolder(NamedTuple):
    """A folder of clips of one class; ``split`` is empty where folds are still to be made."""

    path: Path
    split: str
    label: int
    source: str


def read_folder(
    root: Path,
    folds: int | None = None,
    seed: int | None = None,
    groups: Path | None = None,
    group_by: str | None = None,
    prefer_videos: bool = False,
    images: bool = False,
    names: Sequence[str] | None = None,
) -> Listing:
    """Return the clips of folders of classes with their splits, and the classes in label order.

    Parameters
    ----------
    root : Path
        Folder of the classes, which hold clips: folders of frames, and videos. Or folder of
        ``train``, ``val`` and ``test``, or of folds, which hold the classes: their split is kept.
        Without ``test``, ``val`` is the test split. Folds are numbered from 1.
    folds, seed, groups, group_by : optional
        Of :func:`~dfer_dist.data.sources.folds.make_folds`, for classes without a split. The file
        has a column ``clip`` (``CLIP`` or ``CLASS/CLIP``).
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.
    images : bool
        Each image in a folder of a class is a clip of one frame.
    names : sequence of str, optional
        Names of the classes in order, which the folders have too, or their numbers. By default
        those of the folders: the usual ones and their order if all are known expressions.

    Raises
    ------
    UserError
        If classes, clips, groups or splits are too few, names or arguments exclude each other.
    """
    _check_arguments(root, groups, group_by)
    splits = _find_splits(root)
    _refuse_folds(root, splits, folds=folds, seed=seed, groups=groups)
    unread: Counter[str] = Counter()
    homes = [(split, path) for split, paths in splits.items() for path in paths]
    classes, folders = _find_classes(homes or [("", root)], bool(splits))
    if names is not None:
        classes, folders = _name_classes(folders, names)
    records = _list_clips(folders, prefer_videos, images, unread)
    _count_strays(root, splits, unread)
    if not splits:
        records = make_folds(records, root, folds, seed, groups, group_by)
    keys = make_keys([r.source for r in records])
    records = [replace(r, key=key) for r, key in zip(records, keys, strict=True)]
    name, notes = printable(root.resolve().name), _describe_splits(splits, classes, records)
    return Listing(name, classes, records, (root,), unread, notes)


def _check_arguments(root: Path, groups: Path | None, group_by: str | None) -> None:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: nothing to pack there")
    if (groups is None) != (group_by is None):
        raise UserError(
            "give --groups and --group-by together: a CSV file, and the name of its group column"
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not is_system(f.name))


def _find_splits(root: Path) -> Mapping[str, list[Path]]:
    """Return the folders of a split by its name; none if the classes are in the root."""
    folders = _subfolders(root)
    found = _match_splits(folders, ("", BEFORE_SPLIT))
    if "train" not in found or len(found) == 1:
        # post_test alone may be a class
        found = _match_splits(folders, ("",))
    numbers = {folder: match for folder in folders if (match := _FOLD.fullmatch(folder.name))}
    if not found:
        by_number = sorted(numbers, key=lambda folder: int(numbers[folder][1]))
        found.update({f"fold{k}": [folder] for k, folder in enumerate(by_number, 1)})
    if found and (len(found) == 1 or not {"train", "fold1"} & found.keys()):
        folder = next(iter(found.values()))[0]
        raise UserError(
            f"{root} has {folder.name}, but not train and another split: give --root {folder} to "
            "make folds of it, or rename it"
        )
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")
    return found


def match_split(name: str, prefixes: Sequence[str] = ("",)) -> str | None:
    """Return the split that a name means, ``train``, ``val``, ``eval`` or ``test``.

    ``prefixes`` are patterns of what may be before it, of which the first that fits counts.
    """
    for prefix, (split, names) in product(prefixes, _SPLITS.items()):
        if re.fullmatch(f"{prefix}({names}){_MORE}", name, re.IGNORECASE):
            return split
    return None


def _match_splits(folders: Sequence[Path], prefixes: Sequence[str]) -> dict[str, list[Path]]:
    """Return folders by the split that their names mean; of two prefixes the first one counts."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        split = match_split(folder.name, prefixes)
        if split:
            found[split].append(folder)
    if "eval" in found:
        # a validation split, unless there is another one and no test
        is_test = "val" in found and "test" not in found
        found["test" if is_test else "val"] += found.pop("eval")
    return found


def _refuse_folds(root: Path, splits: Mapping[str, list[Path]], **arguments: object) -> None:
    given = next((name for name, value in arguments.items() if value is not None), None)
    if splits and given:
        names = " and ".join(path.name for paths in splits.values() for path in paths)
        raise UserError(
            f"{root} has {names}, which are kept as they are: omit --{given}, or move the classes "
            "of all of them into one folder"
        )


def _describe_splits(
    splits: Mapping[str, list[Path]], classes: Sequence[str], records: Sequence[ClipRecord]
) -> tuple[str, ...]:
    """Say which folder is which split, and of which classes ``train`` has no clip."""
    if not splits:
        return ()
    parts = [f"{path.name} is {split}" for split, paths in splits.items() for path in paths]
    notes = (f"the split of the folders is kept: {', '.join(parts)}",)
    trained = {record.label for record in records if record.split not in ("val", "test")}
    untrained = [name for label, name in enumerate(classes) if label not in trained]
    return (*notes, f"train has no clip of {', '.join(untrained)}") if untrained else notes


def _find_classes(
    homes: Sequence[tuple[str, Path]], has_splits: bool
) -> tuple[tuple[str, ...], list[_ClassFolder]]:
    """Return the classes in label order, and their folders in each split."""
    found = [(split, home, folder) for split, home in homes for folder in _subfolders(home)]
    for _, home in homes:
        count = sum(home == other for _, other, _ in found)
        if count < 2 - has_splits:
            raise UserError(
                f"{home} holds {count} folders: at least {2 - has_splits} needed, one for each "
                "class"
            )
    known = all(canonical_class(folder.name) for _, _, folder in found)
    # splits may be of systems that write a name in other bytes, or in upper case
    shown: dict[str, str] = {}

    def class_of(folder: Path) -> str:
        name = plain_name(folder.name).casefold()
        default = printable(folder.name)
        return shown.setdefault(name, (canonical_class(name) if known else None) or default)

    for _, home in homes:
        own = [folder for _, other, folder in found if other == home]
        if len(set(map(class_of, own))) < len(own):
            folders = ", ".join(folder.name for folder in own)
            raise UserError(f"two folders of {home} mean the same class: {printable(folders)}")
    names = list(dict.fromkeys(class_of(folder) for _, _, folder in found))
    if known:
        names.sort(key=ELEVEN.index)
    elif has_splits:
        names.sort()
    if len(names) < 2:
        raise UserError(f"{homes[0][1]} holds the class {names[0]} only: at least two are needed")
    classes = [
        _ClassFolder(
            folder,
            split,
            names.index(class_of(folder)),
            printable(f"{home.name}/{folder.name}" if has_splits else folder.name),
        )
        for split, home, folder in found
    ]
    return tuple(names), sorted(classes, key=lambda f: (f.split, f.label))


def _name_classes(
    folders: Sequence[_ClassFolder], given: Sequence[str]
) -> tuple[tuple[str, ...], list[_ClassFolder]]:
    """Return classes by the names that the user gave, and their folders with these labels."""
    classes = choose_classes(given, {folder.path.name: str(folder.path) for folder in folders})
    labels = [classes.find(folder.path.name) for folder in folders]
    named = zip(folders, labels, strict=True)
    return classes.names, [folder._replace(label=label or 0) for folder, label in named]


def _list_clips(
    folders: Sequence[_ClassFolder], prefer_videos: bool, images: bool, unread: Counter[str]
) -> list[ClipRecord]:
    """Return the clips of all classes, without keys, and count what is not read."""
    records = []
    for folder in folders:
        clips, others = _find_clips(folder.path, prefer_videos, images)
        if not clips and (others or not folder.split):
            raise UserError(_describe_empty(folder.path, others))
        unread.update(others)
        for name, media in sorted(clips.items()):
            source = f"{folder.source}/{printable(name)}"
            records.append(ClipRecord("", folder.label, folder.split, source, media))
    _check_clip_names(records, folders)
    splits = {record.split for record in records}
    empty = next((folder for folder in folders if folder.split not in splits), None)
    if empty:
        raise UserError(f"{empty.path.parent} holds no clip of any class: fill or rename it")
    return records


def _check_clip_names(records: Sequence[ClipRecord], folders: Sequence[_ClassFolder]) -> None:
    """Check that the classes are not one level lower, or the splits below the classes."""
    names = {record.source.rpartition("/")[2] for record in records}
    are_clips = any(not canonical_class(n) and n.lower() not in _SPLITS for n in names)
    # a single clip may have the name of its class
    if not are_clips and len(records) > len(folders):
        raise UserError(
            f"{folders[0].path} holds {first_of(sorted(names), 3)}: these are classes or splits, "
            "not clips: give --root of a folder of classes, or of train and test above the classes"
        )


def _describe_empty(folder: Path, others: Mapping[str, int]) -> str:
    images = sum(count for kind, count in others.items() if kind.split()[0] in IMAGE_SUFFIXES)
    if images:
        return (
            f"{folder} holds {images} still images and no clip: a clip is a folder of frames, or a "
            "video (--images makes each image a clip of one frame)"
        )
    parts = ["no clip, neither a folder of frames nor a video"]
    if others:
        parts.append("but " + ", ".join(f"{count} {kind}" for kind, count in others.items()))
    return f"{folder} holds {', '.join(parts)}: remove or fill it"


def _find_clips(
    folder: Path, prefer_videos: bool, images: bool
) -> tuple[dict[str, Path], Counter[str]]:
    """Return the clips of a class by name, and what is not read by kind."""
    clips: dict[str, Path] = {}
    unread: Counter[str] = Counter()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_system(entry.name):
            continue
        path, is_folder = Path(entry.path), entry.is_dir()
        is_image = images and path.suffix.lower() in IMAGE_SUFFIXES
        if not is_folder and not (entry.is_file() and (is_image or is_video(path))):
            unread[unread_kind(entry)] += 1
            continue
        name = path.name if is_folder else path.stem
        unread["clips of the same name as another"] += name in clips
        if name not in clips or is_folder != prefer_videos:
            clips[name] = path
    return clips, +unread


def _count_strays(root: Path, splits: Mapping[str, list[Path]], unread: Counter[str]) -> None:
    """Count videos, images and archives that are in no class, and folders next to the splits."""
    homes = [path for paths in splits.values() for path in paths]
    for folder in [root, *homes]:
        for entry in os.scandir(folder):
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES):
                unread[unread_kind(entry)] += not entry.is_dir() and not is_system(entry.name)
    if splits:
        unread["folders next to train"] += len(_subfolders(root)) - len(homes)
