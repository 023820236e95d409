"""DFEW, MAFW and FERV39k as their owners distribute them.

Lists and clips are found below one folder by their structure, because folder names vary between
unpacked downloads:

::

    DFEW      test(single-labeled)/set_K.csv, train(single-labeled)/set_K.csv
              with lines video_name,label of labels 1 to 7
              clip_224x224/00001/*.jpg
              Annotation/annotation.csv with the votes, if it is there
    MAFW      single/no_caption/set_K/test.txt, .../train.txt with lines 00025.mp4 anger
              frames/00025/*.png, clips/00025.mp4
              compound/no_caption/set_K/… likewise, with lines 00025.mp4 anger_disgust
    FERV39k   All_scenes/test_All.csv, .../train_All.csv with lines Action/Happy/0015 Happy
              2_ClipsforFaceCrop/Action/Happy/0015/*.jpg

Clips get the same names as in DFER-CLIP's lists, so that both kinds of lists give the same shards.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfer_dist.data.sources import dfer_clip_lists
from dfer_dist.data.sources.compound import SEPARATOR, membership
from dfer_dist.data.sources.names import make_keys
from dfer_dist.data.sources.official_clips import find_clips, walk
from dfer_dist.data.sources.probe import VIDEO_SUFFIX
from dfer_dist.data.sources.records import (
    AMBIGUOUS,
    CLASSES,
    ClipRecord,
    Listing,
    canonical_class,
    find_media,
    listed_clip,
)
from dfer_dist.data.sources.text_lists import read_rows
from dfer_dist.data.sources.votes import ClipVotes, add_votes, most_voted, read_votes
from dfer_dist.utils.errors import UserError

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
        Returns the name of a clip from that in a list, which may be a path of another machine.
    class_name : callable
        Returns the key in ``labels`` of a class from its name in a list, in lower case.
    votes : re.Pattern, optional
        Path below the root of the file of votes.
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
    class_name: Callable[[str], str] = lambda name: canonical_class(name) or name
    votes: re.Pattern[str] | None = None


def _dfew_training_list(test: Path) -> Path:
    folder = test.parent.with_name(test.parent.name.replace("test", "train", 1))
    return folder / test.name.replace("test", "train")


def _compound_class(name: str) -> str:
    """Return the key of a class such as ``disgust_angry``, whatever the order of its emotions."""
    return "_".join(sorted(canonical_class(part) or part for part in name.split("_")))


_MAFW = _Layout(
    lists="Train & Test Set/single/no_caption/set_K/test.txt",
    test_list=re.compile(r"(?P<home>(?:.*/)?)set_(?P<fold>[0-9]+)/test\.txt"),
    preferred=("single/", "no_caption/"),
    training_list=lambda test: test.with_name("train.txt"),
    line_format="'00025.mp4 anger'",
    labels={name: label for label, name in enumerate(CLASSES["mafw"])},
    frames_folder="frames",
    videos_folder="clips",
    clip_name=lambda name: posixpath.splitext(posixpath.basename(name))[0],
)
_LAYOUTS = {
    "dfew": _Layout(
        lists="EmoLabel_DataSplit/test(single-labeled)/set_K.csv",
        test_list=re.compile(r"(?P<home>(?:.*/)?test[^/]*/)(?:test_)?set_(?P<fold>[0-9]+)\.csv"),
        preferred=("single",),
        training_list=_dfew_training_list,
        line_format="'video_name,label' with a label of 1 to 7",
        # happy, sad, neutral, angry, surprise, disgust, fear: the order of CLASSES, from 1
        labels={t: i for i, name in enumerate(CLASSES["dfew"]) for t in (name, str(i + 1))},
        frames_folder="clip_224x224",
        videos_folder="original",
        clip_name=lambda name: VIDEO_SUFFIX.sub("", posixpath.basename(name)).zfill(5),
        votes=re.compile(r"(?:.*/)?annotation/annotation\.csv", re.IGNORECASE),
    ),
    "mafw": _MAFW,
    "mafw-compound": replace(
        _MAFW,
        lists="Train & Test Set/compound/no_caption/set_K/test.txt",
        preferred=("compound/", "no_caption/"),
        line_format="'00025.mp4 anger_disgust' with one of MAFW's 43 classes",
        labels={
            _compound_class(name.replace(SEPARATOR, "_")): label
            for label, name in enumerate(CLASSES["mafw-compound"])
        },
        class_name=_compound_class,
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
        # scene, emotion and number
        clip_name=lambda name: "/".join(name.split("/")[-3:]),
    ),
}


def read_official(
    dataset: str,
    root: Path,
    prefer_videos: bool = False,
    frames: Path | None = None,
    votes: Path | None = None,
    search_votes: bool = True,
) -> Listing:
    """Return the clips of a data set in the order of its owner's lists.

    Parameters
    ----------
    dataset, root : str, Path
        ``dfew``, ``mafw``, ``mafw-compound`` or ``ferv39k``; the unpacked download, or a folder
        above it.
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.
    frames, votes : Path, optional
        Folder of the clips, and file of votes; by default searched for (if ``search_votes``).

    Raises
    ------
    UserError
        If lists or clips are missing, or in several places; if a line cannot be read, or a clip is
        in two splits.
    """
    layout, classes = _LAYOUTS[dataset], CLASSES[dataset]
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: nothing to pack there")
    lists = _find_lists(root, layout)
    rows = _read_rows(lists, layout, classes)
    if votes is None and search_votes:
        votes = _find_votes(root, layout)
    voted = _read_votes(votes, layout, classes)
    rows += _ambiguous_rows(rows, voted)
    sources = [row.source for row in rows]
    usual = (layout.frames_folder, layout.videos_folder)
    clips = find_clips(root, sources, usual, prefer_videos, frames)
    records = [
        replace(r, key=key, media=clips.media[r.source])
        for key, r in zip(make_keys(sources), rows, strict=True)
        if r.split != AMBIGUOUS or find_media(clips.media[r.source])
    ]
    if any(SEPARATOR in name for name in classes):
        records = _with_components(records, classes, layout)
    notes: tuple[str, ...] = ()
    if votes is not None:
        records, notes = add_votes(records, voted, classes, votes, len(rows) - len(records))
    folders = (next(iter(lists.values())).parent, clips.home)
    return Listing(dataset, classes, records, folders, clips.unread, (clips.choice, *notes))


def _read_rows(
    lists: Mapping[str, Path], layout: _Layout, classes: Sequence[str]
) -> list[ClipRecord]:
    """Return the clips of the test lists by split, checked against the training lists."""
    trainings = {split: layout.training_list(file) for split, file in lists.items()}
    if "test" in lists:
        # without folds the training list is a split of its own
        lists, trainings = {"train": trainings["test"], **lists}, {}
    tests = {split: _read_list(file, layout) for split, file in lists.items()}
    trains = {s: _read_list(file, layout) for s, file in trainings.items() if file.is_file()}
    return dfer_clip_lists.join_splits(tests, trains, classes)


def _read_votes(file: Path | None, layout: _Layout, classes: Sequence[str]) -> dict[str, ClipVotes]:
    if file is None:
        return {}
    found = read_votes(file, classes)
    return {layout.clip_name(clip): of_clip for clip, of_clip in found.items()}


def _ambiguous_rows(rows: Sequence[ClipRecord], voted: Mapping[str, ClipVotes]) -> list[ClipRecord]:
    """Return the clips without a majority that no list has."""
    listed = {row.source for row in rows}
    return [
        listed_clip(clip, most_voted(of_clip.votes)[0], split=AMBIGUOUS)
        for clip, of_clip in voted.items()
        if of_clip.is_ambiguous and clip not in listed
    ]


def _find_votes(root: Path, layout: _Layout) -> Path | None:
    """Return the file of votes nearest to the root; None if there is none."""
    if layout.votes is None:
        return None
    for _, entries in walk(root, lambda _, subfolders: subfolders <= _MAX_SUBFOLDERS):
        for entry in entries:
            path = Path(entry.path)
            if layout.votes.fullmatch(path.relative_to(root).as_posix()) and entry.is_file():
                return path
    return None


def _with_components(
    records: list[ClipRecord], classes: tuple[str, ...], layout: _Layout
) -> list[ClipRecord]:
    """Return clips with the labels of all emotions of their compound classes."""
    # single classes come first, so their position is their label
    sets = [tuple(np.flatnonzero(row).tolist()) for row in membership(classes)]
    if all(len(sets[record.label]) == 1 for record in records):
        raise UserError(
            "no listed clip has a compound class: give --root of the folder with "
            f"{layout.lists}, or pack single classes with --dataset mafw"
        )
    return [replace(record, labels=sets[record.label]) for record in records]


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
    for folder, entries in walk(root, lambda _, subfolders: subfolders <= _MAX_SUBFOLDERS):
        if found and len(folder.parts) > depth:
            break
        for entry in entries:
            path = Path(entry.path)
            match = layout.test_list.fullmatch(path.relative_to(root).as_posix())
            if match and entry.is_file():
                depth, fold = len(folder.parts), int(match.groupdict().get("fold", 0))
                dfer_clip_lists.add_test_list(found.setdefault(match["home"], {}), fold, path)
    return found


def _read_list(file: Path, layout: _Layout) -> list[ClipRecord]:
    def parse(fields: list[str]) -> ClipRecord | None:
        clip, name = fields[0].replace("\\", "/").strip("/"), fields[1].lower()
        label = layout.labels.get(layout.class_name(name))
        if label is None:
            return None
        return listed_clip(layout.clip_name(clip), label)

    if not file.is_file():
        raise UserError(f"{file} is missing: the other lists in its folder need it")
    rows = read_rows(file, parse, 2, layout.line_format)
    if not rows:
        raise UserError(f"{file} is empty: copy it again")
    return rows
