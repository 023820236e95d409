"""Faces in folders of frames, with a detector that finds what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.alignment import FACE, pose_matrix
from dfer_dist.data.faces.crop import FaceClip, FaceOptions
from dfer_dist.data.packing import load_clip as module
from dfer_dist.data.packing.load_clip import LoadedClip, load_clip
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport, PackSettings
from dfer_dist.data.packing.shard_writer import ShardJob, hash_json
from dfer_dist.data.shards.sidecars import read_array
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.errors import UserError
from launch.commands.data import pack as pack_command
from tests.helpers.data.clips import write_clip

# Eyes in the middle of frames of 48 x 40, whose distance makes a crop as wide as 24 pixels.
POSE = np.array([24.0, 18.0, np.log(0.3 * 24), 0.0])


@pytest.fixture
def clip(tmp_path: Path) -> ClipRecord:
    """A clip of five frames, 48 x 40."""
    write_clip(tmp_path / "c", 5, seed=0)
    return ClipRecord("c", 0, "fold1", "c", tmp_path / "c")


def detect(
    monkeypatch: pytest.MonkeyPatch,
    found: list[bool],
    pose: np.ndarray = POSE,
    wanted: str = "hog",
) -> None:
    """Replace the detector."""

    def find_face(frames: Iterable[np.ndarray], size: int, detector: str) -> FaceClip:
        assert detector == wanted
        num_frames = sum(1 for _ in frames)
        flags = np.array(found[:num_frames], bool)
        points = np.full((num_frames, 68, 2), 7, np.float32)
        points[~flags] = np.nan
        matrices = np.array([pose_matrix(pose, FACE, size)] * num_frames)
        return FaceClip(points, flags, matrices, size)

    monkeypatch.setattr(module, "find_face", find_face)


def summarize(loaded: LoadedClip) -> list[tuple[str, bool]]:
    return [(fault.kind, fault.left_out) for fault in loaded.faults]


def landmarks(loaded: LoadedClip) -> tuple[np.ndarray, np.ndarray]:
    assert loaded.landmarks is not None
    return (
        read_array(loaded.landmarks["landmarks.npy"]),
        read_array(loaded.landmarks["found.npy"]),
    )


def test_crops_and_landmarks_of_frames(clip: ClipRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    detect(monkeypatch, [True, True, False, True, True])
    loaded = load_clip(clip, 32, FaceOptions())
    assert not loaded.faults and loaded.num_encoded == len(loaded.jpegs) == 5
    points, found = landmarks(loaded)
    assert found.tolist() == [True, True, False, True, True]
    assert np.isnan(points[2]).all() and (points[found] == 7).all()


def test_damaged_frames_have_neither_crop_nor_landmarks(
    clip: ClipRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, [True] * 5)
    (clip.media / "00001.jpg").write_bytes(b"")
    loaded = load_clip(clip, 32, FaceOptions())
    assert summarize(loaded) == [("unreadable frame", False)]
    assert loaded.num_dropped == 1 and len(loaded.jpegs) == len(landmarks(loaded)[1]) == 4
    loaded = load_clip(clip, 32, FaceOptions(), 10)
    assert summarize(loaded)[-1] == ("too many bad frames", True)


def test_clip_without_a_readable_frame_is_left_out(
    clip: ClipRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, [])
    for file in clip.media.iterdir():
        file.write_bytes(b"")
    for keep in (False, True):
        loaded = load_clip(clip, 32, faces=FaceOptions(keep))
        assert summarize(loaded)[-1] == ("no frames", True)
        assert "00000.jpg cannot be decoded" in loaded.faults[-1].reason


def test_frames_of_several_sizes_are_left_out(
    clip: ClipRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, [True] * 5)
    Image.new("RGB", (20, 40)).save(clip.media / "00003.jpg")
    loaded = load_clip(clip, 32, FaceOptions())
    assert summarize(loaded) == [("sizes differ", True)]
    reason = "00003.jpg has 20 x 40 pixels, the frames before it 48 x 40: a face cannot be tracked"
    assert reason in loaded.faults[0].reason


def test_frames_that_are_face_crops_already_are_reported(
    clip: ClipRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crop of 80 x 80 pixels around a face of which the frame has only 48 x 40."""
    detect(monkeypatch, [True] * 5, np.array([24.0, 16.0, np.log(0.3 * 80), 0.0]))
    loaded = load_clip(clip, 32, FaceOptions())
    assert summarize(loaded) == [("crops reach outside", False)]
    share, reason = loaded.faults[0].reason.split("%", 1)
    assert abs(int(share) - (100 - 100 * 48 * 40 / 80**2)) <= 2
    assert (
        reason.startswith(" of its crops are outside of its frames")
        and "Then omit --faces" in reason
    )


@pytest.mark.parametrize("size", [None, 32])
def test_clip_without_a_face_is_kept_if_wanted(
    clip: ClipRecord, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, [True, True, False, False, False])
    assert summarize(load_clip(clip, size, FaceOptions())) == [("no face", True)]
    loaded = load_clip(clip, size, FaceOptions(keep_uncropped=True))
    assert summarize(loaded) == [("no face", False)]
    reason = "the face is in 2 of 5 frames of folder c: its whole frames are packed"
    assert loaded.faults[0].reason == reason
    assert list(loaded.jpegs) == list(load_clip(clip, size or 224).jpegs)
    points, found = landmarks(loaded)
    assert points.shape == (5, 68, 2) and np.isnan(points).all() and not found.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_uncropped": True}, "--keep-uncropped is for --faces: give both, or neither"),
        ({"detector": "cnn"}, "--detector is for --faces: give both, or neither"),
        ({"detector": "yolo", "faces": True}, "unknown detector 'yolo': choose hog or cnn"),
    ],
)
def test_options_for_faces_are_checked(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        pack_command("folder", tmp_path / "in", tmp_path / "out", **options)


def test_detector_is_used_recorded_and_part_of_the_set(
    clip: ClipRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, [True] * 5, wanted="cnn")
    options = FaceOptions(detector="cnn")
    pack([clip], "dfew", tmp_path / "out", workers=1, faces=options)
    settings = PackReport.read(tmp_path / "out" / REPORT).settings
    assert settings.face_options == options
    message = "was packed with --clips-per-shard 256 --faces --detector cnn: give the same"
    with pytest.raises(UserError, match=message):
        pack([clip], "dfew", tmp_path / "out", workers=1, faces=True)


def test_digest_of_the_default_detector_is_that_of_earlier_versions(
    clip: ClipRecord, tmp_path: Path
) -> None:
    def digest(**settings: Any) -> str:
        return ShardJob(
            tmp_path / "a.tar", (clip,), 7, PackSettings(256, faces=True, **settings), False
        ).digest()

    sizes = [[f"{i:05d}.jpg", (clip.media / f"{i:05d}.jpg").stat().st_size] for i in range(5)]
    row = ["c", 0, "fold1", "c", None, sizes]
    assert digest() == hash_json(["a.tar", 7, None, True, [row]])
    assert len({digest(), digest(detector="cnn"), digest(keep_uncropped=True)}) == 3


def test_set_of_a_version_without_faces_of_frames_is_refused(
    clip: ClipRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, [True] * 5)
    pack([clip], "dfew", tmp_path / "out", workers=1, faces=True)
    file = tmp_path / "out" / REPORT
    values = json.loads(file.read_text())
    problem = {"clip": "d", "split": "fold1", "kind": "no video", "left_out": True}
    values["problems"] = [{**problem, "reason": "it has only frames: start and end are of videos"}]
    file.write_text(json.dumps(values))
    pack([clip], "dfew", tmp_path / "out", workers=1, faces=True)
    values["problems"] = [{**problem, "reason": "it has only frames: faces are detected in videos"}]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="earlier version, which detected faces in videos only"):
        pack([clip], "dfew", tmp_path / "out", workers=1, faces=True)
