"""Faces in films: found, followed, brought to their place, and never made up."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dfer_dist.data.faces.alignment import (
    FACE,
    face_pose,
    pose_matrix,
    smooth_poses,
    to_crop,
    to_frame,
    warp,
)
from dfer_dist.data.faces.contact_sheet import draw_sheet
from dfer_dist.data.faces.crop import FaceClip, find_face
from dfer_dist.data.faces.tracking import load_models
from dfer_dist.data.video.decode import Video
from dfer_dist.utils.errors import UserError
from tests.helpers.videos import Pose, busy, draw, encode, swing

SIDE = 224
EYES_THERE = np.array([(SIDE - 1) / 2, FACE.height * SIDE - 0.5])


@pytest.fixture(scope="module")
def busy_film(tmp_path_factory: pytest.TempPathFactory) -> Video:
    """50 frames: a head that moves, turns by 30 degrees both ways and grows, away in frames 22 to 33; a small one all the time."""
    return Video(encode(tmp_path_factory.mktemp("films") / "busy.mp4", draw(busy())))


@pytest.fixture(scope="module")
def busy_clip(busy_film: Video) -> FaceClip:
    return find_face(busy_film)


def true_eyes(clip: FaceClip, poses: list[Pose]) -> np.ndarray:
    """Where the point between the eyes truly is in each crop, [T, 2]."""
    return np.array(
        [to_crop(m, np.array([p.x, p.y])) for m, p in zip(clip.matrices, poses, strict=True)]
    )


def test_found_says_in_which_frames_the_face_is(busy_clip: FaceClip) -> None:
    away = np.flatnonzero(~busy_clip.found)
    assert away.tolist() == list(range(22, 34))
    assert busy_clip.share == pytest.approx(0.76)
    assert (
        np.isnan(busy_clip.landmarks[away]).all()
        and np.isfinite(busy_clip.landmarks[busy_clip.found]).all()
    )
    assert busy_clip.landmarks.shape == (50, 68, 2) and busy_clip.landmarks.dtype == np.float32


def test_the_large_face_is_taken_though_the_small_one_is_there_longer(busy_clip: FaceClip) -> None:
    eyes = np.array([to_frame(m, EYES_THERE) for m in busy_clip.matrices])
    truth = np.array([[p.x, p.y] for p in swing()])
    assert np.abs(eyes - truth)[busy_clip.found].max() < 4


def test_crops_hold_the_face_still_while_it_moves(busy_clip: FaceClip) -> None:
    """Known transforms: 240 pixels across, 60 degrees of tilt and a factor 1.5 in size leave a pixel or two."""
    marks = busy_clip.landmarks[busy_clip.found]
    assert marks.std(0).max() < 2.0 and marks.std(0).mean() < 1.0
    pose = face_pose(marks)
    assert np.degrees(np.abs(pose[:, 3])).max() < 1.5  # eyes are level
    assert np.abs(pose[:, :2] - EYES_THERE).max() < 2.0  # and in their place
    assert np.abs(np.exp(pose[:, 2]) / (FACE.distance * SIDE) - 1).max() < 0.04
    true = true_eyes(busy_clip, swing())
    unbroken = np.diff(np.flatnonzero(busy_clip.found)) == 1
    steps = np.diff(true[busy_clip.found], axis=0)[unbroken]
    assert steps.std(0).max() < 0.22  # pixels from frame to frame: no jitter


def test_crops_are_the_portrait_itself(busy_film: Video, busy_clip: FaceClip) -> None:
    """Each crop, taken back by the known transform, is the photograph that the film was made of."""
    portrait, poses = data.astronaut(), swing()
    crops = list(busy_clip.crops(busy_film))
    assert len(crops) == 50 and crops[0].shape == (SIDE, SIDE, 3) and crops[0].dtype == np.uint8
    for t in (0, 12, 36, 49):
        back = np.vstack([poses[t].matrix(), [0, 0, 1]])
        crop_to_portrait = (np.linalg.inv(back) @ np.vstack([busy_clip.matrices[t], [0, 0, 1]]))[:2]
        expected = warp(portrait, crop_to_portrait, SIDE)[40:200, 50:170].astype(
            int
        )  # the face, clear of the portrait's edge
        assert np.abs(crops[t][40:200, 50:170] - expected).mean() < 8
        assert (
            np.abs(crops[t][40:200, 53:173] - expected).mean() > 10
        )  # three pixels aside it is another picture


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_crop_takes_its_pixels_from_where_the_matrix_says(factor: int) -> None:
    """A pixel of the crop is the mean of the frame's pixels that it covers, to the pixel, also where the frame is shrunk first."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    matrix = np.array(
        [[factor, 0, 9 * factor + (factor - 1) / 2], [0, factor, 4 * factor + (factor - 1) / 2]],
        float,
    )
    crop = warp(tiles.repeat(factor, 0).repeat(factor, 1), matrix, 20)
    assert np.array_equal(crop, tiles[4:24, 9:29])


def test_beyond_the_frame_is_black() -> None:
    frame = np.full((30, 40, 3), 200, np.uint8)
    crop = warp(frame, np.array([[1.0, 0, 30], [0, 1, 0]]), 20)
    assert (crop[:, :10] == 200).all() and (crop[:, 10:] == 0).all()
    assert (warp(frame, np.array([[1.0, 0, 300], [0, 1, 0]]), 20) == 0).all()


def test_the_same_film_gives_the_same_bytes(tmp_path: Path) -> None:
    video = Video(encode(tmp_path / "a.mp4", draw(busy(12))))

    def digest() -> str:
        clip = find_face(video)
        return hashlib.sha256(
            b"".join([clip.landmarks.tobytes(), *(c.tobytes() for c in clip.crops(video))])
        ).hexdigest()

    assert digest() == digest()


def test_telephones_film_gives_the_same_face(tmp_path: Path) -> None:
    upright = [[Pose(180 + t, 200, 1.0)] for t in range(12)]
    turned = (np.rot90(frame) for frame in draw(upright, 360, 480))
    clip = find_face(Video(encode(tmp_path / "a.mp4", map(np.ascontiguousarray, turned), turn=-90)))
    assert clip.found.all()
    assert np.abs(true_eyes(clip, [p for (p,) in upright]) - EYES_THERE).max() < 4


def test_film_without_a_face_has_none(tmp_path: Path) -> None:
    clip = find_face(draw([[] for _ in range(12)]))
    assert clip.fraction == 0 and len(clip.found) == 12 and np.isnan(clip.landmarks).all()
    with pytest.raises(UserError, match="no face in any of 12 frames"):
        draw_sheet(Video(encode(tmp_path / "a.mp4", draw([[] for _ in range(12)]))))


def test_a_cut_is_not_smoothed_over() -> None:
    heads = [Pose(160, 150, 0.9)] * 10 + [Pose(450, 160, 1.3, 10)] * 10
    clip = find_face(draw([[p] for p in heads]))
    assert clip.found.all()  # one person before and after
    assert np.abs(true_eyes(clip, heads) - EYES_THERE).max() < 4


def test_two_people_are_not_made_one() -> None:
    """Two stretches of film with different people: only those of the one who weighs more count."""
    other = np.ascontiguousarray(
        Image.fromarray(data.lfw_subset()[0].clip(0, 1) * 255).convert("RGB").resize((150, 150), 2)
    )
    ground = np.full((360, 640, 3), 90, np.uint8)
    ground[100:250, 400:550] = other
    assert load_models().detect(ground), "the second face is one for the detector"
    clip = find_face([*draw([[Pose(200, 150)]] * 12), *[ground] * 6])
    assert clip.found.tolist() == [True] * 12 + [False] * 6


def test_sheet_draws_eight_frames_and_their_crops(busy_film: Video) -> None:
    sheet = np.asarray(draw_sheet(busy_film))
    assert sheet.shape[1] == 8 * 160
    green = (sheet == (60, 230, 90)).all(-1).reshape(len(sheet), 8, 160).sum((0, 2))
    assert (green > 200).tolist() == [True, True, True, True, False, True, True, True]


def test_pose_of_a_turned_head_keeps_its_size() -> None:
    """Eyes seen closer together by a turn of 50 degrees: the height of the nose still tells the size."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[31:36] = (100, 100), (160, 100), (130, 142)
    front = face_pose(points)
    points[:, 0] *= np.cos(np.radians(50))
    assert np.exp(front[2]) == pytest.approx(60) and np.exp(face_pose(points)[2]) == pytest.approx(
        60
    )
    corner = to_crop(pose_matrix(front, FACE, SIDE), np.array([[100.0, 100], [160, 100]]))
    assert corner[:, 1] == pytest.approx(EYES_THERE[1]) and np.ptp(corner[:, 0]) == pytest.approx(
        FACE.distance * SIDE
    )


def test_smoothing_follows_steady_motion_and_bridges_gaps() -> None:
    t = np.arange(40.0)
    truth = np.column_stack([3 * t, 100 - t, 0.01 * t, np.radians(170 + t)])
    poses = truth.copy()
    poses[:, 3] = (poses[:, 3] + np.pi) % (
        2 * np.pi
    ) - np.pi  # an angle that jumps from 180 to -180 degrees
    shots = np.zeros(40, int)
    shots[15:20], shots[37:] = -1, -1
    poses[shots < 0] = np.nan
    smooth = smooth_poses(poses, shots)
    assert smooth[:37] == pytest.approx(truth[:37]) and (smooth[37:] == smooth[36]).all()
    noisy = poses + np.random.default_rng(0).normal(0, 1, poses.shape)
    assert np.std((smooth_poses(noisy, shots) - truth)[3:34, 0]) < 0.6


@pytest.mark.parametrize("missing", ["dlib", "face-recognition-models"])
def test_without_dlib_or_its_weights_the_command_that_helps_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    load_models.cache_clear()
    if missing == "dlib":
        monkeypatch.setitem(sys.modules, "dlib", None)
    else:
        monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(UserError, match=r"pip install 'dfer_dist\[faces\]'"):
        find_face([np.zeros((64, 64, 3), np.uint8)])
    load_models.cache_clear()
