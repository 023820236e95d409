"""Load a clip as the JPEGs that are packed.

JPEG frames are copied byte for byte, unless another size is requested or their metadata turns them.
Other images, as the PNGs of MAFW, and frames of videos are encoded as JPEGs of quality 95 without
chroma subsampling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.data.faces.crop import FACE_SIZE, MIN_FACE_FRACTION, find_face
from dfer_dist.data.shards.sidecars import array_bytes
from dfer_dist.data.sources.frame_order import find_sequences
from dfer_dist.data.sources.records import VIDEO_SUFFIXES, ClipRecord, Fault, clip_files
from dfer_dist.data.video.decode import DamagedVideo, Video
from dfer_dist.data.video.image import decode_image

# Encoding a photograph with it changes pixels by about one grey level.
_JPEG_QUALITY = 95


@dataclass
class LoadedClip:
    """The frames of a clip.

    Attributes
    ----------
    jpegs : list of bytes
        In temporal order.
    num_encoded : int
        How many of these were encoded here instead of copied.
    faults : list of Fault
    landmarks : dict of bytes, optional
        Landmarks by member name, if the frames are face crops.
    """

    jpegs: list[bytes] = field(default_factory=list)
    num_encoded: int = 0
    faults: list[Fault] = field(default_factory=list)
    landmarks: dict[str, bytes] | None = None


def load_clip(record: ClipRecord, size: int | None = None, faces: bool = False) -> LoadedClip:
    """Load the frames of a clip, and decode each of them to find the ones that are damaged.

    A clip is marked as left out if it is missing, nothing of it can be decoded, or its frames
    differ in size. It is kept if it has fewer frames than listed, or frame files that cannot be
    decoded, which are skipped.

    Parameters
    ----------
    record : ClipRecord
    size : int, optional
        Resize each frame to ``size`` x ``size`` pixels, with an antialiased bicubic filter. Frames
        of that size stay as they are.
    faces : bool
        Return aligned crops of the face, which needs a video of the clip.
    """
    files = clip_files(record)
    if not files:
        fault = Fault("missing", "neither its folder nor its video exists", True)
        if isinstance(record.media, Path) and record.media.is_dir():
            fault = Fault("no frames", "its folder holds no image of a known kind", True)
        return LoadedClip(faults=[fault])
    if files[0].suffix.lower() in VIDEO_SUFFIXES:
        return _load_video(files[0], size, faces)
    if faces:
        fault = Fault("no video", "it has only frames: faces are detected in videos", True)
        return LoadedClip(faults=[fault])
    sequences = find_sequences(files)
    if sequences:
        names = ", ".join(file.name for file in sequences[:3])
        reason = f"its frames are {len(sequences)} sequences, such as those of several faces: "
        reason += f"{names}; move each into a folder of its own"
        return LoadedClip(faults=[Fault("several sequences", reason, True)])
    clip = _load_frames(files, size)
    if record.listed_frames is not None and len(files) < record.listed_frames:
        reason = f"{len(files)} frames exist, {record.listed_frames} are listed"
        clip.faults.append(Fault("fewer frames", reason))
    return clip


def encode_frame(pixels: np.ndarray) -> bytes:
    """Encode a frame, uint8 [H, W, 3], as the JPEG that is packed."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _JPEG_QUALITY, "RGB", "444")


def _load_video(file: Path, size: int | None, faces: bool) -> LoadedClip:
    clip, video = LoadedClip(), Video(file)
    frames: Iterable[np.ndarray] = video
    try:
        if faces:
            face = find_face(video, size or FACE_SIZE)
            if face.fraction < MIN_FACE_FRACTION:
                reason = (
                    f"the face is in {face.found.sum()} of {len(face.found)} frames of "
                    f"{file.name}, at least half are needed"
                )
                return LoadedClip(faults=[Fault("no face", reason, True)])
            frames = face.crops(video)
            clip.landmarks = {
                "landmarks.npy": array_bytes(face.landmarks),
                "found.npy": array_bytes(face.found),
            }
        elif size is not None:
            frames = (_resize(frame, size) for frame in video)
        clip.jpegs = [encode_frame(frame) for frame in frames]
    except DamagedVideo as e:
        # left out: the remaining frames may not show the expression of the label
        reason = f"{file.name}: {e.reason}; {e.frames} frames decoded"
        clip.faults.append(Fault("damaged video", reason, True))
    clip.num_encoded = len(clip.jpegs)
    return clip


def _load_frames(files: tuple[Path, ...], size: int | None) -> LoadedClip:
    clip = LoadedClip()
    first: tuple[int, int] | None = None
    for file in files:
        try:
            data = file.read_bytes()
            jpeg, (height, width) = _load_frame(data, size)
        except (ValueError, OSError) as e:
            reason = f"{file.name} cannot be decoded: {_stable_message(e)}"
            clip.faults.append(Fault("unreadable frame", reason))
            continue
        first = first or (height, width)
        if (height, width) != first:
            reason = (
                f"{file.name} has {width} x {height} pixels, the frames before it "
                f"{first[1]} x {first[0]} (see --resize)"
            )
            clip.faults.append(Fault("sizes differ", reason, True))
            return clip
        clip.jpegs.append(jpeg)
        clip.num_encoded += jpeg is not data
    if not clip.jpegs:
        clip.faults.append(Fault("no frames", "no frame can be decoded", True))
    return clip


def _stable_message(error: Exception) -> str:
    """Return an error's message without the addresses in it, which differ from run to run."""
    return re.sub(r" <.*>", "", " ".join(str(error).split()))


def _load_frame(data: bytes, size: int | None) -> tuple[bytes, tuple[int, int]]:
    """Return a frame as a JPEG, ``data`` itself if it can be copied, with its height and width."""
    pixels, is_jpeg = decode_image(data)
    shape = pixels.shape[:2]
    if is_jpeg and (size is None or shape == (size, size)):
        return data, shape
    if size is not None:
        pixels = _resize(pixels, size)
    return encode_frame(pixels), pixels.shape[:2]


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
