from __future__ import annotations

import numpy as np
import pytest

from dfer_dist.data.faces.alignment import (
    FACE,
    face_pose,
    pose_matrix,
    smooth_poses,
    to_crop,
    warp,
)
from dfer_dist.data.faces.crop import FACE_SIZE
from tests.helpers.data.videos import EYES_IN_CROP


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_warp_takes_pixels_from_where_the_matrix_says(factor: int) -> None:
    """Each pixel of the crop is the mean of those it covers, also if the frame is reduced first."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    matrix = np.array(
        [[factor, 0, 9 * factor + (factor - 1) / 2], [0, factor, 4 * factor + (factor - 1) / 2]],
        float,
    )
    crop = warp(tiles.repeat(factor, 0).repeat(factor, 1), matrix, 20)
    assert np.array_equal(crop, tiles[4:24, 9:29])


def test_warp_is_black_outside_of_the_frame() -> None:
    frame = np.full((30, 40, 3), 200, np.uint8)
    crop = warp(frame, np.array([[1.0, 0, 30], [0, 1, 0]]), 20)
    assert (crop[:, :10] == 200).all() and (crop[:, 10:] == 0).all()
    assert (warp(frame, np.array([[1.0, 0, 300], [0, 1, 0]]), 20) == 0).all()


def test_pose_of_a_turned_head_keeps_its_size() -> None:
    """A rotation by 50 degrees brings the eyes together, but the nose still shows the size."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[31:36] = (100, 100), (160, 100), (130, 142)
    front = face_pose(points)
    points[:, 0] *= np.cos(np.radians(50))
    assert np.exp(front[2]) == pytest.approx(60)
    assert np.exp(face_pose(points)[2]) == pytest.approx(60)
    eyes = to_crop(pose_matrix(front, FACE, FACE_SIZE), np.array([[100.0, 100], [160, 100]]))
    assert eyes[:, 1] == pytest.approx(EYES_IN_CROP[1])
    assert np.ptp(eyes[:, 0]) == pytest.approx(FACE.distance * FACE_SIZE)


def test_smoothing_follows_steady_motion_and_fills_gaps() -> None:
    t = np.arange(40.0)
    truth = np.column_stack([3 * t, 100 - t, 0.01 * t, np.radians(170 + t)])
    poses = truth.copy()
    # an angle that jumps from 180 to -180 degrees
    poses[:, 3] = (poses[:, 3] + np.pi) % (2 * np.pi) - np.pi
    shots = np.zeros(40, int)
    shots[15:20], shots[37:] = -1, -1
    poses[shots < 0] = np.nan
    smooth = smooth_poses(poses, shots)
    assert smooth[:37] == pytest.approx(truth[:37]) and (smooth[37:] == smooth[36]).all()
    noisy = poses + np.random.default_rng(0).normal(0, 1, poses.shape)
    assert np.std((smooth_poses(noisy, shots) - truth)[3:34, 0]) < 0.6
