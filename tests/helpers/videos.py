"""Films made for tests: a real portrait moved by known transforms over a pattern, encoded with PyAV.

``python tests/helpers/videos.py FILE`` writes one to look at. The portrait is NASA's of the astronaut Eileen Collins (public domain), as
scikit-image ships it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from skimage import data

EYES = np.array([225.0, 103.5])  # between the eyes, in the portrait
HEAD = (130, 0, 320, 225)  # left, top, right, bottom of the head in the portrait


@dataclass(frozen=True)
class Pose:
    """Where the portrait stands in a frame: the point between the eyes, scale, and degrees clockwise."""

    x: float
    y: float
    scale: float = 1.0
    degrees: float = 0.0

    def matrix(self) -> np.ndarray:
        """From the portrait to the frame, float64 [2, 3]."""
        c, s = (
            self.scale * math.cos(math.radians(self.degrees)),
            self.scale * math.sin(math.radians(self.degrees)),
        )
        turn = np.array([[c, -s], [s, c]])
        return np.column_stack([turn, [self.x, self.y] - turn @ EYES])


def draw(
    poses: Iterable[list[Pose]], width: int = 640, height: int = 360, noise: float = 4.0
) -> Iterator[np.ndarray]:
    """Frames uint8 [height, width, 3]; a frame is a list of heads, the last one in front."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(90, 150, (height // 20 + 1, width // 20 + 1, 1), dtype=np.uint8).repeat(
        3, 2
    )
    ground = Image.fromarray(tiles.repeat(20, 0).repeat(20, 1)[:height, :width])
    portrait = Image.fromarray(data.astronaut())
    mask = Image.new("L", portrait.size)
    mask.paste(255, HEAD)
    for heads in poses:
        image = ground.copy()
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
    turn: float | None = None,
    mirror: bool = False,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a film of 25 frames a second, or at ``times`` (ms). ``turn`` (degrees) and ``mirror`` go to its display matrix."""
    with av.open(str(file), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            stream.set_display_rotation(turn, hflip=mirror)
        for i, image in enumerate(frames):
            if not i:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image)
            frame.time_base, frame.pts = (
                (Fraction(1, 25), i) if times is None else (Fraction(1, 1000), times[i])
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def swing(frames: int = 50) -> list[Pose]:
    """A head that crosses the picture, nods sideways and comes nearer."""
    t = np.linspace(0, 1, frames)
    return [
        Pose(
            200 + 240 * a, 150 + 40 * math.sin(5 * a), 0.9 + 0.5 * a, 30 * math.sin(2 * math.pi * a)
        )
        for a in t.tolist()
    ]


def busy(frames: int = 50) -> list[list[Pose]]:
    """:func:`swing`, away for a quarter of the time, with a smaller head in the corner all the time."""
    away = range(frames * 2 // 5 + 2, frames * 2 // 5 + 2 + frames // 4)
    return [
        [Pose(570, 70, 0.45), *([] if t in away else [head])]
        for t, head in enumerate(swing(frames))
    ]


if __name__ == "__main__":
    encode(Path(sys.argv[1]), draw(busy()))
