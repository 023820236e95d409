"""Where a face is and how it is brought to its place in a crop: pose from landmarks, smoothing over time, resampling.

Landmarks are the 68 points of iBUG 300-W (Sagonas et al., ICCV Workshops 2013), counted from 0. Coordinates are pixels, x to the right and
y down; the centre of the upper left pixel is (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

RIGHT_EYE, LEFT_EYE, NOSE_BASE = (
    slice(36, 42),
    slice(42, 48),
    slice(31, 36),
)  # the person's right eye is at the left

_DROP = 0.7  # from between the eyes to the base of the nose, in distances of the eyes' centres, of a face seen from the front


@dataclass(frozen=True)
class FacePlacement:
    """Where the eyes stand in a square crop, as parts of its side: their distance, and how far down they are."""

    distance: float
    height: float


FACE = FacePlacement(0.30, 0.41)  # forehead to chin, with some margin: an open mouth stays inside


def face_pose(points: np.ndarray) -> np.ndarray:
    """Position, size and tilt of a face.

    Parameters
    ----------
    points : float array [..., 68, 2]

    Returns
    -------
    float64 array [..., 4]
        x and y of the middle between the eyes' centres; log of the face's size, which is the distance of the eyes' centres
        seen from the front; angle of the line through them, radians, clockwise. Turning the head brings the eyes together and
        bowing it the nose to the eyes: the larger of the two distances counts. Mouth and jaw have no say, since an expression moves them.
    """
    points = np.asarray(points, np.float64)
    right, left, nose = (points[..., part, :].mean(-2) for part in (RIGHT_EYE, LEFT_EYE, NOSE_BASE))
    middle, across = (right + left) / 2, left - right
    apart = np.hypot(across[..., 0], across[..., 1])
    drop = (
        np.abs(across[..., 0] * (nose - middle)[..., 1] - across[..., 1] * (nose - middle)[..., 0])
        / apart
    )
    size = np.maximum(apart, drop / _DROP)
    return np.stack(
        [middle[..., 0], middle[..., 1], np.log(size), np.arctan2(across[..., 1], across[..., 0])],
        -1,
    )


def pose_matrix(pose: np.ndarray, place: FacePlacement, side: int) -> np.ndarray:
    """The similarity that brings a face to its place: it takes points of the crop to points of the frame.

    Parameters
    ----------
    pose : float array [4]
        From :func:`face_pose`.
    place : Place
        Where the eyes shall stand; their line becomes level.
    side : int
        Of the crop, pixels.

    Returns
    -------
    float64 array [2, 3]
    """
    x, y, size, angle = pose
    scale = math.exp(size) / (place.distance * side)
    turn = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    eyes = np.array([(side - 1) / 2, place.height * side - 0.5])
    return np.column_stack([turn, np.array([x, y]) - turn @ eyes])


def to_frame(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 2] of the crop as points of the frame."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def to_crop(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 2] of the frame as points of the crop."""
    return (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


def warp(frame: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Cut a crop out of a frame: bicubic, with the frame shrunk by a whole number first where the crop is coarser.

    Parameters
    ----------
    frame : uint8 array [H, W, 3]
    matrix : float array [2, 3]
        From points of the crop to points of the frame.
    side : int
        Of the crop, pixels.

    Returns
    -------
    uint8 array [side, side, 3]
        Black where the crop reaches beyond the frame.
    """
    corners = to_frame(matrix, np.array([[0, 0], [side, 0], [0, side], [side, side]]) - 0.5)
    coarse = max(1, int(math.sqrt(abs(np.linalg.det(matrix[:, :2])))))
    low = (
        np.clip(np.floor(corners.min(0)) - 8 * coarse, 0, frame.shape[1::-1]).astype(int)
        // coarse
        * coarse
    )
    high = np.clip(np.ceil(corners.max(0)) + 8 * coarse, 0, frame.shape[1::-1]).astype(int)
    if (low >= high).any():
        return np.zeros((side, side, 3), np.uint8)
    image = Image.fromarray(frame[low[1] : high[1], low[0] : high[0]])
    if coarse > 1:
        image = image.reduce(coarse)
    turn = matrix[:, :2]
    shift = matrix[:, 2] - low + 0.5 - turn @ [0.5, 0.5]  # Pillow counts from pixels' corners
    data = np.column_stack([turn, shift]) / coarse
    out = image.transform(
        (side, side), Image.Transform.AFFINE, tuple(data.ravel().tolist()), Image.Resampling.BICUBIC
    )
    return np.asarray(out)


def smooth_poses(poses: np.ndarray, shots: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    """Poses of every frame, without jitter: a local line through what was measured nearby, with Gaussian weights.

    A line has no lag and follows a head that moves evenly (local linear regression: Cleveland, JASA 1979). Frames without a face
    get what lies on the line between their neighbours, before the first and after the last the nearest.

    Parameters
    ----------
    poses : float array [T, 4]
        Measured poses; any value where ``shots`` is negative.
    shots : int array [T]
        Which unbroken piece of the film a frame belongs to; -1 without a face. Nothing is smoothed across pieces: between them
        there may be a cut.
    sigma : float
        Of the weights, frames.

    Returns
    -------
    float64 array [T, 4]
    """
    found = np.flatnonzero(shots >= 0)
    known = poses[found].astype(np.float64)
    known[:, 3] = np.unwrap(known[:, 3])
    for shot in np.unique(shots[found]):
        part = shots[found] == shot
        known[part] = _local_lines(found[part], known[part], sigma)
    return np.column_stack([np.interp(np.arange(len(poses)), found, column) for column in known.T])


def _local_lines(at: np.ndarray, values: np.ndarray, sigma: float) -> np.ndarray:
    reach = math.ceil(3 * sigma)
    out = np.empty_like(values)
    for i, t in enumerate(at):
        near = slice(*np.searchsorted(at, [t - reach, t + reach + 1]))
        x = at[near] - t
        weight = np.exp(-0.5 * (x / sigma) ** 2)
        mean = np.average(x, weights=weight)
        centred = x - mean
        spread = weight @ centred**2
        slope = (weight * centred) @ values[near] / spread if spread > 0 else 0.0
        out[i] = np.average(values[near], axis=0, weights=weight) - slope * mean
    return out
