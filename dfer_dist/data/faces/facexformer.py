"""Output of FaceXFormer's ``inference.py``: a folder for each frame, in coordinates of a face crop.

::

    KEY/FRAME/landmarks.txt   68 lines "x y", pixels of the crop at 224 x 224
    KEY/FRAME/parsing.png     224 x 224 labels
    KEY/FRAME/box.txt         left, top, right and lower edge of the crop in the frame

``inference.py`` cuts the face out by a detection that it does not write, so one line has to be
added to it, for ``box.txt`` (docs/guides/landmarks.md). A folder without output is a frame in which
no face was found. Read at https://github.com/Kartik-3004/facexformer, commit d4a268b: the crop and
the files in ``test``, pixels with their center at (0, 0) in ``denorm_points``, colors of labels in
``visualize_mask``. Which regions have these colors show its ``docs/static/images/qualitative.png``
and ``in_wild.png``; the labels are those of LaPa (Liu et al., AAAI 2020), and left ones are on the
left of the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dfer_dist.data.faces.parsing_maps import LABELS
from dfer_dist.data.sources.records import sort_frames
from dfer_dist.data.video.image import open_image
from dfer_dist.utils.errors import UserError

LANDMARKS, MAP, BOX = "landmarks.txt", "parsing.png", "box.txt"
_SIZE = 224

# In the order of its labels. Its left is the person's right.
_REGIONS = (
    "background",
    "skin",
    "right brow",
    "left brow",
    "right eye",
    "left eye",
    "nose",
    "upper lip",
    "inner mouth",
    "lower lip",
    "hair",
)
_LABELS = np.array([LABELS.index(name) for name in _REGIONS], np.uint8)


def frame_folders(clip: Path) -> list[Path]:
    """Return the folders of a clip's frames, in numerical order; empty for another format."""
    return sort_frames(path for path in clip.glob("*") if path.is_dir())


def output_files(folders: list[Path], name: str) -> list[Path]:
    """Return the files ``name`` and the boxes of a clip that exist.

    Raises
    ------
    UserError
        If there is none in any frame.
    """
    files = [folder / file for folder in folders for file in (name, BOX)]
    if not any(file.name == name and file.is_file() for file in files):
        raise UserError(f"{folders[0].parent} has no {name} in the folder of any frame")
    return [file for file in files if file.is_file()]


def read_landmarks(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the landmarks of a frame.

    Parameters
    ----------
    folder : Path
    size : tuple of int
        Height and width of the frame, pixels.

    Returns
    -------
    float64 array [68, 2]
        Pixels of the frame; NaN without a face.

    Raises
    ------
    UserError
        If the box is missing or outside of the frame.
    ValueError
        If these are no 68 points.
    """
    if not (folder / LANDMARKS).is_file():
        return np.full((68, 2), np.nan)
    points = np.loadtxt(folder / LANDMARKS, ndmin=2)
    if points.shape != (68, 2):
        raise ValueError(f"{list(points.shape)} numbers, not [68, 2]")
    left, top, right, bottom = _read_box(folder, size)
    scale = np.array([right - left, bottom - top]) / _SIZE
    return (points + 0.5) * scale - 0.5 + (left, top)


def read_map(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the map of a frame, with labels of :data:`~dfer_dist.data.faces.parsing_maps.LABELS`.

    Parameters
    ----------
    folder : Path
    size : tuple of int
        Height and width of the frame, pixels.

    Returns
    -------
    uint8 array [height, width]
        Background without a face.

    Raises
    ------
    UserError
        If the box is missing or outside of the frame.
    ValueError
        If it is no map of its labels.
    """
    found = np.zeros(size, np.uint8)
    if not (folder / MAP).is_file():
        return found
    with open_image(folder / MAP) as image:
        labels = np.asarray(image)
    highest = labels.max(initial=0)
    if labels.shape != (_SIZE, _SIZE) or highest >= len(_LABELS):
        raise ValueError(f"no map of labels 0 to 10, but {list(labels.shape)} up to {highest}")
    left, top, right, bottom = _read_box(folder, size)
    crop = Image.fromarray(_LABELS[labels])
    resized = crop.resize((right - left, bottom - top), Image.Resampling.NEAREST)
    found[top:bottom, left:right] = np.asarray(resized)
    return found


def _read_box(folder: Path, size: tuple[int, int]) -> list[int]:
    file = folder / BOX
    if not file.is_file():
        raise UserError(
            f"{folder} has no {BOX}: inference.py does not write where it cut out the face; add "
            "the line of docs/guides/landmarks.md to it and run it again"
        )
    box = np.loadtxt(file, ndmin=1).ravel()
    inside = len(box) == 4 and (box[:2] >= 0).all() and (box[:2] < box[2:]).all()
    if not inside or box[2] > size[1] or box[3] > size[0]:
        raise UserError(
            f"{file} is no box in the clip's frames of {size[1]} x {size[0]} pixels: was it "
            "measured in other frames?"
        )
    return [int(x) for x in box]
