"""What a prediction over time reads: a video, a folder of frames, or an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from dfer_dist.data.packing.load_clip import encode_frame
from dfer_dist.data.sources.frame_order import find_sequences
from dfer_dist.data.sources.records import list_frames
from dfer_dist.data.video.decode import Video
from dfer_dist.data.video.image import LFS_FAULT, LFS_START, decode_image, is_still_image
from dfer_dist.utils.errors import UserError

FPS = 25.0  # of frames without a video
_WANTED = "give a video, an image, or the folder of a clip's frames"
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Frames:
    """Image files as an iterable of frames, like a :class:`~dfer_dist.data.video.decode.Video`.

    Each iteration decodes the files again. Frames are uint8 arrays [H, W, 3], RGB, with the pixels
    that ``dfer pack`` would pack.

    Attributes
    ----------
    files : tuple of Path
        In temporal order.
    fps : float
        Frames a second.
    """

    files: tuple[Path, ...]
    fps: float

    def interval(self) -> float:
        """Return the seconds between two frames."""
        return 1 / self.fps

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames.

        Raises
        ------
        UserError
            If one cannot be decoded.
        """
        for file in self.files:
            try:
                pixels, is_jpeg = decode_image(file.read_bytes())
            except (ValueError, OSError) as e:
                text = " ".join(str(e).split())
                raise UserError(
                    f"{file} cannot be decoded ({text}): copy it again or convert it"
                ) from e
            yield pixels if is_jpeg else through_jpeg(pixels)


def open_frames(path: Path, fps: float) -> Video | Frames:
    """Return the frames of a video, a folder of frames, or an image.

    Raises
    ------
    UserError
        If ``path`` is missing or obviously none of these, or a folder has frames of several faces.
    """
    if path.is_dir():
        return Frames(_files_of(path), fps)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if is_still_image(path):
        return Frames((path,), fps)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise UserError(f"{path} is empty: copy it again")
    if head.startswith(LFS_START):
        raise UserError(f"{path} is {LFS_FAULT}")
    if _is_text(head):
        raise UserError(f"{path} is a text file: {_WANTED}")
    return Video(path)


def _files_of(folder: Path) -> tuple[Path, ...]:
    files = list_frames(folder)
    if not files:
        raise UserError(f"the folder {folder} holds no image of a known kind: {_WANTED}")
    if sequences := find_sequences(files):
        names = ", ".join(file.name for file in sequences[:3])
        raise UserError(
            f"the frames in {folder} are {len(sequences)} sequences, such as those of several "
            f"faces ({names}): move each into a folder of its own"
        )
    return tuple(files)


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are text, which no video's are.

    ffmpeg reads any text as a video of one frame.
    """
    # The last character may be cut.
    text = head.decode("utf-8", errors="replace").rstrip("\ufffd")
    return not set(text) & {"\0", "\ufffd"}


def through_jpeg(frame: np.ndarray) -> np.ndarray:
    """Encode and decode a frame, uint8 [H, W, 3], as ``dfer pack`` and the loader do."""
    return simplejpeg.decode_jpeg(encode_frame(frame), fastdct=False, fastupsample=False)
