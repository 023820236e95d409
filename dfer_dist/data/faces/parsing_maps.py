"""Pictures of a face's parts: maps of labels (face parsing) and dots (landmarks), as FineCLIPER's middle level sees them (Chen et al., ACM MM 2024).

Labels are those that face-parsing networks trained on CelebAMask-HQ (Lee et al., CVPR 2020) give, in their usual order (:data:`LABELS`). From
landmarks alone come nine of them: skin with the forehead guessed, brows, eyes, nose, both lips and the inner mouth. Left and right are then the person's own.
Points are the 68 of iBUG 300-W as in :mod:`dfer_dist.data.faces.alignment`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

LABELS: tuple[str, ...] = (
    "background",
    "skin",
    "left brow",
    "right brow",
    "left eye",
    "right eye",
    "glasses",
    "left ear",
    "right ear",
    "earring",
)
LABELS += (
    "nose",
    "inner mouth",
    "upper lip",
    "lower lip",
    "neck",
    "necklace",
    "clothes",
    "hair",
    "hat",
)
_PAIRS = ((2, 3), (4, 5), (7, 8))  # labels that change places in a mirror
SKIN, LEFT_BROW, RIGHT_BROW, LEFT_EYE, RIGHT_EYE, NOSE, MOUTH, UPPER_LIP, LOWER_LIP = (
    1,
    2,
    3,
    4,
    5,
    10,
    11,
    12,
    13,
)

PALETTE = np.array(  # RGB of each label: bright, and far apart where parts touch
    [
        [0, 0, 0],
        [204, 153, 120],
        [230, 60, 40],
        [255, 150, 0],
        [40, 80, 255],
        [0, 200, 255],
        [120, 120, 140],
        [150, 60, 200],
        [210, 110, 255],
        [255, 255, 120],
        [60, 200, 80],
        [110, 0, 40],
        [255, 60, 150],
        [255, 150, 200],
        [140, 110, 80],
        [200, 200, 200],
        [60, 90, 110],
        [110, 70, 30],
        [0, 110, 90],
    ],
    np.uint8,
)
_MIRRORED = np.arange(len(LABELS))
for _a, _b in _PAIRS:
    _MIRRORED[[_a, _b]] = _b, _a

_BROW = (
    0.22  # height of a brow, in distances of the eyes' centres; its landmarks lie on the upper edge
)
_FOREHEAD = 0.9  # height of the forehead above the ears, in half widths of the face


def colours(
    labels: np.ndarray, mirrored: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """Labels, uint8 [...], as colours, uint8 [..., 3]; with ``mirrored``, those of a picture that is to be seen in a mirror, where left is right; in ``out``, if given."""
    palette = PALETTE[_MIRRORED] if mirrored else PALETTE
    return np.take(
        palette, labels, axis=0, out=out, mode="clip"
    )  # into ``out`` in a third of the time of palette[labels]


def fill_missing(points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Landmarks for every frame, float32 [T, 68, 2], from those of the frames that the face was ``found`` in (bool [T]).

    Between two such frames points move on straight lines, before the first and after the last they stand still; without any frame all are NaN.
    """
    at = np.flatnonzero(found)
    if len(at) == len(points):
        return points
    if not len(at):
        return np.full(points.shape, np.nan, np.float32)
    known = points[at].reshape(len(at), -1)
    every = [np.interp(np.arange(len(points)), at, column) for column in known.T]
    return np.stack(every, 1).reshape(points.shape).astype(np.float32)


def draw_regions(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map of one frame from its landmarks: regions as polygons.

    Parameters
    ----------
    points : float array [68, 2]
        Pixels, the centre of the upper left one at (0, 0); with NaN the map is background alone.

    Returns
    -------
    uint8 array [height, width]
        Labels.
    """
    image = Image.new("L", (width, height))
    if np.isfinite(points).all():
        pen = ImageDraw.Draw(image)
        for label, polygon in _regions(np.asarray(points, np.float64)):
            pen.polygon([(x, y) for x, y in polygon.tolist()], fill=label)
    return np.asarray(image)


def _regions(p: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Polygons of one face with their labels, back to front. The person's right is at the left of the picture, and comes first in the landmarks."""
    right, left = p[36:42].mean(0), p[42:48].mean(0)
    down = p[27:36].mean(0) - (right + left) / 2
    down *= _BROW * np.hypot(*(left - right)) / max(float(np.hypot(*down)), 1e-6)
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
    """Half an ellipse from ear to ear above the face, from the person's left to the right: no landmark tells where the hair begins."""
    middle, across = (p[0] + p[16]) / 2, (p[16] - p[0]) / 2
    up = middle - p[8]
    up *= _FOREHEAD * np.hypot(*across) / max(float(np.hypot(*up)), 1e-6)
    angle = np.linspace(0, math.pi, 15)[1:-1, None]
    return middle + across * np.cos(angle) + up * np.sin(angle)


def draw_dots(points: np.ndarray, size: int) -> np.ndarray:
    """Landmarks as white dots on black.

    Parameters
    ----------
    points : float array [T, N, 2]
        Pixels of the drawn squares, the centre of the upper left one at (0, 0); NaN where there is none.
    size : int
        Side of the squares. Dots have a radius of its 112th part, one pixel at least.

    Returns
    -------
    uint8 array [T, size, size, 3]
    """
    reach = max(1.0, size / 112)
    steps = np.arange(-int(reach), int(reach) + 1)
    disc = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    disc = disc[(disc**2).sum(1) <= reach**2]
    shown = np.isfinite(points).all(-1)
    frame = np.broadcast_to(np.arange(len(points))[:, None], shown.shape)[shown]
    x, y = (np.rint(points[shown])[:, None] + disc).astype(np.int64).transpose(2, 0, 1)
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    out = np.zeros((len(points), size, size, 3), np.uint8)
    out[np.broadcast_to(frame[:, None], inside.shape)[inside], y[inside], x[inside]] = 255
    return out


def encode_maps(maps: Iterable[np.ndarray]) -> tuple[bytes, np.ndarray]:
    """Maps of labels, uint8 [H, W] each, as PNGs with the palette in them, one after the other; and where each begins, int64 [T + 1], bytes.

    Viewers show the first; ``ffmpeg -f png_pipe`` reads all.
    """
    out, starts = io.BytesIO(), [0]
    for labels in maps:
        image = Image.fromarray(labels).convert("L")
        image.putpalette(PALETTE.tobytes())
        image.save(out, "png")
        starts.append(out.tell())
    return out.getvalue(), np.array(starts, np.int64)


def decode_maps(data: bytes, starts: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Labels of the ``wanted`` frames, uint8 [T, H, W], each decoded once.

    Raises
    ------
    ValueError
        If they are no maps of labels of one size.
    """
    maps = {
        frame: _decode(data[starts[frame] : starts[frame + 1]]) for frame in dict.fromkeys(wanted)
    }
    return np.stack([maps[frame] for frame in wanted])


def _decode(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        labels = np.asarray(image)
    check_labels(labels)
    return labels


def check_labels(labels: np.ndarray) -> None:
    """ValueError unless these are a map: uint8 [H, W], each number a label."""
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max(initial=0) >= len(LABELS):
        raise ValueError(
            f"no map of labels 0 to {len(LABELS) - 1}, but {labels.dtype} {list(labels.shape)} up to {labels.max(initial=0)}"
        )
