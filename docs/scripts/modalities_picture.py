"""Take a picture of what ``dfer enrich`` adds to a photograph and to a rendered face.

``python docs/scripts/modalities_picture.py docs/images/modalities.png``

The photograph is NASA's portrait of the astronaut Eileen Collins (public domain), as scikit-image
ships it, on which dlib finds the landmarks; the demo's renderer knows those of its faces. From the
left: the picture, its landmarks on it and as the model sees them, the parsing map drawn from them.
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image
from skimage import data

from dfer_dist.data.faces.alignment import FACE, face_pose, pose_matrix, to_crop, warp
from dfer_dist.data.faces.tracking import track_face
from dfer_dist.data.loading.augmentation import AugmentParams
from dfer_dist.data.loading.modalities import draw_modality, transform_points
from dfer_dist.demo.faces import render_clip

SIDE = 224  # pixels


def portrait() -> tuple[np.ndarray, np.ndarray]:
    """An aligned crop of the portrait, uint8 [224, 224, 3], and its landmarks, [68, 2]."""
    photograph = data.astronaut()
    points = track_face([photograph]).points[0].astype(np.float64)
    matrix = pose_matrix(face_pose(points), FACE, SIDE)
    return warp(photograph, matrix, SIDE), to_crop(matrix, points)


def drawn(label: int) -> tuple[np.ndarray, np.ndarray]:
    """The frame of a drawn clip at its apex, enlarged, and its landmarks."""
    clip = render_clip(label, 8, (4, label), 64)
    apex = int(clip.intensity.argmax())
    frame = Image.fromarray(clip.frames[apex]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(frame), transform_points(
        clip.landmarks[apex : apex + 1], (64, 64), AugmentParams.identity(64, 64), SIDE
    )[0]


def row(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    params = AugmentParams.identity(SIDE, SIDE)
    dots, regions = (
        draw_modality(kind, points[None], (SIDE, SIDE), params, SIDE)[0]
        for kind in ("landmarks", "parsing")
    )
    marked = np.where(dots > 0, np.array([60, 230, 90], np.uint8), frame)
    return np.concatenate([frame, marked, dots, regions], 1)


if __name__ == "__main__":
    sheet = np.concatenate([row(*portrait()), row(*drawn(0)), row(*drawn(4))])
    Image.fromarray(sheet).quantize(256, dither=Image.Dither.NONE).save(sys.argv[1], optimize=True)
