"""What lies at a clip's path, turned into the JPEGs that are packed.

Frames that are JPEGs already are copied byte for byte, unless another size is asked for. PNG frames, as in MAFW, become JPEGs of
quality 95 without chroma subsampling, and so do frames of films.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.data.sources.records import VIDEO_SUFFIXES, ClipRecord, Fault, find_media

QUALITY = 95  # of JPEGs made here: of a photograph they differ by about one grey level

_JPEGS, _PNGS = (".jpg", ".jpeg"), (".png",)
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass
class ClipFrames:
    """A clip's JPEGs in order of time, how many of them are no copies, its landmarks (members of the extra), what is wrong with it."""

    jpegs: list[bytes] = field(default_factory=list)
    encoded: int = 0
    faults: list[Fault] = field(default_factory=list)
    landmarks: dict[str, bytes] | None = None

    @property
    def left_out(self) -> bool:
        return any(fault.left_out for fault in self.faults)


def clip_files(record: ClipRecord) -> tuple[Path, ...]:
    """A clip's files: its frames in order of time, or its film alone; none if nothing is there.

    Where a folder holds JPEGs, only they are its frames; otherwise its PNGs are.
    """
    if isinstance(record.media, tuple):
        return record.media
    place = find_media(record.media)
    if place is None or not place.is_dir():
        return (place,) if place else ()
    names = [entry.name for entry in os.scandir(place) if not entry.name.startswith(".")]
    for suffixes in (_JPEGS, _PNGS):
        frames = [name for name in names if name.lower().endswith(suffixes)]
        if frames:
            return tuple(place / name for name in sorted(frames, key=by_number))
    return ()


def file_sizes(record: ClipRecord) -> list[tuple[str, int]]:
    """Name and bytes of each file of a clip, which tell without reading whether it is still the same; -1 for a broken link."""
    return [(file.name, _size(file)) for file in clip_files(record)]


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return -1


def load_frames(record: ClipRecord, size: int | None = None, faces: bool = False) -> ClipFrames:
    """Read a clip. Each frame is decoded, as training will: better to hear of a bad one now than then.

    A clip that is not there, or of which nothing can be decoded, or whose frames differ in size, is marked as left out. One with
    fewer frames than listed is kept, and so is one with files of frames that cannot be decoded, without them.

    Parameters
    ----------
    record : ClipRecord
        Whose ``media`` to read.
    size : int, optional
        Make each frame ``size`` x ``size`` pixels, with an antialiased bicubic filter; those that are so stay as they are.
    faces : bool
        Take aligned crops of the face, which needs the clip's film.
    """
    clip, files = ClipFrames(), clip_files(record)
    if not files:
        there = isinstance(record.media, Path) and record.media.is_dir()
        kind, reason = (
            ("no frames", "its folder holds no JPEG or PNG")
            if there
            else ("missing", "neither folder nor film is there")
        )
        clip.faults.append(Fault(kind, reason, True))
    elif files[0].suffix.lower() in VIDEO_SUFFIXES:
        _load_video(clip, files[0], size, faces)
    elif faces:
        clip.faults.append(
            Fault("no film", "only frames are there: faces are looked for in films", True)
        )
    else:
        _load_files(clip, files, size)
        if record.listed_frames is not None and len(files) < record.listed_frames:
            clip.faults.append(
                Fault(
                    "fewer frames",
                    f"{len(files)} frames are there, {record.listed_frames} are listed",
                )
            )
    return clip


def _load_video(clip: ClipFrames, file: Path, size: int | None, faces: bool) -> None:
    from dfer_dist.data.packing.video_frames import (  # dlib and ffmpeg's libraries, for films only
        damage,
        read_video,
    )
    from dfer_dist.data.video.decode import DamagedVideo

    video = read_video(file, size, faces)
    clip.landmarks = video.landmarks
    try:
        clip.faults += [video.fault] if video.fault else []
        clip.jpegs = [encode_frame(frame) for frame in video.frames]
    except DamagedVideo as e:
        clip.faults.append(damage(e))
    clip.encoded = len(clip.jpegs)


def _load_files(clip: ClipFrames, files: tuple[Path, ...], size: int | None) -> None:
    first: tuple[int, int] | None = None
    for path in files:
        try:
            jpeg, shape, copied = _load_frame(path.read_bytes(), size)
        except (ValueError, OSError) as e:
            words = " ".join(
                str(e).split()
            )  # Pillow names objects by address, which differs from run to run
            clip.faults.append(
                Fault(
                    "unreadable frame",
                    f"{path.name} cannot be decoded: {re.sub(r' <.*>', '', words)}",
                )
            )
            continue
        first = first or shape
        if shape != first:
            reason = f"{path.name} has {shape[1]} x {shape[0]} pixels, the frames before it {first[1]} x {first[0]} (see --resize)"
            clip.faults.append(Fault("sizes differ", reason, True))
            return
        clip.jpegs.append(jpeg)
        clip.encoded += not copied
    if not clip.jpegs:
        clip.faults.append(Fault("no frames", "no frame can be decoded", True))


def _load_frame(data: bytes, size: int | None) -> tuple[bytes, tuple[int, int], bool]:
    """A frame's JPEG bytes, its height and width, and whether the bytes are those of the file."""
    if data.startswith(_PNG_MAGIC):  # told by content: a PNG may be named .jpg
        try:
            with Image.open(io.BytesIO(data)) as png:
                pixels = np.asarray(png.convert("RGB"))
        except (
            Exception
        ) as e:  # of a damaged PNG Pillow raises SyntaxError, struct.error, zlib.error and more
            raise ValueError(f"{type(e).__name__}: {e}") from e
    else:
        pixels = simplejpeg.decode_jpeg(data)
        if size is None or pixels.shape[:2] == (size, size):
            return data, pixels.shape[:2], True
    if size is not None and pixels.shape[:2] != (size, size):
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    return encode_frame(pixels), pixels.shape[:2], False


def encode_frame(pixels: np.ndarray) -> bytes:
    """A frame, uint8 [H, W, 3], as the JPEG that is packed of it."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "444")


def by_number(name: str) -> tuple[list[int], str]:
    """Frames in order of time: 2.jpg comes before 10.jpg."""
    return [int(n) for n in re.findall(r"[0-9]+", name.rpartition(".")[0])], name
