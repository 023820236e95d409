from __future__ import annotations

import importlib.metadata
import math
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dfer_dist.data.faces.alignment import face_pose, to_frame
from dfer_dist.data.faces.crop import FaceClip, find_face
from dfer_dist.data.faces.tracking import load_models, track_face
from dfer_dist.demo.faces import render_clip
from dfer_dist.utils.errors import UserError
from tests.helpers.data.videos import EYES_IN_CROP, Pose, draw, moving_head


def test_found_is_true_in_frames_with_the_face(moving_clip: FaceClip) -> None:
    away = np.flatnonzero(~moving_clip.found)
    assert away.tolist() == list(range(22, 34))
    assert moving_clip.fraction == pytest.approx(0.76)
    assert np.isnan(moving_clip.landmarks[away]).all()
    assert np.isfinite(moving_clip.landmarks[moving_clip.found]).all()
    assert moving_clip.landmarks.shape == (50, 68, 2) and moving_clip.landmarks.dtype == np.float32


def test_large_face_wins_over_small_one_shown_longer(moving_clip: FaceClip) -> None:
    eyes = np.array([to_frame(m, EYES_IN_CROP) for m in moving_clip.matrices])
    truth = np.array([[p.x, p.y] for p in moving_head()])
    assert np.abs(eyes - truth)[moving_clip.found].max() < 4


def test_two_people_are_not_merged() -> None:
    """Of two parts of a video with different people only that of the main one counts."""
    other = np.ascontiguousarray(
        Image.fromarray(data.lfw_subset()[0].clip(0, 1) * 255).convert("RGB").resize((150, 150), 2)
    )
    background = np.full((360, 640, 3), 90, np.uint8)
    background[100:250, 400:550] = other
    assert load_models().search(background), "the detector finds the second face"
    clip = find_face([*draw([[Pose(200, 150)]] * 12), *[background] * 6])
    assert clip.found.tolist() == [True] * 12 + [False] * 6


@pytest.mark.parametrize("degrees", [-50, 75])
def test_cnn_finds_a_tilted_face_that_hog_misses(degrees: float) -> None:
    frames = list(draw([[Pose(320, 150, 1.0, degrees)]]))
    assert not track_face(frames).found.any()
    track = track_face(frames, "cnn")
    x, y, _, angle = face_pose(track.points[0])
    assert math.hypot(x - 320, y - 150) < 5
    assert math.degrees(angle) == pytest.approx(degrees, abs=6)


def test_cnn_finds_a_face_whose_mouth_is_covered() -> None:
    (frame,) = draw([[Pose(320, 150)]])
    frame[185:] = 120
    assert not track_face([frame]).found.any()
    x, y, *_ = face_pose(track_face([frame], "cnn").points[0])
    assert math.hypot(x - 320, y - 150) < 15


def test_cnn_finds_what_hog_finds_at_the_same_place() -> None:
    frames = list(draw([[Pose(300, 150), Pose(570, 70, 0.45)]] * 3))
    hog, cnn = track_face(frames), track_face(frames, "cnn")
    assert hog.found.all() and cnn.found.all()
    assert np.array_equal(hog.points, cnn.points)


def test_cnn_finds_no_face_where_there_is_none() -> None:
    assert not track_face([data.coffee(), *draw([[]])], "cnn").found.any()


def test_dlib_landmarks_match_those_of_rendered_faces() -> None:
    """dlib was trained on photographs only, but detects some rendered faces too."""
    for label in (0, 3):
        clip = render_clip(label, 9 * label + 2, (3, label), 64)
        track = track_face(list(clip.frames[::6]))
        assert track.found.all()
        apart = np.linalg.norm(track.points - clip.landmarks[::6], axis=-1).mean(0)
        # pixels of 64
        assert apart.mean() < 3 and apart.max() < 7


@pytest.mark.parametrize("missing", ["dlib", "face-recognition-models"])
def test_missing_dlib_or_weights_name_the_pip_command(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_largest_face_has_the_descriptor_of_its_person() -> None:
    models = load_models()
    two = [Pose(200.0, 180.0, 0.9), Pose(500.0, 180.0, 0.5)]
    large, small, turned = draw([two, [Pose(400.0, 170.0, 0.7)], [Pose(320.0, 180.0, 0.8, 10.0)]])
    found = [models.describe_largest(frame) for frame in (large, small, turned)]
    vectors = np.array([face[0] for face in found if face])
    assert vectors.shape == (3, 128)
    assert max(np.linalg.norm(a - b) for a in vectors for b in vectors) < 0.4
    assert found[0] is not None and found[0][1].shape == (256, 256, 3)
    assert models.describe_largest(np.full((360, 640, 3), 120, np.uint8)) is None
