"""Records of clips before packing, and the class names and file types that all readers share."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dfer_dist.data.sources.compound import MAFW_COMPOUND
from dfer_dist.data.sources.frame_order import sort_frames
from dfer_dist.data.sources.names import is_system, plain_name
from dfer_dist.data.sources.probe import IMAGE_KINDS, IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_video

SEVEN = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
ELEVEN = (*SEVEN, "contempt", "anxiety", "helplessness", "disappointment")

# class names of each data set, in label order
CLASSES = {
    "demo": SEVEN,
    "dfew": SEVEN,
    "mafw": ELEVEN,
    "mafw-compound": (*ELEVEN, *MAFW_COMPOUND),
    "ferv39k": SEVEN,
}

# split of clips that are in no test list, which are never packed
NO_SPLIT = "none"
# split of clips whose annotators chose no class more often than all others
AMBIGUOUS = "ambiguous"

_CLASS_OF_ADJECTIVE = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "anxious": "anxiety",
    "helpless": "helplessness",
    "disappointed": "disappointment",
}


@dataclass(frozen=True)
class Fault:
    """A fault of a clip.

    Attributes
    ----------
    kind : str
        One of a few kinds, such as ``missing``.
    reason : str
        The details, for the user.
    left_out : bool
        Whether the clip is not packed because of it.
    """

    kind: str
    reason: str
    left_out: bool = False


@dataclass(frozen=True)
class ClipRecord:
    """A clip before packing.

    Attributes
    ----------
    key : str
        Name of the clip in the shards.
    label : int
        Index of its class.
    split : str
        ``fold1``, ``train``, ...; :data:`NO_SPLIT` for a clip that no list tests.
    source : str
        Name of the clip in the data set, as :func:`~dfer_dist.data.sources.names.printable` text.
    media : Path or tuple of Path
        The folder of its frames, its video (the suffix may be absent), an image that is its only
        frame, or its frame files in temporal order. Not checked for existence before packing.
    listed_frames : int or None
        Number of frames that its list declares.
    faults : tuple of Fault
        Faults found in the lists.
    group : str
        Of clips that should not be both trained on and tested, as those of an actor; may be empty.
    votes : tuple of float
        Of annotators for each class, in label order, as counts or weights; may be empty.
    labels : tuple of int
        All classes of a clip that has several, ascending; may be empty.
    start, end : float or None
        The part of a video that is the clip, seconds; None for its first or last frame.
    """

    key: str
    label: int
    split: str
    source: str
    media: tuple[Path, ...] | Path
    listed_frames: int | None = None
    faults: tuple[Fault, ...] = ()
    group: str = ""
    votes: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    start: float | None = None
    end: float | None = None


_NOT_PLACED = Path()


def listed_clip(
    source: str, label: int, frames: int | None = None, split: str = NO_SPLIT
) -> ClipRecord:
    """Return the clip of a line of a list, which has no key yet and whose media is not known."""
    return ClipRecord("", label, split, source, _NOT_PLACED, frames)


@dataclass(frozen=True)
class Listing:
    """A data set before packing.

    Attributes
    ----------
    name : str
    classes : tuple of str
        In label order.
    records : list of ClipRecord
    folders : tuple of Path
        Where lists and clips were found.
    unread : Mapping of str to int
        What looks like data and is not read, by kind, such as ``.wav files``. Without files in the
        folders of clips, which are counted when these are read.
    notes : tuple of str
        What was chosen among several possibilities, for the user.
    """

    name: str
    classes: tuple[str, ...]
    records: list[ClipRecord]
    folders: tuple[Path, ...]
    unread: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def canonical_class(name: str) -> str | None:
    """Return the class that a name or adjective means in any case (``Happy``: happiness)."""
    name = name.strip().lower()
    name = _CLASS_OF_ADJECTIVE.get(name, name)
    return name if name in ELEVEN else None


def find_media(path: Path) -> Path | None:
    """Return the folder of frames at a clip's path, else its video, else None.

    The suffix of the video may be absent from the path, or another. File system and path may write
    the same name in other bytes: see :func:`~dfer_dist.data.sources.names.plain_name`.
    """
    if path.is_dir() or (path.is_file() and is_video(path)):
        return path
    usual = (path.with_name(path.name + suffix) for suffix in VIDEO_SUFFIXES[:5])
    video = next((video for video in usual if video.is_file()), None)
    if video is not None or not path.parent.is_dir():
        return video
    siblings = _entries_by_name(path.parent, path.parent.stat().st_mtime_ns)
    names = [path.name]
    if path.suffix.lower() in VIDEO_SUFFIXES:
        names.append(path.stem)
    entries = (
        path.parent / entry for name in names for entry in siblings.get(plain_name(name), [])
    )
    return next((entry for entry in entries if entry.is_dir() or is_video(entry)), None)


@lru_cache(maxsize=4)
def _entries_by_name(folder: Path, _mtime: int) -> Mapping[str, list[str]]:
    """Return the files and folders of a folder by name, and files by name without suffix too."""
    entries: dict[str, list[str]] = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = plain_name(entry.name)
        entries[name].append(entry.name)
        stem, suffix = os.path.splitext(name)
        if suffix and not is_system(name) and entry.is_file():
            entries[stem].append(entry.name)
    return entries


@dataclass(frozen=True)
class ClipFiles:
    """What there is of a clip: frame files in temporal order, or a video.

    ``unread`` counts by kind what else is in the folder of the frames.
    """

    frames: tuple[Path, ...] = ()
    video: Path | None = None
    unread: Mapping[str, int] = field(default_factory=dict)


def find_clip(record: ClipRecord) -> ClipFiles | None:
    """Return the files of a clip, None if neither its folder nor its video exists."""
    if isinstance(record.media, tuple):
        return ClipFiles(record.media) if record.media else None
    if record.media.suffix.lower() in IMAGE_SUFFIXES and record.media.is_file():
        return ClipFiles((record.media,))
    media = find_media(record.media)
    if media is None:
        return None
    if not media.is_dir():
        return ClipFiles(video=media)
    frames, unread = _list_folder(media)
    return ClipFiles(tuple(frames), unread=unread)


def clip_files(record: ClipRecord) -> tuple[Path, ...]:
    """Return the frame files of a clip in temporal order, or its video; empty if there is none."""
    found = find_clip(record) or ClipFiles()
    return found.frames if found.video is None else (found.video,)


def unread_kind(entry: os.DirEntry[str]) -> str:
    """Return what a file or folder that is not read is, in the plural: ``.wav files``."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.is_dir():
        return "folders"
    if not suffix:
        return "files without a suffix"
    return f"{suffix} files"


def unlisted_kind(entry: os.DirEntry[str]) -> str:
    """Return :func:`unread_kind` of what is next to listed clips: ``folders in no list``."""
    return unread_kind(entry) + " in no list" * entry.is_dir()


def list_frames(folder: Path) -> list[Path]:
    """Return the JPEG files of a folder in temporal order, or else those of another kind."""
    return _list_folder(folder)[0]


def _list_folder(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return :func:`list_frames`, and how much else there is by kind."""
    entries = [entry for entry in os.scandir(folder) if not is_system(entry.name)]
    names = set(_choose_frames([entry.name for entry in entries]))
    unread = Counter[str]()
    if len(names) < len(entries):
        unread.update(unread_kind(entry) for entry in entries if entry.name not in names)
    return sort_frames(folder / name for name in names), unread


def _choose_frames(names: list[str]) -> list[str]:
    """Return the names of the images of the first kind that there are."""
    for suffixes in IMAGE_KINDS:
        frames = [name for name in names if name.lower().endswith(suffixes)]
        if frames:
            return frames
    return []
