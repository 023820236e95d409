"""Load a clip as the JPEGs that are packed, in bounded memory.

JPEG frames are copied byte for byte, unless another size is requested or their metadata turns them.
Other images, as the PNGs of MAFW, and frames of videos are encoded as JPEGs of quality 95 without
chroma subsampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.data.faces.crop import FACE_SIZE, MIN_FACE_FRACTION, find_face
from dfer_dist.data.shards.frame_buffer import FrameBuffer
from dfer_dist.data.shards.sidecars import array_bytes
from dfer_dist.data.sources.frame_order import find_sequences
from dfer_dist.data.sources.records import ClipRecord, Fault, find_clip
from dfer_dist.data.video.decode import DamagedVideo, UnsupportedVideo, Video
from dfer_dist.data.video.image import decode_image

# Encoding a photograph with it changes pixels by about one grey level.
_JPEG_QUALITY = 95


@dataclass
class LoadedClip:
    """The frames of a clip.

    Attributes
    ----------
    jpegs : FrameBuffer
        In temporal order. Close it.
    num_encoded : int
        How many of these were encoded here instead of copied.
    num_dropped : int
        How many more were damaged.
    faults : list of Fault
    landmarks : dict of bytes, optional
        Landmarks by member name, if the frames are face crops.
    unread : Mapping of str to int
        What else is in the folder of the frames, by kind.
    """

    jpegs: FrameBuffer = field(default_factory=FrameBuffer)
    num_encoded: int = 0
    num_dropped: int = 0
    faults: list[Fault] = field(default_factory=list)
    landmarks: dict[str, bytes] | None = None
    unread: Mapping[str, int] = field(default_factory=dict)

    def leave_out(self, kind: str, reason: str) -> LoadedClip:
        """Add a fault because of which the clip is not packed; return the clip."""
        self.faults.append(Fault(kind, reason, left_out=True))
        return self


def load_clip(
    record: ClipRecord,
    size: int | None = None,
    faces: bool = False,
    max_bad_frames: float | None = None,
    folder: Path | None = None,
) -> LoadedClip:
    """Load the frames of a clip, and decode each of them to find the ones that are damaged.

    A clip is marked as left out if it is missing, nothing of it can be decoded, or its frames
    differ in size. It is kept if it has fewer frames than listed. Frames that cannot be decoded
    are dropped, if they are few enough.

    Parameters
    ----------
    record : ClipRecord
    size : int, optional
        Resize each frame to ``size`` x ``size`` pixels, with an antialiased bicubic filter. Frames
        of that size stay as they are.
    faces : bool
        Return aligned crops of the face, which needs a video of the clip.
    max_bad_frames : float, optional
        Percentage of the frames that may be damaged. By default all frame files but one, and no
        frame of a video.
    folder : Path, optional
        For a temporary file of many frames.
    """
    clip = LoadedClip(FrameBuffer(folder))
    found = find_clip(record)
    if found is None:
        return clip.leave_out("missing", "neither its folder nor its video exists")
    clip.unread = found.unread
    if found.video is not None:
        _load_video(clip, Video(found.video, max_bad_frames or 0), size, faces)
        return clip
    if not found.frames:
        reason = "its folder holds no image of a known kind"
        unread = ", ".join(f"{count} {kind}" for kind, count in clip.unread.items())
        return clip.leave_out("no frames", f"{reason}, but {unread}" if unread else reason)
    if faces:
        return clip.leave_out("no video", "it has only frames: faces are detected in videos")
    sequences = find_sequences(found.frames)
    if sequences:
        names = ", ".join(file.name for file in sequences[:3])
        reason = f"by their names its frames are {len(sequences)} sequences, as of several faces"
        hint = "move each into a folder of its own, or number all frames in one sequence"
        return clip.leave_out("several sequences", f"{reason}: {names}; {hint}")
    _load_frames(clip, found.frames, size)
    _check_counts(clip, len(found.frames), record.listed_frames, max_bad_frames)
    return clip


def encode_frame(pixels: np.ndarray) -> bytes:
    """Encode a frame, uint8 [H, W, 3], as the JPEG that is packed."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _JPEG_QUALITY, "RGB", "444")


def _load_video(clip: LoadedClip, video: Video, size: int | None, faces: bool) -> None:
    frames: Iterable[np.ndarray] = video
    name = video.path.name
    try:
        if faces:
            face = find_face(video, size or FACE_SIZE)
            if face.fraction < MIN_FACE_FRACTION:
                reason = f"the face is in {face.found.sum()} of {len(face.found)} frames of {name}"
                clip.leave_out("no face", f"{reason}, at least half are needed")
                return
            frames = face.crops(video)
            clip.landmarks = {
                "landmarks.npy": array_bytes(face.landmarks),
                "found.npy": array_bytes(face.found),
            }
        elif size is not None:
            frames = (_resize(frame, size) for frame in video)
        for frame in frames:
            clip.jpegs.append(encode_frame(frame))
    except UnsupportedVideo as e:
        clip.leave_out(e.kind, f"{name}: {e.reason}")
        return
    except DamagedVideo as e:
        # left out: the remaining frames may not show the expression of the label
        hint = " (see --max-bad-frames)" if e.frames else ""
        clip.leave_out(e.kind, f"{name}: {e.reason}; {e.frames} frames decoded{hint}")
        return
    clip.num_encoded = len(clip.jpegs)
    clip.num_dropped = video.num_bad
    if video.num_bad:
        reason = f"{name}: damaged frames dropped: {video.num_bad} ({video.fault})"
        clip.faults.append(Fault(DamagedVideo.kind, reason))


def _load_frames(clip: LoadedClip, files: tuple[Path, ...], size: int | None) -> None:
    first: tuple[int, int] | None = None
    for file in files:
        try:
            data = file.read_bytes()
            jpeg, (height, width) = _load_frame(data, size)
        except (ValueError, OSError) as e:
            reason = f"{file.name} cannot be decoded: {' '.join(str(e).split())}"
            clip.faults.append(Fault("unreadable frame", reason))
            clip.num_dropped += 1
            continue
        first = first or (height, width)
        if (height, width) != first:
            reason = f"{file.name} has {width} x {height} pixels, the frames before it "
            clip.leave_out("sizes differ", f"{reason}{first[1]} x {first[0]} (see --resize)")
            return
        clip.jpegs.append(jpeg)
        clip.num_encoded += jpeg is not data
    if not clip.jpegs:
        clip.leave_out("no frames", f"no frame can be decoded; {clip.faults[0].reason}")


def _check_counts(
    clip: LoadedClip, found: int, listed: int | None, max_bad_frames: float | None
) -> None:
    if max_bad_frames is not None and 100 * clip.num_dropped > max_bad_frames * found:
        reason = f"{clip.num_dropped} of {found} frames cannot be decoded"
        clip.leave_out("too many bad frames", f"{reason} (see --max-bad-frames)")
    if listed is not None and found < listed:
        reason = f"{found} frames exist, {listed} are listed"
        clip.faults.append(Fault("fewer frames", reason))


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
