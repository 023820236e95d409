"""Records of clips before packing, and the class names and file types that all readers share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.sources.frame_order import sort_frames
from dfer_dist.utils.errors import UserError

SEVEN = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
ELEVEN = (*SEVEN, "contempt", "anxiety", "helplessness", "disappointment")

# class names of each data set, in label order
CLASSES = {"demo": SEVEN, "dfew": SEVEN, "mafw": ELEVEN, "ferv39k": SEVEN}

# split of clips that are in no test list, which are never packed
NO_SPLIT = "none"

# of frames; a clip's frames have one of these kinds, the first that its folder holds
IMAGE_SUFFIXES = (
    (".jpg", ".jpeg"),
    (".png",),
    (".bmp",),
    (".webp",),
    (".tif", ".tiff"),
    (".ppm", ".pgm", ".pnm"),
    (".jp2",),
)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")

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

# the name of a tar member has at most 100 bytes, its suffix included
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")


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
        Name of the clip in the data set.
    media : Path or tuple of Path
        The folder of its frames, its video (the suffix may be absent), or its frame files in
        temporal order. Not checked for existence before packing.
    listed_frames : int or None
        Number of frames that its list declares.
    faults : tuple of Fault
        Faults found in the lists.
    """

    key: str
    label: int
    split: str
    source: str
    media: tuple[Path, ...] | Path
    listed_frames: int | None = None
    faults: tuple[Fault, ...] = ()


def canonical_class(name: str) -> str | None:
    """Return the class that a name or adjective means in any case (``Happy``: happiness)."""
    name = name.strip().lower()
    name = _CLASS_OF_ADJECTIVE.get(name, name)
    return name if name in ELEVEN else None


def make_key(source: str) -> str:
    """Return the key of a clip in the shards.

    Raises
    ------
    UserError
        If no key can be made of the name.
    """
    key = source.strip("/").replace("/", "_")
    if not _KEY.fullmatch(key):
        raise UserError(
            f"clip '{source}' cannot be a key: use at most 90 letters, digits, - and _ "
            "(each / becomes _)"
        )
    return key


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or in GB18030 as in MAFW.

    Raises
    ------
    UserError
        If it is in neither.
    """
    data = file.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except ValueError:
            continue
    raise UserError(f"{file} is not text in UTF-8 or GB18030: convert it to UTF-8")


def find_media(path: Path) -> Path | None:
    """Return the folder of frames at a clip's path, else its video, else None."""
    if path.is_dir() or (path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()):
        return path
    videos = (path.with_name(path.name + suffix) for suffix in VIDEO_SUFFIXES)
    return next((video for video in videos if video.is_file()), None)


def clip_files(record: ClipRecord) -> tuple[Path, ...]:
    """Return the frame files of a clip in temporal order, or its video; empty if there is none."""
    if isinstance(record.media, tuple):
        return record.media
    media = find_media(record.media)
    if media is None:
        return ()
    return tuple(list_frames(media)) if media.is_dir() else (media,)


def list_frames(folder: Path) -> list[Path]:
    """Return the JPEG files of a folder in temporal order, or else those of another kind."""
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for suffixes in IMAGE_SUFFIXES:
        frames = [folder / name for name in names if name.lower().endswith(suffixes)]
        if frames:
            return sort_frames(frames)
    return []
