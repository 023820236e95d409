"""Parsing maps and landmarks of a clip's sampled frames, drawn for the model: ``model.modalities`` (FineCLIPER's middle level, Chen et al., ACM MM 2024).

They come out of the extras beside the shards (:mod:`dfer_dist.data.faces.enrich`) and get the frames' own draws, but for brightness: turned, cropped and mirrored like
these, drawn at the model's size. Maps are picked without interpolation, so their colours stay those of the palette; in a mirror, left and right change colours.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dfer_dist.data.faces.parsing_maps import (
    colours,
    decode_maps,
    draw_dots,
    draw_regions,
    fill_missing,
)
from dfer_dist.data.loading.augmentation import unchanged
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import DamagedClip
from dfer_dist.data.shards.sidecars import (
    LANDMARKS,
    PARSING,
    describe_modality,
    extra_path,
    read_array,
)
from dfer_dist.data.shards.store import Remote

_OPEN = 128  # tars of a level kept open, as of the shards themselves
_DAMAGE = (OSError, ValueError, LookupError, TypeError)  # what reading altered bytes raises


class ModalityReader:
    """Draws the levels of clips of an index; keeps the tars it used last open.

    Parameters
    ----------
    index : Index
    levels : sequence of str
        Of ``parsing`` and ``landmarks``, in the order in which they are drawn.
    """

    def __init__(self, index: Index, modalities: Sequence[str]) -> None:
        self.index, self.modalities = index, tuple(modalities)
        self._tars: dict[
            tuple[int, str], tuple[int, dict[str, list[int]]]
        ] = {}  # in order of use, oldest first

    def draw(
        self,
        shard: int,
        key: str,
        wanted: Sequence[int],
        frame: tuple[int, int],
        augment_params: Sequence[float],
        buffer: np.ndarray,
    ) -> None:
        """Draw a clip's levels for its frames ``wanted`` into ``buffer``, uint8 [L len(wanted), S, S, 3], one level after the other.

        Parameters
        ----------
        frame : tuple of int
            Height and width of the clip's frames, pixels.
        draws : sequence of float
            As of :func:`~dfer_dist.data.loading.augmentation.draw`.

        Raises
        ------
        UserError
            If the shard has no such extra.
        DamagedClip
            If its bytes are not what was written.
        """
        size, count = buffer.shape[1], len(wanted)
        for i, kind in enumerate(self.modalities):
            own = buffer[i * count : (i + 1) * count]
            try:
                if kind == PARSING:
                    labels = decode_maps(
                        self._read(shard, key, kind, "maps.png"),
                        self._array(shard, key, kind, "starts.npy"),
                        wanted,
                    )
                    colours(
                        pick_labels(labels, frame, augment_params, size),
                        mirrored=augment_params[6] > 0,
                        out=own,
                    )
                else:
                    found, points = (
                        self._array(shard, key, LANDMARKS, f"{name}.npy")
                        for name in ("found", "landmarks")
                    )
                    own[:] = draw_dots(
                        move_points(
                            fill_missing(points, found)[list(wanted)], frame, augment_params, size
                        ),
                        size,
                    )
            except _DAMAGE as e:
                raise DamagedClip(self.index.shards[shard].file, key, f"{kind}: {e}") from e

    def _array(self, shard: int, key: str, kind: str, name: str) -> np.ndarray:
        return read_array(self._read(shard, key, kind, name))

    def _read(self, shard: int, key: str, kind: str, name: str) -> bytes:
        file, members = self._tar(shard, kind)
        at, size, crc32 = members[f"{key}.{name}"]
        data = os.pread(file, size, at)
        if len(data) != size or zlib.crc32(data) != crc32:
            raise ValueError(f"{name} has another CRC32 than when it was written")
        return data

    def _tar(self, shard: int, kind: str) -> tuple[int, dict[str, list[int]]]:
        place = (shard, kind)
        tar = self._tars.pop(place, None)
        if tar is None:
            if len(self._tars) >= _OPEN * len(self.modalities):
                os.close(self._tars.pop(next(iter(self._tars)))[0])
            about, root, entry = (
                describe_modality(self.index, shard, kind),
                self.index.root,
                self.index.shards[shard],
            )
            if isinstance(root, Remote):
                file = root.open(
                    str(extra_path(Path(entry.file), kind)), about["sha256"], about["bytes"]
                )
            else:
                file = os.open(extra_path(self.index.path(shard), kind), os.O_RDONLY)
            tar = (file, about["members"])
        self._tars[place] = tar
        return tar

    def __reduce__(self) -> tuple[type, tuple[Index, tuple[str, ...]]]:
        return type(self), (self.index, self.modalities)  # another process opens its own files

    def __del__(self) -> None:
        for file, _ in self._tars.values():
            os.close(file)


def find_points(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Landmarks of frames, uint8 [H, W, 3] each, as ``dfer enrich`` finds them; those of frames without a face filled in. float32 [T, 68, 2].

    Raises
    ------
    UserError
        If dlib or its weights are not installed.
    """
    from dfer_dist.data.faces.tracking import track_face  # dlib, which training need not have

    track = track_face(frames)
    return fill_missing(track.points, track.found)


def draw_modality(kind: str, points: np.ndarray, frame: tuple[int, int], size: int) -> np.ndarray:
    """A level of frames that are resized and nothing else, drawn from their landmarks.

    Parameters
    ----------
    kind : str
        ``parsing``, as regions, or ``landmarks``.
    points : float array [T, 68, 2]
        Pixels of the frames; NaN gives black.
    frame : tuple of int
        Their height and width.
    size : int
        Side of the squares that they become.

    Returns
    -------
    uint8 array [T, size, size, 3]
    """
    augment_params = unchanged(*frame)
    if kind == LANDMARKS:
        return draw_dots(move_points(points, frame, augment_params, size), size)
    labels = np.stack([draw_regions(own, *frame) for own in points])
    return colours(pick_labels(labels, frame, augment_params, size))


def move_points(
    points: np.ndarray, frame: tuple[int, int], augment_params: Sequence[float], size: int
) -> np.ndarray:
    """Points of a clip's frames as points of what :func:`~dfer_dist.data.loading.augmentation.apply` makes of these.

    Parameters
    ----------
    points : float array [T, N, 2]
        Pixels, the centre of the upper left one at (0, 0).
    frame : tuple of int
        Height and width of the frames.
    draws, size
        As there.

    Returns
    -------
    float64 array [T, N, 2]
    """
    _, angle, top, left, height, width, mirrored = augment_params
    centre = np.array([frame[1], frame[0]]) / 2
    at = (
        points.astype(np.float64) + 0.5 - centre
    )  # from here on the corner of the upper left pixel is at (0, 0), as areas want it
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = at @ np.array([[cos, -sin], [sin, cos]]) + centre
    moved = (turned - [left, top]) * [size / width, size / height]
    if mirrored:
        moved = moved * [-1, 1] + [size, 0]
    return moved - 0.5


def pick_labels(
    labels: np.ndarray, frame: tuple[int, int], augment_params: Sequence[float], size: int
) -> np.ndarray:
    """Maps of a clip's frames, of any size, as :func:`~dfer_dist.data.loading.augmentation.apply` moves these: the nearest label counts, outside it is background.

    Parameters
    ----------
    labels : uint8 array [T, h, w]
    frame, draws, size
        As for :func:`move_points`.

    Returns
    -------
    uint8 array [T, size, size]
        In a mirrored picture the labels themselves stay, so that :func:`~dfer_dist.data.faces.parsing_maps.colours` has to swap them.
    """
    _, angle, top, left, height, width, mirrored = augment_params
    along = (np.arange(size) + 0.5) / size
    y, x = top + along * height, left + (along[::-1] if mirrored else along) * width
    scale = labels.shape[1] / frame[0], labels.shape[2] / frame[1]
    if not angle:
        rows, columns = ((at * s).astype(np.int64) for at, s in zip((y, x), scale, strict=True))
        return labels[:, rows][:, :, columns]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    down, right = y[:, None] - frame[0] / 2, x[None] - frame[1] / 2
    rows = np.floor((sin * right + cos * down + frame[0] / 2) * scale[0]).astype(np.int64)
    columns = np.floor((cos * right - sin * down + frame[1] / 2) * scale[1]).astype(np.int64)
    inside = (rows >= 0) & (rows < labels.shape[1]) & (columns >= 0) & (columns < labels.shape[2])
    return np.where(
        inside, labels[:, np.where(inside, rows, 0), np.where(inside, columns, 0)], 0
    ).astype(np.uint8)
