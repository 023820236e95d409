"""Parsing maps and landmarks of a clip's sampled frames, drawn as the model reads them.

These are ``model.modalities`` (FineCLIPER, Chen et al., ACM MM 2024). They are read from the
sidecar tars of the shards (:mod:`dfer_dist.data.faces.enrich`) and get the augmentation of the
frames except brightness, at the model's size. Maps are resampled by nearest neighbour, so colours
stay those of the palette; flipping a clip exchanges the colours of left and right.
"""

from __future__ import annotations

import math
import os
import weakref
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from dfer_dist.data.faces import parsing_maps
from dfer_dist.data.loading.augmentation import AugmentParams
from dfer_dist.data.shards import sidecars
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipHandle, DamagedClip
from dfer_dist.data.shards.sidecars import LANDMARKS, read_array
from dfer_dist.data.shards.store import Remote

_MAX_OPEN = 128  # tars of a modality kept open, as of the shards themselves
_DAMAGE = (OSError, ValueError, LookupError, TypeError)  # raised by reading altered bytes


class _Tar:
    """An open sidecar tar, closed when nothing refers to it any more."""

    def __init__(self, index: Index, shard: int, kind: str) -> None:
        manifest = sidecars.read_modality_manifest(index, shard, kind)
        # offset, size and CRC32 by the member's name
        self.members = manifest.members
        store = index.store(shard)
        if isinstance(store, Remote):
            name = str(sidecars.sidecar_tar_path(Path(index.shards[shard].file), kind))
            self.file = store.open(name, manifest.sha256, manifest.bytes)
        else:
            self.file = os.open(sidecars.sidecar_tar_path(index.path(shard), kind), os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)


class ModalityReader:
    """Renderer of clips' modalities; keeps the tars that it used last open.

    Parameters
    ----------
    index : Index
    modalities : sequence of str
        Of ``parsing`` and ``landmarks``, in the order in which they are drawn.
    """

    def __init__(self, index: Index, modalities: Sequence[str]) -> None:
        self.index, self.modalities = index, tuple(modalities)
        self._tar = lru_cache(_MAX_OPEN * len(modalities))(partial(_Tar, index))

    def draw(
        self,
        clip: ClipHandle,
        frame_size: tuple[int, int],
        params: AugmentParams,
        out: np.ndarray,
    ) -> None:
        """Draw the modalities of a clip's chosen frames into ``out``, one after the other.

        Parameters
        ----------
        clip : ClipHandle
        frame_size : tuple of int
            Height and width of the clip's frames, pixels.
        params : AugmentParams
            Of the clip.
        out : uint8 [L T, S, S, 3]

        Raises
        ------
        UserError
            If the shard has no such sidecar tar.
        DamagedClip
            If its bytes are not what was written.
        """
        count, size = len(clip.wanted), out.shape[1]
        for i, kind in enumerate(self.modalities):
            pictures, read = out[i * count : (i + 1) * count], partial(self._read, clip, kind)
            try:
                if kind == LANDMARKS:
                    points, found = read_array(read("landmarks.npy")), read_array(read("found.npy"))
                    points = parsing_maps.fill_missing(points, found)[clip.wanted]
                    points = transform_points(points, frame_size, params, size)
                    pictures[:] = parsing_maps.draw_landmarks(points, size)
                else:
                    starts = read_array(read("starts.npy"))
                    labels = parsing_maps.decode_maps(read("maps.png"), starts, clip.wanted)
                    labels = resample_labels(labels, frame_size, params, size)
                    parsing_maps.colorize(labels, flipped=params.flip, out=pictures)
            except _DAMAGE as e:
                shard = self.index.shard_name(clip.shard)
                raise DamagedClip(shard, clip.row.key, f"{kind}: {e}") from e

    def _read(self, clip: ClipHandle, kind: str, name: str) -> bytes:
        tar = self._tar(clip.shard, kind)
        offset, size, crc32 = tar.members[f"{clip.row.key}.{name}"]
        data = os.pread(tar.file, size, offset)
        if len(data) != size or zlib.crc32(data) != crc32:
            raise ValueError(f"{name} has another CRC32 than when it was written")
        return data


def find_points(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return the landmarks of frames as ``dfer enrich`` finds them, float32 [T, 68, 2].

    Those of frames without a face are interpolated.

    Parameters
    ----------
    frames : iterable of ndarray
        uint8 [H, W, 3] each.

    Raises
    ------
    UserError
        If dlib or its weights are not installed.
    """
    from dfer_dist.data.faces.tracking import track_face  # dlib, which training need not have

    track = track_face(frames)
    return parsing_maps.fill_missing(track.points, track.found)


def draw_modality(
    kind: str,
    points: np.ndarray,
    frame_size: tuple[int, int],
    params: AugmentParams,
    size: int,
) -> np.ndarray:
    """Draw a modality of frames from their landmarks.

    Parameters
    ----------
    kind : str
        ``parsing``, as regions, or ``landmarks``.
    points : float array [T, 68, 2]
        Pixels of the frames; NaN gives black.
    frame_size : tuple of int
        Height and width of the frames.
    params : AugmentParams
        What is done to the frames.
    size : int
        Side of the squares that they are resized to.

    Returns
    -------
    uint8 array [T, size, size, 3]
    """
    if kind == LANDMARKS:
        return parsing_maps.draw_landmarks(transform_points(points, frame_size, params, size), size)
    labels = np.stack([parsing_maps.draw_regions(own, *frame_size) for own in points])
    labels = resample_labels(labels, frame_size, params, size)
    return parsing_maps.colorize(labels, flipped=params.flip)


def transform_points(
    points: np.ndarray, frame_size: tuple[int, int], params: AugmentParams, size: int
) -> np.ndarray:
    """Transform points of a clip's frames as :func:`augmentation.apply` transforms the frames.

    Parameters
    ----------
    points : float array [T, N, 2]
        Pixels, the centre of the upper left one at (0, 0).
    frame_size : tuple of int
        Height and width of the frames.
    params : AugmentParams
    size : int
        Side of the resized squares.

    Returns
    -------
    float64 array [T, N, 2]
    """
    centre = np.array([frame_size[1], frame_size[0]]) / 2
    # until the end, (0, 0) is the corner of the upper left pixel, as areas need it
    from_centre = points.astype(np.float64) + 0.5 - centre
    cos, sin = math.cos(math.radians(params.angle)), math.sin(math.radians(params.angle))
    rotated = from_centre @ np.array([[cos, -sin], [sin, cos]]) + centre
    scale = [size / params.width, size / params.height]
    resized = (rotated - [params.left, params.top]) * scale
    if params.flip:
        resized = resized * [-1, 1] + [size, 0]
    return resized - 0.5


def resample_labels(
    labels: np.ndarray, frame_size: tuple[int, int], params: AugmentParams, size: int
) -> np.ndarray:
    """Transform label maps of a clip's frames as :func:`augmentation.apply` transforms the frames.

    Nearest neighbour; outside of the maps is background.

    Parameters
    ----------
    labels : uint8 array [T, h, w]
        Of any size.
    frame_size, params, size
        As for :func:`transform_points`.

    Returns
    -------
    uint8 array [T, size, size]
        A flip keeps the labels themselves, which
        :func:`~dfer_dist.data.faces.parsing_maps.colorize` then has to exchange.
    """
    along = (np.arange(size) + 0.5) / size
    across = along[::-1] if params.flip else along
    y, x = params.top + along * params.height, params.left + across * params.width
    scale_y, scale_x = labels.shape[1] / frame_size[0], labels.shape[2] / frame_size[1]
    if not params.angle:
        rows, columns = (y * scale_y).astype(np.int64), (x * scale_x).astype(np.int64)
        return labels[:, rows][:, :, columns]
    cos, sin = math.cos(math.radians(params.angle)), math.sin(math.radians(params.angle))
    down, right = y[:, None] - frame_size[0] / 2, x[None] - frame_size[1] / 2
    source_y = (sin * right + cos * down + frame_size[0] / 2) * scale_y
    source_x = (cos * right - sin * down + frame_size[1] / 2) * scale_x
    rows, columns = np.floor(source_y).astype(np.int64), np.floor(source_x).astype(np.int64)
    inside = (rows >= 0) & (rows < labels.shape[1]) & (columns >= 0) & (columns < labels.shape[2])
    nearest = labels[:, np.where(inside, rows, 0), np.where(inside, columns, 0)]
    return np.where(inside, nearest, 0).astype(np.uint8)
