"""A clip's film turned into the JPEGs that are packed: its frames as they are, or the face in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dfer_dist.data.faces.crop import find_face
from dfer_dist.data.shards.sidecars import array_bytes
from dfer_dist.data.sources.records import Fault
from dfer_dist.data.video.decode import DamagedVideo, Video

SIDE = 224  # of face crops, pixels, unless another size is asked for
LEAST = 0.5  # part of the frames that must show the face


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a film to be encoded, one after the other, with their landmarks (members of the extra); or what is wrong with it."""

    frames: Iterable[np.ndarray] = ()
    landmarks: dict[str, bytes] | None = None
    fault: Fault | None = None


def read_video(file: Path, size: int | None, faces: bool) -> VideoFrames:
    """Open a film for packing.

    Parameters
    ----------
    file : Path
    size : int, optional
        Bring frames to ``size`` x ``size`` pixels; face crops have 224 by default, other frames stay as they are.
    faces : bool
        Find the face, and take aligned crops of it. A film with a face in less than half of its frames is a fault.
    """
    video = Video(file)
    if not faces:
        return VideoFrames(video if size is None else _resized(video, size))
    try:
        clip = find_face(video, size or SIDE)
    except DamagedVideo as e:
        return VideoFrames(fault=damage(e))
    if clip.share < LEAST:
        reason = f"one face is in {clip.found.sum()} of {len(clip.found)} frames of {file.name}: in at least half it must be"
        return VideoFrames(fault=Fault("no face", reason, True))
    members = {"landmarks.npy": array_bytes(clip.landmarks), "found.npy": array_bytes(clip.found)}
    return VideoFrames(clip.crops(video), members)


def damage(e: DamagedVideo) -> Fault:
    """The fault of a damaged film. It is left out: what remains of it need not show what its label says."""
    return Fault("damaged film", f"{e.file.name}: {e.reason}; {e.frames} frames decoded", True)


def _resized(frames: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for frame in frames:
        yield np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
