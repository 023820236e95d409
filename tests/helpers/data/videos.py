"""Make videos: a portrait moved by known transforms over a pattern, encoded with PyAV.

``python tests/helpers/data/videos.py FILE`` writes one. The portrait is NASA's of the astronaut
Eileen Collins (public domain), from scikit-image.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from skimage import data

from dfer_dist.data.faces.alignment import FACE
from dfer_dist.data.faces.crop import FACE_SIZE

# point between the eyes, and left, top, right and bottom of the head, in the portrait
EYES = np.array([225.0, 103.5])
HEAD = (130, 0, 320, 225)

# where alignment puts the point between the eyes in a crop
EYES_IN_CROP = np.array([(FACE_SIZE - 1) / 2, FACE.height * FACE_SIZE - 0.5])


@dataclass(frozen=True)
class Pose:
    """Position of the portrait in a frame: point between the eyes, scale, degrees clockwise."""

    x: float
    y: float
    scale: float = 1.0
    degrees: float = 0.0

    def matrix(self) -> np.ndarray:
        """Return the map from the portrait to the frame, float64 [2, 3]."""
        angle = math.radians(self.degrees)
        c, s = self.scale * math.cos(angle), self.scale * math.sin(angle)
        linear = np.array([[c, -s], [s, c]])
        return np.column_stack([linear, [self.x, self.y] - linear @ EYES])


def draw(
    poses: Iterable[list[Pose]], width: int = 640, height: int = 360, noise: float = 4.0
) -> Iterator[np.ndarray]:
    """Yield frames, uint8 [height, width, 3], from lists of heads, the last one in front."""
    rng = np.random.default_rng(0)
    shape = (height // 20 + 1, width // 20 + 1, 1)
    tiles = rng.integers(90, 150, shape, dtype=np.uint8).repeat(3, 2)
    background = Image.fromarray(tiles.repeat(20, 0).repeat(20, 1)[:height, :width])
    portrait = Image.fromarray(data.astronaut())
    mask = Image.new("L", portrait.size)
    mask.paste(255, HEAD)
    for heads in poses:
        image = background.copy()
        for head in heads:
            forward = np.vstack([head.matrix(), [0, 0, 1]])
            back = tuple(np.linalg.inv(forward)[:2].ravel().tolist())
            face, inside = (
                layer.transform(
                    (width, height), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC
                )
                for layer in (portrait, mask)
            )
            image.paste(face, (0, 0), inside)
        noisy = np.asarray(image) + rng.normal(0, noise, (height, width, 1))
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def encode(
    file: Path,
    frames: Iterable[np.ndarray],
    times: list[int] | None = None,
    rotation: float | None = None,
    mirror: bool = False,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gop_size: int | None = None,
) -> Path:
    """Write a video of 25 frames per second, or at ``times`` (ms).

    ``rotation`` (degrees) and ``mirror`` become its display matrix.
    """
    with av.open(str(file), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt = "yuv420p"
        if gop_size is not None:
            stream.codec_context.gop_size = gop_size
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirror)
        for i, image in enumerate(frames):
            if not i:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image)
            frame.time_base, frame.pts = Fraction(1, 25), i
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def write_planes(file: Path, pix_fmt: str, planes: list[int], **colors: int) -> Path:
    """Write a video of two frames of one colour without loss.

    ``planes`` are the values of each plane, ``colors`` attributes of the codec.
    """
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, pix_fmt
        for name, value in colors.items():
            setattr(stream.codec_context, name, value)
        for i in range(2):
            frame = av.VideoFrame(32, 16, pix_fmt)
            for name, value in colors.items():
                setattr(frame, name, value)
            for plane, value in zip(frame.planes, planes, strict=True):
                dtype = np.uint16 if pix_fmt.endswith("le") else np.uint8
                plane.update(np.full(plane.buffer_size // dtype().itemsize, value, dtype))
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def damage_frames(file: Path, numbers: list[int]) -> None:
    """Flip bytes in the middle of some frames."""
    with av.open(str(file)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(file.read_bytes())
    for number in numbers:
        start, size = packets[number]
        for i in range(start + size // 2, start + size // 2 + 20):
            data[i] ^= 0x55
    file.write_bytes(data)


def moving_head(frames: int = 50) -> list[Pose]:
    """Return the poses of a head that crosses the image, tilts and comes nearer."""
    t = np.linspace(0, 1, frames)
    return [
        Pose(
            200 + 240 * a, 150 + 40 * math.sin(5 * a), 0.9 + 0.5 * a, 30 * math.sin(2 * math.pi * a)
        )
        for a in t.tolist()
    ]


def two_heads(frames: int = 50) -> list[list[Pose]]:
    """Return :func:`moving_head`, absent for a quarter of the time, and a small constant head."""
    absent = range(frames * 2 // 5 + 2, frames * 2 // 5 + 2 + frames // 4)
    return [
        [Pose(570, 70, 0.45), *([] if t in absent else [head])]
        for t, head in enumerate(moving_head(frames))
    ]


if __name__ == "__main__":
    encode(Path(sys.argv[1]), draw(two_heads()))
