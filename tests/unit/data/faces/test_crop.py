from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from skimage import data

from dfer_dist.data.faces.alignment import FACE, face_pose, to_crop, warp
from dfer_dist.data.faces.crop import FACE_SIZE, FaceClip, find_face
from dfer_dist.data.video.decode import Video
from tests.helpers.data.videos import EYES_IN_CROP, Pose, draw, encode, moving_head, two_heads


def true_eyes(clip: FaceClip, poses: list[Pose]) -> np.ndarray:
    """Return the true point between the eyes in each crop, [T, 2]."""
    return np.array(
        [to_crop(m, np.array([p.x, p.y])) for m, p in zip(clip.matrices, poses, strict=True)]
    )


def test_crops_keep_a_moving_face_in_place(moving_clip: FaceClip) -> None:
    """The head moves by 240 pixels, rotates by 60 degrees, and grows by a factor of 1.5."""
    marks = moving_clip.landmarks[moving_clip.found]
    assert marks.std(0).max() < 2.0 and marks.std(0).mean() < 1.0
    pose = face_pose(marks)
    assert np.degrees(np.abs(pose[:, 3])).max() < 1.5
    assert np.abs(pose[:, :2] - EYES_IN_CROP).max() < 2.0
    assert np.abs(np.exp(pose[:, 2]) / (FACE.distance * FACE_SIZE) - 1).max() < 0.04
    true = true_eyes(moving_clip, moving_head())
    unbroken = np.diff(np.flatnonzero(moving_clip.found)) == 1
    steps = np.diff(true[moving_clip.found], axis=0)[unbroken]
    # no jitter, in pixels from frame to frame
    assert steps.std(0).max() < 0.22


def test_crops_show_the_original_portrait(moving_video: Video, moving_clip: FaceClip) -> None:
    """Each crop equals the photograph that the video was made of, at the known pose."""
    portrait, poses = data.astronaut(), moving_head()
    crops = list(moving_clip.crops(moving_video))
    assert (
        len(crops) == 50
        and crops[0].shape == (FACE_SIZE, FACE_SIZE, 3)
        and crops[0].dtype == np.uint8
    )
    for t in (0, 12, 36, 49):
        back = np.vstack([poses[t].matrix(), [0, 0, 1]])
        crop_to_portrait = (np.linalg.inv(back) @ np.vstack([moving_clip.matrices[t], [0, 0, 1]]))[
            :2
        ]
        # the face, without the edge of the portrait
        expected = warp(portrait, crop_to_portrait, FACE_SIZE)[40:200, 50:170].astype(int)
        assert np.abs(crops[t][40:200, 50:170] - expected).mean() < 8
        # it differs when shifted by three pixels
        assert np.abs(crops[t][40:200, 53:173] - expected).mean() > 10


def test_find_face_is_deterministic(tmp_path: Path) -> None:
    video = Video(encode(tmp_path / "a.mp4", draw(two_heads(8))))

    def digest() -> str:
        clip = find_face(video)
        crops = [crop.tobytes() for crop in clip.crops(video)]
        return hashlib.sha256(b"".join([clip.landmarks.tobytes(), *crops])).hexdigest()

    assert digest() == digest()


def test_rotated_video_gives_the_same_face(tmp_path: Path) -> None:
    upright = [[Pose(180 + t, 200, 1.0)] for t in range(12)]
    turned = (np.rot90(frame) for frame in draw(upright, 360, 480))
    clip = find_face(
        Video(encode(tmp_path / "a.mp4", map(np.ascontiguousarray, turned), rotation=-90))
    )
    assert clip.found.all()
    assert np.abs(true_eyes(clip, [p for (p,) in upright]) - EYES_IN_CROP).max() < 4


def test_video_without_a_face_has_none() -> None:
    clip = find_face(draw([[] for _ in range(12)]))
    assert clip.fraction == 0 and len(clip.found) == 12 and np.isnan(clip.landmarks).all()


def test_poses_are_not_smoothed_across_a_cut() -> None:
    heads = [Pose(160, 150, 0.9)] * 10 + [Pose(450, 160, 1.3, 10)] * 10
    clip = find_face(draw([[p] for p in heads]))
    # the same person before and after
    assert clip.found.all()
    assert np.abs(true_eyes(clip, heads) - EYES_IN_CROP).max() < 4
