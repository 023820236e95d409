"""Look at what a film becomes: ``python -m dfer_dist.data.faces.contact_sheet FILM PICTURE``.

Draws eight frames with the landmarks and the crop's outline, and the crops below them. A frame without a face is marked.
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

_COLUMNS, _WIDTH = 8, 160  # pixels
_GREEN, _AMBER = (60, 230, 90), (255, 170, 0)


def draw_sheet(video: Video) -> Image.Image:
    """Frames above, crops below.

    Raises
    ------
    UserError
        If the film has no face at all.
    """
    clip = find_face(video)
    if not clip.found.any():
        raise UserError(f"{video.path}: no face in any of {len(clip.found)} frames")
    chosen = np.linspace(0, len(clip.found) - 1, _COLUMNS).round().astype(int).tolist()
    columns: list[Image.Image] = []
    for t, (frame, crop) in enumerate(zip(video, clip.crops(video), strict=True)):
        columns += [_column(clip, t, frame, crop)] * chosen.count(t)
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, columns[0].height))
    for i, column in enumerate(columns):
        sheet.paste(column, (i * _WIDTH, 0))
    return sheet


def _column(clip: FaceClip, t: int, frame: np.ndarray, crop: np.ndarray) -> Image.Image:
    colour = _GREEN if clip.found[t] else _AMBER
    corners = to_frame(
        clip.matrices[t], np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * clip.size - 0.5
    )
    above = _marked(frame, to_frame(clip.matrices[t], clip.landmarks[t]), colour, corners)
    below = _marked(crop, clip.landmarks[t], colour)
    column = Image.new("RGB", (_WIDTH, above.height + below.height))
    column.paste(above, (0, 0))
    column.paste(below, (0, above.height))
    return column


def _marked(
    image: np.ndarray,
    points: np.ndarray,
    colour: tuple[int, int, int],
    outline: np.ndarray | None = None,
) -> Image.Image:
    scale = (_WIDTH - 2) / image.shape[1]
    small = Image.fromarray(image).resize(
        (_WIDTH - 2, round(image.shape[0] * scale)), Image.Resampling.LANCZOS
    )
    canvas = Image.new("RGB", (_WIDTH, small.height + 2))
    canvas.paste(small, (1, 1))
    pen = ImageDraw.Draw(canvas)
    if outline is not None:
        pen.polygon([(x, y) for x, y in (outline * scale + 1).tolist()], outline=colour)
    for x, y in ((points[np.isfinite(points[:, 0])] + 0.5) * scale + 1).tolist():
        pen.point([(x, y)], fill=colour) if outline is not None else pen.ellipse(
            (x - 1, y - 1, x + 1, y + 1), fill=colour
        )
    if not len(points) or np.isnan(points).any():
        pen.text((6, canvas.height - 16), "no face", fill=colour)
    return canvas


if __name__ == "__main__":
    draw_sheet(Video(Path(sys.argv[1]))).quantize(128).save(sys.argv[2], optimize=True)
