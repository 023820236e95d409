"""Face-parsing maps: labels of facial regions, drawn from landmarks, stored, and shown as colors.

They are the input of FineCLIPER's middle modality (Chen et al., ACM MM 2024). Labels are those of
face-parsing networks trained on CelebAMask-HQ (Lee et al., CVPR 2020), in their usual order
(:data:`LABELS`). Nine of them can be drawn from landmarks alone: skin with an estimated forehead,
brows, eyes, nose, both lips and the inner mouth. Left and right are the person's own. Points are
the 68 of iBUG 300-W as in :mod:`dfer_dist.data.faces.alignment`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw

from dfer_dist.data.video.image import open_image

# Each label with its RGB color: bright, and distinct for regions that touch.
_REGIONS = {
    "background": (0, 0, 0),
    "skin": (204, 153, 120),
    "left brow": (230, 60, 40),
    "right brow": (255, 150, 0),
    "left eye": (40, 80, 255),
    "right eye": (0, 200, 255),
    "glasses": (120, 120, 140),
    "left ear": (150, 60, 200),
    "right ear": (210, 110, 255),
    "earring": (255, 255, 120),
    "nose": (60, 200, 80),
    "inner mouth": (110, 0, 40),
    "upper lip": (255, 60, 150),
    "lower lip": (255, 150, 200),
    "neck": (140, 110, 80),
    "necklace": (200, 200, 200),
    "clothes": (60, 90, 110),
    "hair": (110, 70, 30),
    "hat": (0, 110, 90),
}
LABELS: tuple[str, ...] = tuple(_REGIONS)
PALETTE = np.array(list(_REGIONS.values()), np.uint8)

# In the order of LABELS.
SKIN, LEFT_BROW, RIGHT_BROW, LEFT_EYE, RIGHT_EYE = range(1, 6)
NOSE, MOUTH, UPPER_LIP, LOWER_LIP = range(10, 14)

# The palette of flipped images, in which left and right are exchanged.
_FLIPPED_PALETTE = PALETTE.copy()
for _left, _right in ((LEFT_BROW, RIGHT_BROW), (LEFT_EYE, RIGHT_EYE), (7, 8)):
    _FLIPPED_PALETTE[[_left, _right]] = PALETTE[[_right, _left]]

# Height of a brow in distances between the eyes; its landmarks are on the upper edge.
_BROW_HEIGHT = 0.22

# Height of the forehead above the ears, in half widths of the face.
_FOREHEAD_HEIGHT = 0.9


def colorize(
    labels: np.ndarray, flipped: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """Return labels, uint8 [...], as colors, uint8 [..., 3].

    Parameters
    ----------
    labels : uint8 array [...]
    flipped : bool
        Exchange the colors of left and right, for an image that is flipped horizontally.
    out : uint8 array [..., 3], optional
        Where to write the colors.
    """
    palette = _FLIPPED_PALETTE if flipped else PALETTE
    # takes a third of the time of palette[labels]
    return np.take(palette, labels, axis=0, out=out, mode="clip")


def fill_missing(points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Interpolate landmarks linearly over frames without a face.

    Parameters
    ----------
    points : float32 array [T, 68, 2]
    found : bool array [T]
        Frames with a face.

    Returns
    -------
    float32 array [T, 68, 2]
        Constant before the first and after the last face; NaN if no frame has a face.
    """
    known_frames = np.flatnonzero(found)
    if len(known_frames) == len(points):
        return points
    if not len(known_frames):
        return np.full(points.shape, np.nan, np.float32)
    known = points[known_frames].reshape(len(known_frames), -1)
    columns = [np.interp(np.arange(len(points)), known_frames, column) for column in known.T]
    return np.stack(columns, 1).reshape(points.shape).astype(np.float32)


def draw_regions(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw the map of a frame from its landmarks, with regions as polygons.

    Parameters
    ----------
    points : float array [68, 2]
        Pixels, the center of the upper left one at (0, 0). The map is all background if there is
        a NaN.
    height, width : int
        Of the map, pixels.

    Returns
    -------
    uint8 array [height, width]
        Labels.
    """
    image = Image.new("L", (width, height))
    if np.isfinite(points).all():
        draw = ImageDraw.Draw(image)
        for label, polygon in _polygons(np.asarray(points, np.float64)):
            draw.polygon([(x, y) for x, y in polygon.tolist()], fill=label)
    return np.asarray(image)


def _polygons(p: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the polygons of a face with their labels, from back to front.

    The person's right is on the left of the image, and comes first in the landmarks.
    """
    right, left = p[36:42].mean(0), p[42:48].mean(0)
    down = p[27:36].mean(0) - (right + left) / 2
    down *= _BROW_HEIGHT * np.hypot(*(left - right)) / max(float(np.hypot(*down)), 1e-6)
    brows = [np.concatenate([p[a:b], p[a:b][::-1] + down]) for a, b in ((17, 22), (22, 27))]
    return [
        (SKIN, np.concatenate([p[:17], _forehead(p)])),
        (RIGHT_BROW, brows[0]),
        (LEFT_BROW, brows[1]),
        (RIGHT_EYE, p[36:42]),
        (LEFT_EYE, p[42:48]),
        (NOSE, p[[27, 31, 32, 33, 34, 35]]),
        (UPPER_LIP, p[[48, 49, 50, 51, 52, 53, 54, 64, 63, 62, 61, 60]]),
        (LOWER_LIP, p[[54, 55, 56, 57, 58, 59, 48, 60, 67, 66, 65, 64]]),
        (MOUTH, p[60:68]),
    ]


def _forehead(p: np.ndarray) -> np.ndarray:
    """Return half an ellipse over the face, from the person's left ear to the right one.

    No landmark shows where the hair begins.
    """
    middle, across = (p[0] + p[16]) / 2, (p[16] - p[0]) / 2
    up = middle - p[8]
    up *= _FOREHEAD_HEIGHT * np.hypot(*across) / max(float(np.hypot(*up)), 1e-6)
    angle = np.linspace(0, math.pi, 15)[1:-1, None]
    return middle + across * np.cos(angle) + up * np.sin(angle)


def draw_landmarks(points: np.ndarray, size: int) -> np.ndarray:
    """Draw landmarks as white dots on black.

    Parameters
    ----------
    points : float array [T, N, 2]
        Pixels of the drawn squares, the center of the upper left one at (0, 0); NaN if missing.
    size : int
        Width and height of the squares. The radius of dots is size / 112, at least one pixel.

    Returns
    -------
    uint8 array [T, size, size, 3]
    """
    radius = max(1.0, size / 112)
    steps = np.arange(-int(radius), int(radius) + 1)
    disc = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    disc = disc[(disc**2).sum(1) <= radius**2]
    shown = np.isfinite(points).all(-1)
    frame = np.broadcast_to(np.arange(len(points))[:, None], shown.shape)[shown]
    x, y = (np.rint(points[shown])[:, None] + disc).astype(np.int64).transpose(2, 0, 1)
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    out = np.zeros((len(points), size, size, 3), np.uint8)
    out[np.broadcast_to(frame[:, None], inside.shape)[inside], y[inside], x[inside]] = 255
    return out


def encode_map(labels: np.ndarray) -> bytes:
    """Encode a map, uint8 [H, W], as a PNG that contains the palette.

    Of several ones after another image viewers show the first; ``ffmpeg -f png_pipe`` reads all.
    """
    image, out = Image.fromarray(labels).convert("L"), io.BytesIO()
    image.putpalette(PALETTE.tobytes())
    image.save(out, "png")
    return out.getvalue()


def decode_maps(data: bytes, starts: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Return the labels of the ``wanted`` frames, uint8 [T, H, W], decoding each frame once.

    Raises
    ------
    ValueError
        If these are no maps of labels of one size.
    """
    frames = dict.fromkeys(wanted)
    maps = {t: read_labels(io.BytesIO(data[starts[t] : starts[t + 1]])) for t in frames}
    return np.stack([maps[frame] for frame in wanted])


def read_labels(file: IO[bytes] | Path) -> np.ndarray:
    """Read a map from an image: uint8 [H, W], each value a label.

    Raises
    ------
    ValueError
        If it is no map.
    OSError, SyntaxError
        If it is no image.
    """
    with open_image(file) as image:
        labels = np.asarray(image)
    highest = labels.max(initial=0)
    if labels.ndim != 2 or labels.dtype != np.uint8 or highest >= len(LABELS):
        raise ValueError(
            f"no map of labels 0 to {len(LABELS) - 1}, but {labels.dtype} {list(labels.shape)} "
            f"up to {highest}"
        )
    return labels
