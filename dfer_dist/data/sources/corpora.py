"""Corpora whose file names tell the class: CREMA-D, RAVDESS, eNTERFACE'05, AFEW and RAF-DB.

::

    crema-d     VideoFlash/1001_DFA_ANG_XX.flv        actor, sentence, class, level
    ravdess     Actor_01/01-01-03-01-02-01-01.mp4     modality, channel, class, ..., actor
    enterface   subject 1/anger/sentence 1/s1_an_1.avi
    afew        Train_AFEW/Angry/000046280.avi, Val_AFEW/...
    raf-db      EmoLabel/list_patition_label.txt with lines train_00001.jpg 5,
                Image/aligned/train_00001_aligned.jpg

Clips are videos or folders of frames with these names, or the images of RAF-DB, below folders of
any name. Actors become groups, and folds are disjoint in them. AFEW and RAF-DB have a split.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.sources.folds import make_folds
from dfer_dist.data.sources.names import is_system, make_keys, printable
from dfer_dist.data.sources.official_clips import walk
from dfer_dist.data.sources.probe import IMAGE_SUFFIXES, is_video
from dfer_dist.data.sources.records import SEVEN, ClipRecord, Listing, unread_kind
from dfer_dist.data.sources.text_lists import read_rows
from dfer_dist.utils.errors import UserError

_RAF_DB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
_RAF_DB_LIST = re.compile(r"list_par?tition_label\.txt")


@dataclass(frozen=True)
class _Corpus:
    """How a corpus names its clips.

    Attributes
    ----------
    form : str
        A clip's path, for messages.
    patterns : tuple of re.Pattern
        End of a clip's path without suffix; groups ``label``, and ``actor`` or ``split``.
    codes : Mapping of str to str
        Class of each code in the names, in lower case.
    left_out : callable, optional
        From the matches of all clips, why each is left out, or an empty text.
    """

    form: str
    patterns: tuple[re.Pattern[str], ...]
    codes: Mapping[str, str]
    left_out: Callable[[Sequence[re.Match[str]]], list[str]] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the usual order, others last."""
        found = dict.fromkeys(self.codes.values())
        return tuple(sorted(found, key=lambda name: (*SEVEN, name).index(name)))

    def match(self, path: Path) -> re.Match[str] | None:
        """Return the match of a path without suffix, if it is a clip's."""
        matches = (pattern.search(path.as_posix()) for pattern in self.patterns)
        return next((m for m in matches if m and m["label"].lower() in self.codes), None)


def _name_pattern(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|(?<=/)){text}$", re.IGNORECASE)


def _ravdess_left_out(found: Sequence[re.Match[str]]) -> list[str]:
    """Leave out songs, and videos without sound where there are others."""
    with_sound = any(match["modality"] == "01" for match in found)
    reasons = []
    for match in found:
        reason = "songs" * (match["channel"] == "02")
        if with_sound and match["modality"] == "02":
            reason = "videos without sound"
        reasons.append(reason)
    return reasons


_CORPORA = {
    "crema-d": _Corpus(
        "1001_DFA_ANG_XX.flv",
        (_name_pattern("(?P<actor>[0-9]{4})_[A-Z]{3}_(?P<label>[A-Z]{3})_[A-Z]{1,2}"),),
        {
            "ang": "anger",
            "dis": "disgust",
            "fea": "fear",
            "hap": "happiness",
            "neu": "neutral",
            "sad": "sadness",
        },
    ),
    "ravdess": _Corpus(
        "01-01-03-01-01-01-01.mp4",
        (
            _name_pattern(
                "(?P<modality>0[12])-(?P<channel>0[12])-(?P<label>[0-9]{2})(?:-[0-9]{2}){3}"
                "-(?P<actor>[0-9]{2})"
            ),
        ),
        {
            "01": "neutral",
            "02": "calm",
            "03": "happiness",
            "04": "sadness",
            "05": "anger",
            "06": "fear",
            "07": "disgust",
            "08": "surprise",
        },
        _ravdess_left_out,
    ),
    "enterface": _Corpus(
        "subject 1/anger/sentence 1/s1_an_1.avi",
        (
            _name_pattern("subject[ _-]?(?P<actor>[0-9]+)/(?P<label>[a-z]+)/(?:[^/]+/)?[^/]+"),
            _name_pattern("s_?(?P<actor>[0-9]+)_(?P<label>[a-z]{2})_?[0-9]+"),
        ),
        {
            code: name
            for name in SEVEN
            if name != "neutral"
            for code in (name, name[:2], name.replace("happiness", "happy"))
        },
    ),
    "afew": _Corpus(
        "Train_AFEW/Angry/000046280.avi",
        (_name_pattern("[^/]*(?P<split>train|val)[^/]*/(?P<label>[a-z]+)/[^/]+"),),
        {
            "angry": "anger",
            "disgust": "disgust",
            "fear": "fear",
            "happy": "happiness",
            "neutral": "neutral",
            "sad": "sadness",
            "surprise": "surprise",
        },
    ),
}
CORPORA = (*_CORPORA, "raf-db")


def read_corpus(
    name: str,
    root: Path,
    folds: int | None = None,
    seed: int | None = None,
    prefer_videos: bool = False,
) -> Listing:
    """Return the clips of a corpus, with actors as groups.

    Parameters
    ----------
    name : str
        One of :data:`CORPORA`.
    root : Path
        Folder of the corpus, or one above it.
    folds, seed : int, optional
        See :func:`~dfer_dist.data.sources.folds.make_folds`; not for a corpus with a split.
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.

    Raises
    ------
    UserError
        If no clip is found, a split has none, or folds are asked for next to a split.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: nothing to pack there")
    if name in ("afew", "raf-db") and (folds is not None or seed is not None):
        raise UserError(f"{name} has a split of its own: omit --folds and --seed")
    if name == "raf-db":
        return _read_raf_db(root)
    corpus, unread = _CORPORA[name], Counter[str]()
    found = _find_clips(corpus, root, prefer_videos, unread)
    if corpus.left_out:
        reasons = corpus.left_out([match for match, _ in found.values()])
        unread.update(reason for reason in reasons if reason)
        kept = zip(found.items(), reasons, strict=True)
        found = {source: clip for (source, clip), reason in kept if not reason}
    if not found:
        raise UserError(f"no clip below {root} is named as {name} names them, {corpus.form}")
    records = [
        _make_record(corpus, key, source, *found[source])
        for key, source in zip(make_keys(list(found)), found, strict=True)
    ]
    if name == "afew":
        _check_split(name, root, records)
        notes = ("Val is the test split: the classes of the test videos are not public",)
        return Listing(name, corpus.classes, records, (root,), +unread, notes)
    records = make_folds(records, root, folds, seed)
    return Listing(name, corpus.classes, records, (root,), +unread)


def _make_record(
    corpus: _Corpus, key: str, source: str, match: re.Match[str], media: Path
) -> ClipRecord:
    """Return a clip with the label, group and split that its name tells."""
    names = match.groupdict(default="")
    label = corpus.classes.index(corpus.codes[names["label"].lower()])
    split = names.get("split", "").lower().replace("val", "test")
    return ClipRecord(key, label, split, source, media, group=names.get("actor", ""))


def _find_clips(
    corpus: _Corpus, root: Path, prefer_videos: bool, unread: Counter[str]
) -> dict[str, tuple[re.Match[str], Path]]:
    """Return match and media of each clip by its name, and count what else is there."""
    clips: dict[str, tuple[re.Match[str], Path]] = {}

    def add(match: re.Match[str], path: Path, is_video: bool) -> None:
        name = printable(match[0])
        unread["clips of the same name as another"] += name in clips
        if name not in clips or is_video == prefer_videos:
            clips[name] = match, path

    for folder, entries in walk(root, lambda *_: True):
        files = [entry for entry in entries if entry.is_file() and not is_system(entry.name)]
        match = corpus.match(folder.relative_to(root))
        if match and any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in files):
            add(match, folder, False)
            continue
        for entry in files:
            path = Path(entry.path)
            match = corpus.match(path.relative_to(root).with_suffix(""))
            if match and is_video(path):
                add(match, path, True)
            else:
                unread[unread_kind(entry)] += 1
    return clips


def _check_split(name: str, root: Path, records: Sequence[ClipRecord]) -> None:
    missing = {"train", "test"} - {record.split for record in records}
    if missing:
        raise UserError(f"{root} has no clip of the {missing.pop()} split of {name}")


def _read_raf_db(root: Path) -> Listing:
    """Return the images of RAF-DB's list, aligned ones if they are there, as clips of a frame."""
    lists: list[Path] = []
    folders: dict[Path, set[str]] = {}
    for folder, entries in walk(root, lambda *_: True):
        names = {entry.name for entry in entries}
        lists += [folder / name for name in sorted(names) if _RAF_DB_LIST.fullmatch(name)]
        folders[folder] = names
    if len(lists) != 1:
        found = " and ".join(map(str, lists)) or "no list"
        raise UserError(f"below {root} is {found}: one list_patition_label.txt is needed")

    def parse(fields: list[str]) -> tuple[str, int] | None:
        plain = re.fullmatch("[1-7]", fields[1])
        return (os.path.splitext(fields[0])[0], int(fields[1]) - 1) if plain else None

    rows = read_rows(lists[0], parse, 2, "'train_00001.jpg 5' with a label of 1 to 7")
    for suffix in ("_aligned.jpg", ".jpg"):
        names = {f"{name}{suffix}" for name, _ in rows}
        home = max(folders, key=lambda folder: len(names & folders[folder]), default=root)
        if names & folders[home]:
            break
    else:
        raise UserError(f"no folder below {root} holds the listed images, such as {rows[0][0]}.jpg")
    names_of = [name for name, _ in rows]
    splits = [re.match("train|test", name) for name in names_of]
    records = [
        ClipRecord(key, label, split[0], name, home / f"{name}{suffix}")
        for key, (name, label), split in zip(make_keys(names_of), rows, splits, strict=True)
        if split
    ]
    if len(records) < len(rows):
        name = names_of[splits.index(None)]
        raise UserError(f"{lists[0]}: '{name}' begins with neither train nor test")
    _check_split("raf-db", root, records)
    note = f"images are read from {home.relative_to(root).as_posix()}"
    return Listing("raf-db", _RAF_DB, records, (lists[0].parent, home), {}, (note,))
