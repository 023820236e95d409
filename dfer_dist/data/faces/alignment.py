"""Align faces: pose from landmarks, smoothing over time, and resampling into a crop.

Landmarks are the 68 points of iBUG 300-W (Sagonas et al., ICCV Workshops 2013), counted from 0.
Coordinates are pixels, x to the right and y down; the center of the upper left pixel is (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Landmarks of the person's own right and left eye (the right one is on the left of the image).
RIGHT_EYE = slice(36, 42)
LEFT_EYE = slice(42, 48)
NOSE_BASE = slice(31, 36)

# Distance from between the eyes to the base of the nose in a frontal face, in distances between
# the centers of the eyes.
_NOSE_DROP = 0.7


@dataclass(frozen=True)
class FacePlacement:
    """Position of the eyes in a square crop, in fractions of its size.

    Attributes
    ----------
    distance : float
        Between the centers of the eyes.
    height : float
        From the upper edge to the eyes.
    """

    distance: float
    height: float


# From forehead to chin, with a margin that keeps an open mouth inside.
FACE = FacePlacement(0.30, 0.41)


def face_pose(points: np.ndarray) -> np.ndarray:
    """Return position, size and rotation of a face.

    Parameters
    ----------
    points : float array [..., 68, 2]

    Returns
    -------
    float64 array [..., 4]
        x and y of the point between the eyes; logarithm of the size of the face, which is the
        distance between the eyes seen from the front; angle of the line through the eyes, radians,
        clockwise. Turning the head brings the eyes together, and bowing it the nose to the eyes:
        the size is the larger one of the two estimates. Mouth and jaw are not used, because
        expressions move them.
    """
    points = np.asarray(points, np.float64)
    right, left, nose = (points[..., part, :].mean(-2) for part in (RIGHT_EYE, LEFT_EYE, NOSE_BASE))
    middle, across = (right + left) / 2, left - right
    distance = np.hypot(across[..., 0], across[..., 1])
    to_nose = nose - middle
    drop = np.abs(across[..., 0] * to_nose[..., 1] - across[..., 1] * to_nose[..., 0]) / distance
    size = np.maximum(distance, drop / _NOSE_DROP)
    angle = np.arctan2(across[..., 1], across[..., 0])
    return np.stack([middle[..., 0], middle[..., 1], np.log(size), angle], -1)


def pose_matrix(pose: np.ndarray, placement: FacePlacement, size: int) -> np.ndarray:
    """Return the similarity that maps points of the crop to points of the frame.

    Parameters
    ----------
    pose : float array [4]
        From :func:`face_pose`.
    placement : FacePlacement
        Position of the eyes in the crop; the line through them becomes horizontal.
    size : int
        Width and height of the crop, pixels.

    Returns
    -------
    float64 array [2, 3]
    """
    x, y, log_size, angle = pose
    scale = math.exp(log_size) / (placement.distance * size)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * rotation
    eyes = np.array([(size - 1) / 2, placement.height * size - 0.5])
    return np.column_stack([linear, np.array([x, y]) - linear @ eyes])


def to_frame(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points [..., 2] of the crop to points of the frame."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def to_crop(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points [..., 2] of the frame to points of the crop."""
    return (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


def warp(frame: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Resample a crop from a frame: bicubic, after reduction by an integer if the crop is coarser.

    Parameters
    ----------
    frame : uint8 array [H, W, 3]
    matrix : float array [2, 3]
        From points of the crop to points of the frame.
    size : int
        Width and height of the crop, pixels.

    Returns
    -------
    uint8 array [size, size, 3]
        Black where the crop reaches beyond the frame.
    """
    linear = matrix[:, :2]
    factor = max(1, int(math.sqrt(abs(np.linalg.det(linear)))))

    # the part of the frame that the crop needs, with a margin for the filter
    edges = np.array([[0, 0], [size, 0], [0, size], [size, size]]) - 0.5
    corners = to_frame(matrix, edges)
    margin, limit = 8 * factor, frame.shape[1::-1]
    low = np.clip(np.floor(corners.min(0)) - margin, 0, limit).astype(int) // factor * factor
    high = np.clip(np.ceil(corners.max(0)) + margin, 0, limit).astype(int)
    if (low >= high).any():
        return np.zeros((size, size, 3), np.uint8)
    image = Image.fromarray(frame[low[1] : high[1], low[0] : high[0]])
    if factor > 1:
        image = image.reduce(factor)

    # Pillow measures from the corners of pixels, not from their centers
    offset = matrix[:, 2] - low + 0.5 - linear @ [0.5, 0.5]
    data = tuple((np.column_stack([linear, offset]) / factor).ravel().tolist())
    crop = image.transform(
        (size, size), Image.Transform.AFFINE, data, resample=Image.Resampling.BICUBIC
    )
    return np.asarray(crop)


def smooth_poses(poses: np.ndarray, shots: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    """Smooth poses over time by local linear regression with Gaussian weights, and fill gaps.

    A local line has no lag and follows a head that moves steadily (Cleveland, JASA 1979). Frames
    without a face are interpolated linearly; before the first and after the last face the pose
    is constant.

    Parameters
    ----------
    poses : float array [T, 4]
        Measured poses; any value where ``shots`` is negative.
    shots : int array [T]
        Number of the uninterrupted part of the video that a frame belongs to; -1 without a face.
        Nothing is smoothed across parts, because there may be a cut between them.
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


def _local_lines(times: np.ndarray, values: np.ndarray, sigma: float) -> np.ndarray:
    """Return the value at each time of the line fitted to the values around it."""
    radius = math.ceil(3 * sigma)
    smoothed = np.empty_like(values)
    for i, time in enumerate(times):
        near = slice(*np.searchsorted(times, [time - radius, time + radius + 1]))
        x = times[near] - time
        weights = np.exp(-0.5 * (x / sigma) ** 2)
        mean = np.average(x, weights=weights)
        centered = x - mean
        variance = weights @ centered**2
        slope = (weights * centered) @ values[near] / variance if variance > 0 else 0.0
        smoothed[i] = np.average(values[near], axis=0, weights=weights) - slope * mean
    return smoothed
