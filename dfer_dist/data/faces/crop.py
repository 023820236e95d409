"""Steady square crops of the face in a video, with landmarks in pixels of the crop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dfer_dist.data.faces.alignment import (
    FACE,
    face_pose,
    pose_matrix,
    smooth_poses,
    to_crop,
    to_frame,
    warp,
)
from dfer_dist.data.faces.tracking import DETECTORS, HOG, track_face
from dfer_dist.utils.errors import UserError

# Default width and height of a crop, pixels.
FACE_SIZE = 224

# Fraction of a video's frames that must show the face for the video to be used.
MIN_FACE_FRACTION = 0.5


@dataclass(frozen=True)
class FaceOptions:
    """How faces are cropped.

    Attributes
    ----------
    keep_uncropped : bool
        Keep clips with a face in too few frames, as whole frames; otherwise they are left out.
    detector : str
        One of :data:`~dfer_dist.data.faces.tracking.DETECTORS`.

    Raises
    ------
    UserError
        If there is no such detector.
    """

    keep_uncropped: bool = False
    detector: str = HOG

    def __post_init__(self) -> None:
        """Check the name of the detector."""
        if self.detector not in DETECTORS:
            names = " or ".join(DETECTORS)
            raise UserError(f"unknown detector '{self.detector}': choose {names}")


@dataclass(frozen=True)
class FaceClip:
    """Position of the face in each frame of a video.

    Attributes
    ----------
    landmarks : float32 array [T, 68, 2]
        x and y in pixels of the crop, the center of its upper left pixel at (0, 0), as measured in
        each frame (not smoothed). NaN where the face was not found.
    found : bool array [T]
        Frames in which the face was found.
    matrices : float64 array [T, 2, 3]
        From points of the crop to points of the frame, smoothed over time, interpolated where the
        face was not found.
    size : int
        Width and height of the crop, pixels.
    """

    landmarks: np.ndarray
    found: np.ndarray
    matrices: np.ndarray
    size: int

    @property
    def fraction(self) -> float:
        """Fraction of the frames in which the face was found; 0 for a video without frames."""
        return float(self.found.mean()) if len(self.found) else 0.0

    def fraction_outside(self, height: int, width: int) -> float:
        """Return the part of the area of all crops that is outside of frames of that size."""
        places = (np.arange(16) + 0.5) * self.size / 16 - 0.5
        grid = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
        points = np.array([to_frame(matrix, grid) for matrix in self.matrices]) + 0.5
        return float(1 - ((points >= 0) & (points <= [width, height])).all(-1).mean())

    def crops(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the crops, uint8 [size, size, 3] each, of the frames that the face was found in.

        Raises
        ------
        ValueError
            If the number of frames is another one, or none of them had a face.
        """
        for frame, matrix in zip(frames, self.matrices, strict=True):
            yield warp(frame, matrix, self.size)


def find_face(frames: Iterable[np.ndarray], size: int = FACE_SIZE, detector: str = HOG) -> FaceClip:
    """Detect, track and align the face of a video: in every crop the eyes are level and in place.

    Parameters
    ----------
    frames : iterable of uint8 arrays [H, W, 3], RGB
        Read once, and not kept. Read them again for :meth:`FaceClip.crops`: smoothing needs all
        frames first.
    size : int
        Width and height of the crop, pixels.
    detector : str
        One of :data:`~dfer_dist.data.faces.tracking.DETECTORS`.

    Raises
    ------
    UserError
        If dlib or its weights are not installed.
    """
    track = track_face(frames, detector)
    if not track.found.any():
        return FaceClip(track.points, track.found, np.empty((0, 2, 3)), size)
    poses = smooth_poses(face_pose(track.points), track.shots)
    matrices = np.array([pose_matrix(pose, FACE, size) for pose in poses])
    points = track.points.astype(np.float64)
    landmarks = [to_crop(matrix, own) for matrix, own in zip(matrices, points, strict=True)]
    return FaceClip(np.array(landmarks, np.float32), track.found, matrices, size)
