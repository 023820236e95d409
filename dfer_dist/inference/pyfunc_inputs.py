"""The inputs of an exported model behind MLflow: clips of pixels, base64 videos, paths.

A client of ``mlflow models serve`` sends JSON, of which MLflow makes an array or a DataFrame.
"""

from __future__ import annotations

import base64
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.utils.errors import UserError

Input = np.ndarray | bytes | Path

# Set at the start of a server: the folder whose videos its clients may name by their paths.
SERVE_VIDEOS = "DFER_SERVE_VIDEOS"
_WANTED = (
    "give frames, integers from 0 to 255 in [clips, frames, height, width, 3], or base64 videos, "
    "or paths of videos"
)
# No video is that short; a path in letters and slashes alone may be.
_MIN_BASE64 = 100
# Modules that only a server imports.
_SERVERS = {"mlflow.pyfunc.scoring_server.app", "mlserver"}


def parse_inputs(data: Any) -> list[Input]:
    """Return the clips and videos of a request, one for each row of the prediction.

    Parameters
    ----------
    data : array, DataFrame of one column, list, str or Path
        Items are clips (integers 0 to 255, [T, H, W, 3]), videos in base64 (a ``data:`` URL or
        not), or paths of videos.

    Returns
    -------
    list of uint8 array [T, H, W, 3], or bytes of a video, or path

    Raises
    ------
    UserError
        If an item is something else, or a path that a server may not open.
    """
    if hasattr(data, "columns"):
        data = data.to_numpy().ravel()
    items = data if isinstance(data, list) else list(np.atleast_1d(data))
    if not items:
        raise UserError(f"no clip and no video: {_WANTED}")
    return [_parse(item, f"input {i}") for i, item in enumerate(items, 1)]


def _parse(item: Any, name: str) -> Input:
    if not isinstance(item, str | Path):
        return _read_pixels(item, name)
    video = _decode_base64(str(item))
    return _check_path(str(item), name) if video is None else video


def _read_pixels(item: Any, name: str) -> np.ndarray:
    try:
        # The items of an array of objects tell integers from other numbers.
        pixels = np.asarray(item.tolist() if isinstance(item, np.ndarray) else item)
    except ValueError as e:
        raise UserError(f"{name} has frames of several sizes: {_WANTED}") from e
    is_clip = pixels.ndim == 4 and pixels.shape[-1] == 3 and pixels.dtype.kind in "iu"
    if not is_clip or not 0 <= pixels.min() <= pixels.max() <= 255:
        raise UserError(f"{name} is {pixels.dtype} {list(pixels.shape)}: {_WANTED}")
    return pixels.astype(np.uint8)


def _decode_base64(text: str) -> bytes | None:
    """Return the bytes of a video; None if ``text`` is no base64."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    if len(encoded) >= _MIN_BASE64:
        with suppress(ValueError):
            return base64.b64decode("".join(encoded.split()), validate=True)
    return None


def _check_path(text: str, name: str) -> Path:
    """Return the path of a video, which a server opens only in the folder it was given."""
    folder = os.environ.get(SERVE_VIDEOS, "")
    # MLflow's server sets the variable.
    is_server = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT" in os.environ or _SERVERS & sys.modules.keys()
    if not folder and not is_server:
        return Path(text)
    path = os.path.join(folder, text)
    inside = Path(os.path.realpath(folder))
    # Whether a file outside exists stays unknown, too.
    if not (folder and os.path.exists(path) and inside in Path(os.path.realpath(path)).parents):
        raise UserError(
            f"{name}, {text[:_MIN_BASE64]!r}, is neither a base64 video nor one in the "
            f"folder that this server may open: start it with {SERVE_VIDEOS}=FOLDER"
        )
    return Path(os.path.realpath(path))
