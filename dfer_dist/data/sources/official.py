"""DFEW, MAFW and FERV39k as their owners distribute them.

Lists and clips are found below one folder by their structure, because folder names vary between
unpacked downloads:

::

    DFEW      test(single-labeled)/set_K.csv, train(single-labeled)/set_K.csv
              with lines video_name,label of labels 1 to 7
              clip_224x224/00001/*.jpg
    MAFW      single/no_caption/set_K/test.txt, .../train.txt with lines 00025.mp4 anger
              frames/00025/*.png, clips/00025.mp4
    FERV39k   All_scenes/test_All.csv, .../train_All.csv with lines Action/Happy/0015 Happy
              2_ClipsforFaceCrop/Action/Happy/0015/*.jpg

Clips get the same names as in DFER-CLIP's lists, so that both kinds of lists give the same shards.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.sources import dfer_clip_lists
from dfer_dist.data.sources.records import (
    CLASSES,
    VIDEO_SUFFIXES,
    ClipRecord,
    canonical_class,
    make_key,
)
from dfer_dist.utils.errors import UserError

_MAX_DEPTH = 7

# A folder with more subfolders than this holds clips: lists are not searched below it.
_MAX_SUBFOLDERS = 200


@dataclass(frozen=True)
class _Layout:
    """How the owner of a data set lays out its download.

    Attributes
    ----------
    lists : str
        Path of the test lists, for messages.
    test_list : re.Pattern
        Path of a test list below the root. Group ``home`` is the folder of all folds, group
        ``fold`` the number of the fold, if there are folds.
    preferred : tuple of str
        Parts of the path of the lists to read if several sets are found.
    training_list : callable
        Returns the path of the training list of a test list.
    line_format : str
        Format of a line, for messages.
    labels : mapping
        Labels by class as named in the lists, in lower case.
    frames_folder, videos_folder : str
        Usual names of the folders of all frames and of all videos.
    clip_name : callable
        Returns the name of a clip from that in a list.
    """

    lists: str
    test_list: re.Pattern[str]
    preferred: tuple[str, ...]
    training_list: Callable[[Path], Path]
    line_format: str
    labels: Mapping[str, int]
    frames_folder: str
    videos_folder: str
    clip_name: Callable[[str], str] = str


def _dfew_training_list(test: Path) -> Path:
    folder = test.parent.with_name(test.parent.name.replace("test", "train", 1))
    return folder / test.name.replace("test", "train")


_LAYOUTS = {
    "dfew": _Layout(
        lists="EmoLabel_DataSplit/test(single-labeled)/set_K.csv",
        test_list=re.compile(r"(?P<home>(?:.*/)?test[^/]*/)(?:test_)?set_(?P<fold>[0-9]+)\.csv"),
        preferred=("single",),
        training_list=_dfew_training_list,
        line_format="'video_name,label' with a label of 1 to 7",
        # happy, sad, neutral, angry, surprise, disgust, fear: the order of CLASSES, from 1
        labels={str(label + 1): label for label in range(7)},
        frames_folder="clip_224x224",
        videos_folder="original",
        clip_name=lambda name: name.zfill(5),
    ),
    "mafw": _Layout(
        lists="Train & Test Set/single/no_caption/set_K/test.txt",
        test_list=re.compile(r"(?P<home>(?:.*/)?)set_(?P<fold>[0-9]+)/test\.txt"),
        preferred=("single/", "no_caption/"),
        training_list=lambda test: test.with_name("train.txt"),
        line_format="'00025.mp4 anger'",
        labels={name: label for label, name in enumerate(CLASSES["mafw"])},
        frames_folder="frames",
        videos_folder="clips",
        clip_name=lambda name: name.removesuffix(".mp4"),
    ),
    "ferv39k": _Layout(
        lists="4_setups/All_scenes/test_All.csv",
        test_list=re.compile(r"(?P<home>(?:.*/)?)test_All\.csv"),
        preferred=("All_scenes/",),
        training_list=lambda test: test.with_name("train_All.csv"),
        line_format="'Action/Happy/0015 Happy'",
        labels={name: label for label, name in enumerate(CLASSES["ferv39k"])},
        frames_folder="2_ClipsforFaceCrop",
        videos_folder="clips",
    ),
}


def read_official(
    dataset: str, root: Path, prefer_videos: bool = False
) -> tuple[list[ClipRecord], tuple[Path, Path]]:
    """Return the clips of a data set in the order of its owner's lists.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw`` or ``ferv39k``.
    root : Path
        The unpacked download, or a folder above it.
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.

    Returns
    -------
    records : list of ClipRecord
    folders : tuple of Path
        Where the lists and the clips were found.

    Raises
    ------
    UserError
        If lists or clips are not found, or are in several places; if a line cannot be read, or a
        clip is in two splits.
    """
    layout = _LAYOUTS[dataset]
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: nothing to pack there")
    lists = _find_lists(root, layout)
    trainings = {split: layout.training_list(file) for split, file in lists.items()}
    if "test" in lists:
        # without folds the training list is a split of its own
        lists, trainings = {"train": trainings["test"], **lists}, {}
    tests = {split: _read_list(file, layout) for split, file in lists.items()}
    trains = {s: _read_list(file, layout) for s, file in trainings.items() if file.is_file()}
    rows = dfer_clip_lists.join_splits(tests, trains, CLASSES[dataset])
    media, home = _find_clips(root, [row.source for row in rows], layout, prefer_videos)
    records = [
        ClipRecord(make_key(r.source), r.label, r.split, r.source, media[r.source], None, r.faults)
        for r in rows
    ]
    return records, (next(iter(lists.values())).parent, home)


def _find_lists(root: Path, layout: _Layout) -> dict[str, Path]:
    """Return the test lists nearest to the root by split."""
    found = _nearest_lists(root, layout)
    for part in layout.preferred:
        found = {home: tests for home, tests in found.items() if part in home} or found
    if not found:
        raise UserError(
            f"{layout.lists} is not below {root}: give another --root, or --lists DIR for "
            "DFER-CLIP's lists"
        )
    if len(found) > 1:
        homes = " and ".join(str(root / home) for home in sorted(found))
        raise UserError(f"{layout.lists} is in several folders, {homes}: give --root of one")
    ((home, tests),) = found.items()
    if "fold" in layout.test_list.groupindex:
        return dfer_clip_lists.number_folds(tests, root / home)
    return {"test": tests[0]}


def _nearest_lists(root: Path, layout: _Layout) -> dict[str, dict[int, Path]]:
    """Return the test lists at the least depth that has any: by folder, and by fold."""
    found: dict[str, dict[int, Path]] = {}
    depth = 0
    for folder, entries in _walk(root, lambda _, subfolders: subfolders <= _MAX_SUBFOLDERS):
        if found and len(folder.parts) > depth:
            break
        for entry in entries:
            path = Path(entry.path)
            match = layout.test_list.fullmatch(path.relative_to(root).as_posix())
            if match and entry.is_file():
                depth, fold = len(folder.parts), int(match.groupdict().get("fold", 0))
                dfer_clip_lists.add_test_list(found.setdefault(match["home"], {}), fold, path)
    return found


def _read_list(file: Path, layout: _Layout) -> list[dfer_clip_lists.Row]:
    def parse(line: str) -> dfer_clip_lists.Row | None:
        fields = re.split(r"[\s,]+", line.strip())
        name = fields[-1].lower()
        label = layout.labels.get(canonical_class(name) or name)
        if len(fields) != 2 or label is None:
            return None
        return dfer_clip_lists.Row(layout.clip_name(fields[0]).strip("/"), label)

    if not file.is_file():
        raise UserError(f"{file} is missing: the other lists in its folder need it")
    rows = dfer_clip_lists.read_rows(file, parse, layout.line_format)
    if not rows:
        raise UserError(f"{file} is empty: copy it again")
    return rows


def _find_clips(
    root: Path, sources: Sequence[str], layout: _Layout, prefer_videos: bool
) -> tuple[dict[str, Path], Path]:
    """Return the path of each clip, and the folder of all; a missing clip gets its expected path.

    Clips of FERV39k are nested folders, of which the topmost one is searched for.
    """
    names = {source.partition("/")[0] for source in sources}
    for videos in (prefer_videos, not prefer_videos):
        folders = _find_clip_folders(root, names, videos)
        if folders:
            break
    else:
        example = sources[0]
        raise UserError(
            f"no folder below {root} holds the listed clips, such as {example}/ or {example}.mp4"
        )
    usual = layout.videos_folder if videos else layout.frames_folder
    home, chosen = _choose_folders(root, folders, usual)
    paths = {name: path for folder in reversed(chosen) for name, path in folders[folder].items()}
    media = {}
    for source in sources:
        name, _, rest = source.partition("/")
        media[source] = paths[name] / rest if name in paths else chosen[0] / source
    return media, home


def _choose_folders(
    root: Path, folders: Mapping[Path, Mapping[str, Path]], usual: str
) -> tuple[Path, list[Path]]:
    """Return the folder of the usual name with all clip folders in it, else the fullest folder."""
    named = [f for f in folders if usual in (root.name, *f.relative_to(root).parts)]
    if not named:
        fullest = max(folders, key=lambda folder: len(folders[folder]))
        return fullest, [fullest]
    # a download in several parts has several folders in the usual one
    parts = named[0].relative_to(root).parts
    home = root.joinpath(*parts[: parts.index(usual) + 1]) if usual in parts else root
    return home, [folder for folder in named if folder.is_relative_to(home)]


def _find_clip_folders(root: Path, names: set[str], videos: bool) -> dict[Path, dict[str, Path]]:
    """Return the folders that hold listed clips, and none below these, with the path of each clip.

    Clips are videos or folders.
    """
    found: dict[Path, dict[str, Path]] = {}
    for folder, entries in _walk(root, lambda folder, _: folder not in found):
        clips = {}
        for entry in entries:
            name = _match_clip(entry.name, names, videos)
            if name is not None and entry.is_dir() != videos:
                clips[name] = Path(entry.path)
        if clips:
            found[folder] = clips
    return found


def _match_clip(entry: str, names: set[str], videos: bool) -> str | None:
    """Return which clip a file or folder is, or None."""
    stem, suffix = os.path.splitext(entry)
    if videos and suffix.lower() not in VIDEO_SUFFIXES:
        return None
    name = stem if videos else entry
    # DFEW's videos have names such as 1.mp4
    return next((n for n in (name, name.zfill(5)) if n in names), None)


def _walk(
    root: Path, descend: Callable[[Path, int], bool]
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield folders with their entries, from the root down, by depth.

    ``descend`` decides from a folder and its number of subfolders whether these come later. It is
    called after the folder was used.
    """
    folders = deque([(root, 0)])
    while folders:
        folder, depth = folders.popleft()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        yield folder, entries
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        subfolders = [Path(entry.path) for entry in visible if entry.is_dir()]
        if depth < _MAX_DEPTH and descend(folder, len(subfolders)):
            folders.extend((subfolder, depth + 1) for subfolder in subfolders)
