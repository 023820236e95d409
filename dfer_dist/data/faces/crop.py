"""A film's face as a steady square crop, with its landmarks in the crop's pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dfer_dist.data.faces.alignment import FACE, face_pose, pose_matrix, smooth_poses, to_crop, warp
from dfer_dist.data.faces.tracking import track_face


@dataclass(frozen=True)
class FaceClip:
    """Where the face of a film is.

    Attributes
    ----------
    landmarks : float32 array [T, 68, 2]
        x and y in pixels of the crop, the centre of its upper left pixel at (0, 0), as measured in each frame (not smoothed);
        NaN where the face was not found.
    found : bool array [T]
        In which frames it was found.
    matrices : float64 array [T, 2, 3]
        From points of the crop to points of the frame, smoothed over time, interpolated where the face was not found.
    side : int
        Of the crop, pixels.
    """

    landmarks: np.ndarray
    found: np.ndarray
    matrices: np.ndarray
    side: int

    @property
    def share(self) -> float:
        """Part of the frames in which the face was found; 0 for a film without frames."""
        return float(self.found.mean()) if len(self.found) else 0.0

    def crops(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The crops, uint8 [side, side, 3] each, from the frames that the face was found in, one after the other.

        Raises
        ------
        ValueError
            If these are not as many frames as before, or none of them had a face.
        """
        for frame, matrix in zip(frames, self.matrices, strict=True):
            yield warp(frame, matrix, self.side)


def find_face(frames: Iterable[np.ndarray], side: int = 224) -> FaceClip:
    """Find, follow and align the face of a film: eyes level and at a fixed place in every crop.

    Parameters
    ----------
    frames : iterable of uint8 arrays [H, W, 3], RGB
        Read once; none is kept. Read them again for :meth:`FaceClip.crops`: smoothing has to know all frames first.
    side : int
        Of the crop, pixels.

    Raises
    ------
    UserError
        If dlib or its weights are not installed.
    """
    track = track_face(frames)
    found = track.found
    if not found.any():
        return FaceClip(track.points, found, np.empty((0, 2, 3)), side)
    poses = smooth_poses(face_pose(track.points), track.shots)
    matrices = np.array([pose_matrix(pose, FACE, side) for pose in poses])
    landmarks = np.array(
        [to_crop(m, p) for m, p in zip(matrices, track.points.astype(np.float64), strict=True)],
        np.float32,
    )
    return FaceClip(landmarks, found, matrices, side)
