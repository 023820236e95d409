"""``dfer pack --faces`` of folders of frames, and clips that are kept without a face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.crop import FaceOptions
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import PackReport
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import read_array, read_sidecar_tar
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.video.decode import Video
from dfer_dist.utils.errors import UserError
from launch.commands.data import pack as pack_command
from tests.helpers.data.videos import EYES_IN_CROP, Pose, draw, encode

FRAMES = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips with a face and two without; of each kind a video and the folder of its frames."""
    root = tmp_path_factory.mktemp("source") / "mine"
    heads = [[Pose(120 + 4 * t, 100 + t, 0.9, 3.0 * t)] for t in range(FRAMES)]
    for name, poses in (("face", heads), ("nobody", [[]] * FRAMES)):
        (root / "Happy").mkdir(parents=True, exist_ok=True)
        video = encode(root / "Happy" / f"{name}.mp4", draw(poses, 320, 240))
        folder = root / "Sad" / name
        folder.mkdir(parents=True)
        for t, frame in enumerate(Video(video)):
            Image.fromarray(frame).save(folder / f"{t:04d}.png")
    return root


def read_clips(index: Index) -> dict[str, tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """Return frames, landmarks and found frames of each clip."""
    reader, clips = ClipReader(index), {}
    for i, shard in enumerate(index.shards):
        rows = [reader.read(i, row, lambda _, n: np.arange(n)) for row in range(shard.clips)]
        landmarks = dict(read_sidecar_tar(index.path(i), "landmarks"))
        for clip in rows:
            points, found = (
                read_array(landmarks[clip.key][f"{name}.npy"]) for name in ("landmarks", "found")
            )
            clips[clip.key] = (clip.frames, points, found)
    return clips


def test_frames_are_cropped_like_the_video_they_are_of(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"folds": 2, "faces": True, "keep_uncropped": True, "workers": 1}
    pack_command("folder", source, tmp_path / "out", **options)
    assert "clips without a face, packed uncropped: 2" in capsys.readouterr().out
    clips = read_clips(read_index(tmp_path / "out"))
    assert len(clips) == 4
    for name in ("face", "nobody"):
        of_video, of_frames = clips[f"Happy_{name}"], clips[f"Sad_{name}"]
        # PNGs hold the pixels of the video without loss
        assert np.array_equal(of_video[0], of_frames[0])
        assert np.array_equal(of_video[1], of_frames[1], equal_nan=True)
        assert np.array_equal(of_video[2], of_frames[2])
        assert np.shape(of_frames[0]) == (FRAMES, 224, 224, 3)
        assert of_frames[1].shape == (FRAMES, 68, 2)
    assert clips["Sad_face"][2].all() and not clips["Sad_nobody"][2].any()
    eyes = clips["Sad_face"][1][:, 36:48].mean(1)
    assert np.abs(eyes - EYES_IN_CROP).max() < 3
    whole = np.asarray(Image.open(source / "Sad/nobody/0003.png").resize((224, 224), 3))
    assert np.abs(clips["Sad_nobody"][0][3].astype(int) - whole).mean() < 2

    report = PackReport.read(tmp_path / "out" / "pack_report.json")
    assert (report.clips, report.uncropped_clips, report.settings.keep_uncropped) == (4, 2, True)
    assert {(p.clip, p.kind, p.left_out) for p in report.problems} == {
        ("Happy/nobody", "no face", False),
        ("Sad/nobody", "no face", False),
    }


def test_jpegs_of_frames_give_nearly_the_crops_of_the_video(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "Sad" / "face"
    folder.mkdir(parents=True)
    for file in (source / "Sad" / "face").iterdir():
        Image.open(file).save(folder / f"{file.stem}.jpg", quality=95)
    (folder / "0009.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "mine" / "Happy").mkdir()
    (tmp_path / "mine" / "Happy" / "face.mp4").symlink_to(source / "Happy" / "face.mp4")
    listing = read_dataset("folder", tmp_path / "mine", folds=2)
    index = pack(
        listing.records, "mine", tmp_path / "out", workers=1, classes=listing.classes, faces=True
    )
    clips = read_clips(index)
    of_video, of_frames = clips["Happy_face"], clips["Sad_face"]
    # the damaged frame is dropped
    assert len(of_frames[0]) == FRAMES
    assert np.abs(np.array(of_video[0], int) - np.array(of_frames[0], int)).mean() < 4
    assert np.abs(of_video[1] - of_frames[1]).mean() < 1


def test_clips_without_a_face_are_left_out_by_default(source: Path, tmp_path: Path) -> None:
    listing = read_dataset("folder", source, folds=2)
    options = {"workers": 1, "classes": listing.classes}
    index = pack(listing.records, "mine", tmp_path, faces=True, **options)
    assert {clip.clip for clip in index.left_out} == {"Happy/nobody", "Sad/nobody"}
    with pytest.raises(UserError, match="was packed with --clips-per-shard 256 --faces: give"):
        pack(listing.records, "mine", tmp_path, faces=FaceOptions(True), **options)


def test_cnn_packs_tilted_faces_that_hog_leaves_out(tmp_path: Path) -> None:
    for label, name, degrees in (("Happy", "tilted", 55.0), ("Sad", "upright", 0.0)):
        folder = tmp_path / "mine" / label / name
        folder.mkdir(parents=True)
        heads = [[Pose(150 + t, 120, 0.9, degrees)] for t in range(3)]
        for t, frame in enumerate(draw(heads, 320, 240)):
            Image.fromarray(frame).save(folder / f"{t}.png")
    listing = read_dataset("folder", tmp_path / "mine", folds=2)
    options = {"workers": 1, "classes": listing.classes}
    records = [replace(record, split="test") for record in listing.records]
    by_hog = pack(records, "mine", tmp_path / "hog", faces=True, **options)
    assert [clip.clip for clip in by_hog.left_out] == ["Happy/tilted"]
    index = pack(records, "mine", tmp_path / "cnn", faces=FaceOptions(detector="cnn"), **options)
    frames, points, found = read_clips(index)["Happy_tilted"]
    assert found.all() and len(frames) == 3
    eyes = np.stack([points[:, 36:42].mean(1), points[:, 42:48].mean(1)], 1)
    # level, and in place
    assert np.abs(eyes[:, 0, 1] - eyes[:, 1, 1]).max() < 4
    assert np.abs(eyes.mean(1) - EYES_IN_CROP).max() < 4
