"""Draw face detection in a video: ``python -m dfer_dist.data.faces.contact_sheet VIDEO PICTURE``.

The picture has eight frames with the landmarks and the outline of the crop, and the crops below
them. Frames without a face are marked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dfer_dist.data.faces.alignment import to_frame
from dfer_dist.data.faces.crop import FaceClip, find_face
from dfer_dist.data.video.decode import Video
from dfer_dist.utils.errors import UserError

_NUM_COLUMNS = 8
_COLUMN_WIDTH = 160
_GREEN = "#3ce65a"
_AMBER = "#ffaa00"


def draw_sheet(video: Video) -> Image.Image:
    """Draw frames, and the crops below them.

    Raises
    ------
    UserError
        If the video has no face at all.
    """
    clip = find_face(video)
    num_frames = len(clip.found)
    if not clip.found.any():
        raise UserError(f"{video.path}: no face in any of {num_frames} frames")
    shown = np.linspace(0, num_frames - 1, _NUM_COLUMNS).round().astype(int).tolist()
    columns: list[np.ndarray] = []
    for t, (frame, crop) in enumerate(zip(video, clip.crops(video), strict=True)):
        # a short video shows some frames several times
        columns += [_draw_column(clip, t, frame, crop)] * shown.count(t)
    return Image.fromarray(np.hstack(columns))


def _draw_column(clip: FaceClip, t: int, frame: np.ndarray, crop: np.ndarray) -> np.ndarray:
    color = _GREEN if clip.found[t] else _AMBER
    matrix, points = clip.matrices[t], clip.landmarks[t]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * clip.size - 0.5
    above = _draw_points(frame, to_frame(matrix, points), color, to_frame(matrix, corners))
    return np.vstack([above, _draw_points(crop, points, color)])


def _draw_points(
    image: np.ndarray, points: np.ndarray, color: str, outline: np.ndarray | None = None
) -> np.ndarray:
    """Draw an image with points: single pixels if it has an outline, dots otherwise."""
    width = _COLUMN_WIDTH - 2
    scale = width / image.shape[1]
    size = (width, round(image.shape[0] * scale))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (_COLUMN_WIDTH, small.height + 2))
    canvas.paste(small, (1, 1))
    draw = ImageDraw.Draw(canvas)
    if outline is not None:
        draw.polygon([(x, y) for x, y in (outline * scale + 1).tolist()], outline=color)
    for x, y in ((points[np.isfinite(points[:, 0])] + 0.5) * scale + 1).tolist():
        if outline is not None:
            draw.point([(x, y)], fill=color)
        else:
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=color)
    if not len(points) or np.isnan(points).any():
        draw.text((6, canvas.height - 16), "no face", fill=color)
    return np.asarray(canvas)


if __name__ == "__main__":
    draw_sheet(Video(Path(sys.argv[1]))).quantize(128).save(sys.argv[2], optimize=True)
