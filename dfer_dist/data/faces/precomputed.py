"""Load precomputed landmarks and parsing maps: a file or a folder per clip, named by its key.

::

    LANDMARKS/KEY.npy   float [T, 68, 2]
    LANDMARKS/KEY.txt   or a line per frame: x1 y1 x2 y2 ... x68 y68, with spaces or commas
    MAPS/KEY/*.png      an image of labels per frame, grey or with a palette, in numerical order
    FOLDER/KEY/FRAME/   or output of FaceXFormer for each frame, in numerical order

Points are pixels of the packed frame, NaN in a frame without a face. Labels are those of
:data:`~dfer_dist.data.faces.parsing_maps.LABELS`. The key of a clip is its name in the data set,
with ``_`` for each ``/``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from dfer_dist.data.faces import facexformer
from dfer_dist.data.faces.parsing_maps import read_labels
from dfer_dist.data.sources.records import sort_frames
from dfer_dist.data.sources.text_lists import read_text
from dfer_dist.utils.errors import UserError


def load_landmarks(
    folder: Path, key: str, num_frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Load the landmarks of a clip.

    Parameters
    ----------
    folder : Path
    key : str
    num_frames : int
        T.
    size : tuple of int
        Height and width of the clip's frames, pixels.

    Returns
    -------
    points : float32 array [T, 68, 2]
        NaN in a frame without a face.
    found : bool array [T]
        Frames with a face.

    Raises
    ------
    UserError
        If the clip has no file, the number of points or frames is wrong, or most points are
        outside of the frames.
    """
    file, points = _read_points(folder, key, size)
    is_numeric = np.issubdtype(points.dtype, np.number)
    if points.ndim != 3 or points.shape[1:] != (68, 2) or not is_numeric:
        raise UserError(
            f"{file} holds {points.dtype} {list(points.shape)}: 68 points (x, y) are needed for "
            "each frame"
        )
    if len(points) != num_frames:
        raise UserError(f"{file} has {len(points)} frames, clip {key} has {num_frames}")
    points = points.astype(np.float32)
    found = np.isfinite(points).all((1, 2))
    points[~found] = np.nan
    if found.any():
        x, y = np.median(points[found], axis=(0, 1))
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise UserError(
                f"{file}: most points are outside of the clip's frames of {size[1]} x {size[0]} "
                "pixels: were they measured in other frames?"
            )
    return points, found


def _read_points(folder: Path, key: str, size: tuple[int, int]) -> tuple[Path, np.ndarray]:
    """Return the landmarks of a clip, and the file or folder that they are from."""
    file = landmark_files(folder, key)[0]
    if file.parent == folder:
        return file, _read(file, _READERS[file.suffix])
    frames = facexformer.frame_folders(folder / key)
    points = [_read(frame, facexformer.read_landmarks, size) for frame in frames]
    return folder / key, np.stack(points)


def load_maps(
    folder: Path, key: str, num_frames: int, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yield the parsing maps of a clip, uint8 [H, W] each; ``size`` is that of its frames.

    Raises
    ------
    UserError
        If their number is not ``num_frames``, or one is no image of labels or of another size.
    """
    files = map_files(folder, key)
    read: Callable[[Path], np.ndarray] = read_labels
    if not files or files[0].parent != folder / key:
        files = facexformer.frame_folders(folder / key)
        read = partial(facexformer.read_map, size=size)
    if len(files) != num_frames:
        raise UserError(f"{folder / key} has {len(files)} maps, clip {key} has {num_frames} frames")
    shape: tuple[int, ...] = ()
    for file in files:
        labels = _read(file, read)
        shape = shape or labels.shape
        if labels.shape != shape:
            raise UserError(f"{file} has another size than the maps before it")
        yield labels


def hash_files(files: Iterable[Path]) -> str:
    """Return the sha256 over names and bytes of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def landmark_files(folder: Path, key: str) -> list[Path]:
    """Return the landmark file of a clip, or those of its frames.

    Raises
    ------
    UserError
        If there is none.
    """
    for file in (folder / f"{key}.npy", folder / f"{key}.txt"):
        if file.is_file():
            return [file]
    if frames := facexformer.frame_folders(folder / key):
        return facexformer.output_files(frames, facexformer.LANDMARKS)
    raise UserError(f"{folder} has neither {key}.npy nor {key}.txt: each clip needs landmarks")


def map_files(folder: Path, key: str) -> list[Path]:
    """Return the map files of a clip, in the order of its frames.

    Raises
    ------
    UserError
        If the clip has no folder.
    """
    maps = folder / key
    if not maps.is_dir():
        raise UserError(f"{folder} has no folder {key}: maps of every clip are needed")
    files = sort_frames(maps.glob("*.png"))
    if not files and (frames := facexformer.frame_folders(maps)):
        return facexformer.output_files(frames, facexformer.MAP)
    return files


def _read_table(file: Path) -> np.ndarray:
    lines = re.sub("[,;]", " ", read_text(file)).splitlines()
    rows = [np.array(line.split(), np.float64) for line in lines if line.strip()]
    for i, row in enumerate(rows, 1):
        if len(row) != 136:
            raise ValueError(f"line {i} has {len(row)} numbers, not 136")
    return np.array(rows, np.float32).reshape(-1, 68, 2)


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": np.load,
    ".txt": _read_table,
}


def _read(file: Path, read: Callable[..., np.ndarray], *more: object) -> np.ndarray:
    try:
        return read(file, *more)
    except (ValueError, OSError, EOFError, SyntaxError) as e:
        raise UserError(f"{file} cannot be read: {' '.join(str(e).split())}") from e
