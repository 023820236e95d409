"""Load a clip as the JPEGs that are packed, in bounded memory.

JPEG frames are copied byte for byte, unless another size is requested or their metadata turns them.
Other images, as the PNGs of MAFW, and frames of videos are encoded as JPEGs of quality 95 without
chroma subsampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.data.faces.crop import FACE_SIZE, MIN_FACE_FRACTION, FaceClip, FaceOptions, find_face
from dfer_dist.data.packing.report import NO_FACE
from dfer_dist.data.shards.frame_buffer import FrameBuffer
from dfer_dist.data.shards.sidecars import landmark_members
from dfer_dist.data.sources.frame_order import find_sequences
from dfer_dist.data.sources.records import ClipRecord, Fault, find_clip
from dfer_dist.data.video.decode import DamagedVideo, UnsupportedVideo, Video
from dfer_dist.data.video.image import decode_image

# Encoding a photograph with it changes pixels by about one grey level.
_JPEG_QUALITY = 95

# Part of the area of the crops that may be outside of the frames of a folder without a fault.
_MAX_OUTSIDE = 0.1


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
        Landmarks by member name, if faces were detected.
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
    faces: FaceOptions | None = None,
    max_bad_frames: float | None = None,
    folder: Path | None = None,
) -> LoadedClip:
    """Load the frames of a clip, and decode each of them to find the ones that are damaged.

    A clip is marked as left out if it is missing, nothing of it can be decoded, or its frames
    differ in size. It is kept if it has fewer frames than listed. Frames that cannot be decoded
    are dropped, if they are few enough.

    Parameters
    ----------
    record, size : ClipRecord, int, optional
        Each frame is resized to ``size`` x ``size`` pixels, with an antialiased bicubic filter.
        Frames of that size stay as they are.
    faces : FaceOptions, optional
        Return aligned crops of the face, ``size`` or else ``FACE_SIZE`` pixels wide.
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
        video = Video(found.video, max_bad_frames or 0, record.start, record.end)
        _load_video(clip, video, size, faces)
        return clip
    if not found.frames:
        reason = "its folder holds no image of a known kind"
        unread = ", ".join(f"{count} {kind}" for kind, count in clip.unread.items())
        return clip.leave_out("no frames", f"{reason}, but {unread}" if unread else reason)
    if record.start is not None or record.end is not None:
        return clip.leave_out("no video", "it has only frames: start and end are of videos")
    sequences = find_sequences(found.frames)
    if sequences:
        return clip.leave_out("several sequences", _describe_sequences(sequences))
    if faces:
        _load_face_frames(clip, _FrameFiles(found.frames), size or FACE_SIZE, faces)
    else:
        _load_frames(clip, found.frames, size)
    _check_counts(clip, len(found.frames), record.listed_frames, max_bad_frames)
    return clip


def encode_frame(pixels: np.ndarray) -> bytes:
    """Encode a frame, uint8 [H, W, 3], as the JPEG that is packed."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _JPEG_QUALITY, "RGB", "444")


def _load_video(
    clip: LoadedClip, video: Video, size: int | None, faces: FaceOptions | None
) -> None:
    frames: Iterable[np.ndarray] = video
    name = video.path.name
    try:
        if faces:
            size = size or FACE_SIZE
            face = _find_face(clip, video, name, size, faces)
            if face is None and not faces.keep_uncropped:
                return
            frames = face.crops(video) if face else video
        for frame in frames:
            clip.jpegs.append(encode_frame(frame if size is None else _resize(frame, size)))
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
    if faces and clip.landmarks is None:
        _add_empty_landmarks(clip)


def _find_face(
    clip: LoadedClip, frames: Iterable[np.ndarray], name: str, size: int, options: FaceOptions
) -> FaceClip | None:
    """Return the face of a clip and add its landmarks; add a fault if most frames have none."""
    face = find_face(frames, size, options.detector)
    if face.fraction < MIN_FACE_FRACTION:
        reason = f"the face is in {face.found.sum()} of {len(face.found)} frames of {name}"
        if options.keep_uncropped:
            clip.faults.append(Fault(NO_FACE, f"{reason}: its whole frames are packed"))
        else:
            hint = "see --detector and --keep-uncropped"
            clip.leave_out(NO_FACE, f"{reason}, at least half are needed ({hint})")
        return None
    clip.landmarks = landmark_members(face.landmarks, face.found)
    return face


def _add_empty_landmarks(clip: LoadedClip) -> None:
    """Add the landmarks of whole frames, in which no face was found."""
    num_frames = len(clip.jpegs)
    points = np.full((num_frames, 68, 2), np.nan, np.float32)
    clip.landmarks = landmark_members(points, np.zeros(num_frames, bool))


class _FrameFiles:
    """The frames of a folder, which can be read several times.

    Attributes
    ----------
    files : tuple of Path
    faults : dict of Fault
        By file, of those that cannot be decoded, after the first reading.
    shape : tuple of int, or None
        Height and width of the frames.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self.faults: dict[Path, Fault] = {}
        self.shape: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames that can be decoded.

        Raises
        ------
        _UnusableFrames
            If a frame has another size than those before it, or none can be decoded.
        """
        for file in self.files:
            if file in self.faults:
                continue
            try:
                pixels, _ = decode_image(file.read_bytes())
            except (ValueError, OSError) as e:
                self.faults[file] = _unreadable(file, e)
                continue
            self.shape = self.shape or pixels.shape[:2]
            if pixels.shape[:2] != self.shape:
                sizes = _describe_sizes(file, pixels.shape[:2], self.shape)
                raise _UnusableFrames("sizes differ", f"{sizes}: a face cannot be tracked in them")
            yield pixels
        if self.shape is None:
            raise _UnusableFrames("no frames", _no_frame_reason(self.faults[self.files[0]]))


class _UnusableFrames(Exception):
    """A face cannot be searched in these frames; arguments are the kind of fault and the reason."""


def _load_face_frames(
    clip: LoadedClip, frames: _FrameFiles, size: int, options: FaceOptions
) -> None:
    folder = frames.files[0].parent.name
    try:
        face = _find_face(clip, frames, f"folder {folder}", size, options)
    except _UnusableFrames as e:
        clip.leave_out(*e.args)
        return
    if face is None:
        if options.keep_uncropped:
            _load_frames(clip, frames.files, size)
            _add_empty_landmarks(clip)
        return
    for pixels in face.crops(frames):
        clip.jpegs.append(encode_frame(pixels))
    clip.num_encoded, clip.num_dropped = len(clip.jpegs), len(frames.faults)
    clip.faults += frames.faults.values()
    assert frames.shape is not None
    outside = face.fraction_outside(*frames.shape)
    if outside > _MAX_OUTSIDE:
        reason = f"{outside:.0%} of its crops are outside of its frames, and black"
        hint = "are the frames face crops already? Then omit --faces"
        clip.faults.append(Fault("crops reach outside", f"{reason}: {hint}"))


def _describe_sequences(sequences: Sequence[Path]) -> str:
    names = ", ".join(file.name for file in sequences[:3])
    reason = f"by their names its frames are {len(sequences)} sequences, as of several faces"
    hint = "move each into a folder of its own, or number all frames in one sequence"
    return f"{reason}: {names}; {hint}"


def _unreadable(file: Path, error: Exception) -> Fault:
    reason = f"{file.name} cannot be decoded: {' '.join(str(error).split())}"
    return Fault("unreadable frame", reason)


def _no_frame_reason(first: Fault) -> str:
    return f"no frame can be decoded; {first.reason}"


def _describe_sizes(file: Path, shape: tuple[int, int], first: tuple[int, int]) -> str:
    reason = f"{file.name} has {shape[1]} x {shape[0]} pixels, the frames before it "
    return f"{reason}{first[1]} x {first[0]}"


def _load_frames(clip: LoadedClip, files: tuple[Path, ...], size: int | None) -> None:
    first: tuple[int, int] | None = None
    for file in files:
        try:
            data = file.read_bytes()
            jpeg, (height, width) = _load_frame(data, size)
        except (ValueError, OSError) as e:
            clip.faults.append(_unreadable(file, e))
            clip.num_dropped += 1
            continue
        first = first or (height, width)
        if (height, width) != first:
            reason = _describe_sizes(file, (height, width), first)
            clip.leave_out("sizes differ", f"{reason} (see --resize)")
            return
        clip.jpegs.append(jpeg)
        clip.num_encoded += jpeg is not data
    if not clip.jpegs:
        clip.leave_out("no frames", _no_frame_reason(clip.faults[0]))


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
