"""Ready-made landmarks and parsing maps of a data set, a file or a folder for each clip, named by the clip's key.

::

    LANDMARKS/KEY.npy      float [T, 68, 2]
    LANDMARKS/KEY.txt      or a line for each frame: x1 y1 x2 y2 … x68 y68, apart by spaces or commas
    MAPS/KEY/*.png         a picture of labels for each frame, grey or with a palette, in the order of the numbers in their names

Points are pixels of the packed frame, NaN in a frame without a face. Labels are those of :data:`~dfer_dist.data.faces.parsing_maps.LABELS`. A key is the clip's name in the
data set, with ``_`` for each ``/``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dfer_dist.data.faces.parsing_maps import check_labels
from dfer_dist.data.video.frame_folder import sort_frames
from dfer_dist.utils.errors import UserError


def import_landmarks(
    folder: Path, key: str, frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of a clip, float32 [T, 68, 2], and in which frames there are some, bool [T].

    Parameters
    ----------
    frames : int
        T.
    size : tuple of int
        Height and width of the clip's frames, pixels.

    Raises
    ------
    UserError
        If there is no file of the clip, it has other than 68 points a frame or another number of frames, or its points lie outside of the frames.
    """
    file = _landmark_file(folder, key)
    try:
        points = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _read_text(file)
    except (ValueError, OSError, EOFError) as e:
        raise UserError(f"{file} cannot be read: {' '.join(str(e).split())}") from e
    if (
        points.ndim != 3
        or points.shape[1:] != (68, 2)
        or not np.issubdtype(points.dtype, np.number)
    ):
        raise UserError(
            f"{file} holds {points.dtype} {list(points.shape)}: 68 points (x, y) are wanted for each frame"
        )
    if len(points) != frames:
        raise UserError(f"{file} has landmarks of {len(points)} frames, clip {key} has {frames}")
    points = points.astype(np.float32)
    found = np.isfinite(points).all((1, 2))
    points[~found] = np.nan
    if found.any():
        x, y = np.median(points[found], axis=(0, 1))
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise UserError(
                f"{file}: most points lie outside of the clip's frames of {size[1]} x {size[0]} pixels; were they taken from other ones?"
            )
    return points, found


def _landmark_file(folder: Path, key: str) -> Path:
    file = next((f for f in (folder / f"{key}.npy", folder / f"{key}.txt") if f.is_file()), None)
    if file is None:
        raise UserError(
            f"{folder} has neither {key}.npy nor {key}.txt: landmarks of every clip are wanted"
        )
    return file


def _read_text(file: Path) -> np.ndarray:
    lines = file.read_text(encoding="utf-8").replace(",", " ").splitlines()
    rows = [[float(word) for word in line.split()] for line in lines if line.strip()]
    for i, row in enumerate(rows, 1):
        if len(row) != 136:
            raise ValueError(f"line {i} has {len(row)} numbers, not 136")
    return np.array(rows, np.float32).reshape(-1, 68, 2)


def import_maps(folder: Path, key: str, frames: int) -> list[np.ndarray]:
    """Maps of a clip, uint8 [H, W] each.

    Raises
    ------
    UserError
        If there are not as many as ``frames``, or one is no picture of labels or of another size.
    """
    files = _map_files(folder, key)
    if len(files) != frames:
        raise UserError(f"{folder / key} has {len(files)} maps, clip {key} has {frames} frames")
    maps = [_read_map(file) for file in files]
    odd = next(
        (file for file, labels in zip(files, maps, strict=True) if labels.shape != maps[0].shape),
        None,
    )
    if odd:
        raise UserError(f"{odd} has another size than the maps before it")
    return maps


def _read_map(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            labels = np.asarray(image)
        check_labels(labels)
    except (ValueError, OSError, SyntaxError) as e:
        raise UserError(f"{file} cannot be read: {' '.join(str(e).split())}") from e
    return labels


def _map_files(folder: Path, key: str) -> list[Path]:
    place = folder / key
    if not place.is_dir():
        raise UserError(f"{folder} has no folder {key}: maps of every clip are wanted")
    return sort_frames(place.glob("*.png"))


def digest_landmarks(folder: Path, keys: Sequence[str]) -> str:
    """sha256 over names and bytes of the landmarks of clips. UserError as :func:`import_landmarks`."""
    return _digest([_landmark_file(folder, key) for key in keys])


def digest_maps(folder: Path, keys: Sequence[str]) -> str:
    """Likewise of their maps."""
    return _digest([file for key in keys for file in _map_files(folder, key)])


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
