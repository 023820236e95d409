"""DFEW, MAFW and FERV39k as their owners distribute them.

Lists and clips are found below one folder by their structure, since unpacking the downloads leaves folders of varying names:

::

    DFEW      test(single-labeled)/set_K.csv, train(single-labeled)/set_K.csv     video_name,label    labels 1 to 7
              clip_224x224/00001/*.jpg
    MAFW      single/no_caption/set_K/test.txt, …/train.txt                       00025.mp4 anger
              frames/00025/*.png, clips/00025.mp4
    FERV39k   All_scenes/test_All.csv, …/train_All.csv                            Action/Happy/0015 Happy
              2_ClipsforFaceCrop/Action/Happy/0015/*.jpg

Clips get the names that DFER-CLIP's lists give them, so that both ways of packing write the same shards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.sources.layouts import (
    CLASSES,
    VIDEO_SUFFIXES,
    ClipRecord,
    Row,
    join_splits,
    known_class,
    make_key,
    number_folds,
    read_text,
)
from dfer_dist.utils.errors import UserError

_DEEPEST = 7  # folders below the root
_CROWD = 200  # a folder of more folders than that holds clips: no list lies below it


@dataclass(frozen=True)
class _Owner:
    """How an owner lays a data set out."""

    lists: str  # where test lists lie, in words
    test: re.Pattern[
        str
    ]  # the path of a test list below the root; "home" holds all folds, "fold" is its number
    prefer: tuple[str, ...]  # words in the path of the lists to take where there are several
    twin: Callable[[Path], Path]  # of a test list: its training list
    form: str  # of a line, in words
    parse: Callable[
        [str], tuple[str, str] | None
    ]  # of a line: a clip's name and what the list calls its class
    labels: Mapping[str, int]  # label in our order of what the list calls a class, in lower case
    frames: str  # the usual name of the folder with folders of frames
    videos: str  # and of that with films


def _words(line: str) -> tuple[str, str] | None:
    words = re.split(r"[\s,]+", line.strip())
    return (words[0], words[1]) if len(words) == 2 else None


def _dfew_words(line: str) -> tuple[str, str] | None:
    words = _words(line)
    return (words[0].zfill(5), words[1]) if words else None


def _mafw_words(line: str) -> tuple[str, str] | None:
    words = _words(line)
    return (words[0].removesuffix(".mp4"), words[1]) if words else None


def _dfew_twin(test: Path) -> Path:
    folder = test.parent.with_name(test.parent.name.replace("test", "train", 1))
    return folder / test.name.replace("test", "train")


_OWNERS = {
    "dfew": _Owner(
        lists="EmoLabel_DataSplit/test(single-labeled)/set_K.csv",
        test=re.compile(r"(?P<home>(?:.*/)?test[^/]*/)(?:test_)?set_(?P<fold>[0-9]+)\.csv"),
        prefer=("single",),
        twin=_dfew_twin,
        form="'video_name,label' with a label of 1 to 7",
        parse=_dfew_words,
        labels={
            str(i + 1): i for i in range(7)
        },  # happy, sad, neutral, angry, surprise, disgust, fear: our order from 1
        frames="clip_224x224",
        videos="original",
    ),
    "mafw": _Owner(
        lists="Train & Test Set/single/no_caption/set_K/test.txt",
        test=re.compile(r"(?P<home>(?:.*/)?)set_(?P<fold>[0-9]+)/test\.txt"),
        prefer=("single/", "no_caption/"),
        twin=lambda test: test.with_name("train.txt"),
        form="'00025.mp4 anger'",
        parse=_mafw_words,
        labels={name: label for label, name in enumerate(CLASSES["mafw"])},
        frames="frames",
        videos="clips",
    ),
    "ferv39k": _Owner(
        lists="4_setups/All_scenes/test_All.csv",
        test=re.compile(r"(?P<home>(?:.*/)?)test_All\.csv"),
        prefer=("All_scenes/",),
        twin=lambda test: test.with_name("train_All.csv"),
        form="'Action/Happy/0015 Happy'",
        parse=_words,
        labels={name: label for label, name in enumerate(CLASSES["ferv39k"])},
        frames="2_ClipsforFaceCrop",
        videos="clips",
    ),
}


def read_official(
    dataset: str, root: Path, videos: bool = False
) -> tuple[list[ClipRecord], tuple[Path, Path]]:
    """Clips of a data set in the order of its owner's lists, and the folders where lists and clips were found.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw`` or ``ferv39k``.
    root : Path
        The unpacked download, or a folder above it.
    films : bool
        Where a clip has both, take its film and not its folder of frames.

    Raises
    ------
    UserError
        Lists or clips that are not found, or in several places; unreadable lines; a clip in two splits.
    """
    owner, classes = _OWNERS[dataset], CLASSES[dataset]
    if not root.is_dir():
        raise UserError(f"{root} is no folder: nothing to pack there")
    files = _find_lists(root, owner)
    if "test" in files:  # no folds: both lists are splits
        files = {"train": owner.twin(files["test"]), **files}
        twins = {}
    else:
        twins = {
            split: owner.twin(file) for split, file in files.items() if owner.twin(file).is_file()
        }
    tests = {split: _read_rows(file, owner) for split, file in files.items()}
    trains = {split: _read_rows(file, owner) for split, file in twins.items()}
    listed = list(join_splits(tests, trains, classes))
    media, home = _find_clips(root, [row.source for _, row, _ in listed], owner, videos)
    records = [
        ClipRecord(make_key(r.source), r.label, split, r.source, media[r.source], None, f)
        for split, r, f in listed
    ]
    return records, (next(iter(files.values())).parent, home)


def _find_lists(root: Path, owner: _Owner) -> dict[str, Path]:
    """Test lists by split: those nearest to the root."""
    homes: dict[str, dict[int, Path]] = {}
    for level in _levels(root):
        for _, entries in level:
            for entry in entries:
                path = Path(entry.path)
                match = owner.test.fullmatch(path.relative_to(root).as_posix())
                if match and entry.is_file():
                    fold = int(match["fold"]) if "fold" in owner.test.groupindex else 0
                    twin = homes.setdefault(match["home"], {}).setdefault(fold, path)
                    if twin != path:
                        raise UserError(
                            f"two test lists of one fold, {twin} and {path}: remove one of them"
                        )
        if homes:
            break
    for words in owner.prefer:
        homes = {home: tests for home, tests in homes.items() if words in home} or homes
    if len(homes) != 1:
        places = " and ".join(str(root / home) for home in sorted(homes))
        found = (
            f"lies in {places}: give --root of one"
            if homes
            else "is not there: give another --root, or --lists DIR for DFER-CLIP's lists"
        )
        raise UserError(f"below {root}, {owner.lists} {found}")
    ((home, tests),) = homes.items()
    return (
        number_folds(tests, root / home) if "fold" in owner.test.groupindex else {"test": tests[0]}
    )


def _read_rows(file: Path, owner: _Owner) -> list[Row]:
    if not file.is_file():
        raise UserError(f"{file} is missing: it belongs to the lists beside it")
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = owner.parse(line)
        if not line.strip() or (
            number == 1 and line.lower().replace(" ", "").startswith("video_name,")
        ):
            continue
        name = words[1].lower() if words else ""
        label = owner.labels.get(known_class(name) or name)
        if words is None or label is None:
            raise UserError(f"{file}:{number}: '{line}' is not of the form {owner.form}")
        rows.append(Row(words[0].strip("/"), label))
    if not rows:
        raise UserError(f"{file} is empty: copy it again")
    return rows


def _find_clips(
    root: Path, sources: Sequence[str], owner: _Owner, videos: bool
) -> tuple[dict[str, Path], Path]:
    """Where each clip is, and the folder that all of them are in; clips that are not there get the place where they should be."""
    tops = {source.partition("/")[0] for source in sources}
    for kind in (videos, not videos):
        holders = list(_holders(root, tops, kind))
        if holders:
            break
    if not holders:
        example = sources[0]
        raise UserError(
            f"no folder below {root} holds the listed clips, such as {example}/ or {example}.mp4"
        )
    usual = owner.videos if kind else owner.frames
    named = [
        (folder, hits)
        for folder, hits in holders
        if usual in (root.name, *folder.relative_to(root).parts)
    ]
    if named:  # downloads in parts may have several folders in it
        parts = named[0][0].relative_to(root).parts
        home = root.joinpath(*parts[: parts.index(usual) + 1]) if usual in parts else root
        chosen = [(folder, hits) for folder, hits in named if folder.is_relative_to(home)]
    else:
        chosen = [max(holders, key=lambda holder: len(holder[1]))]
        home = chosen[0][0]
    places = {name: path for _, hits in reversed(chosen) for name, path in hits.items()}
    return {s: _below(places, s) or chosen[0][0] / s for s in sources}, home


def _below(places: Mapping[str, Path], source: str) -> Path | None:
    top, _, rest = source.partition("/")
    return places[top] / rest if top in places else None


def _holders(root: Path, tops: set[str], videos: bool) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Folders that hold listed clips as folders, or as films, and where each of these is; not what lies below such a folder."""
    seen: set[Path] = set()
    for level in _levels(root, stop=seen):
        for folder, entries in level:
            hits = {}
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                name = (
                    entry.name if not videos else stem if suffix.lower() in VIDEO_SUFFIXES else ""
                )
                name = name if name in tops else name.zfill(5)  # DFEW's films are named 1.mp4
                if name in tops and entry.is_dir() != videos:
                    hits[name] = Path(entry.path)
            if hits:
                seen.add(folder)
                yield folder, hits


def _levels(
    root: Path, stop: set[Path] | None = None
) -> Iterator[list[tuple[Path, list[os.DirEntry[str]]]]]:
    """Folders and what is in them, level by level from the root; not below those in ``stop``, nor, without it, below crowds."""
    level = [root]
    for _ in range(_DEEPEST + 1):
        read = [
            (folder, sorted(os.scandir(folder), key=lambda entry: entry.name)) for folder in level
        ]
        if not read:
            return
        yield read
        level = []
        for folder, entries in read:
            inner = [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            ]
            if (folder not in stop) if stop is not None else len(inner) <= _CROWD:
                level += inner
