"""``dfer pack`` of videos: face crops with landmarks, or whole frames."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import read_array, read_sidecar_tar, sidecar_tar_path
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.video.decode import Video
from dfer_dist.utils.files import read_json
from tests.helpers.cli import dfer
from tests.helpers.data.clips import write_clip
from tests.helpers.data.videos import Pose, draw, encode
from tests.helpers.forked import Done

FRAMES = 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two videos each, a video without a face, a truncated one, and frames."""
    root = tmp_path_factory.mktemp("source") / "mine"
    for label, name in enumerate(("Happy", "Sad")):
        (root / name).mkdir(parents=True)
        for clip in range(2):
            heads = [
                [Pose(120 + 40 * clip + 3 * t, 90, 0.9, 10 * label + t)] for t in range(FRAMES)
            ]
            encode(root / name / f"video {clip}.mp4", draw(heads, 320, 240))
    empty = draw([[] for _ in range(FRAMES)], 320, 240)
    encode(root / "Happy" / "nobody.mp4", empty)
    truncated = root / "Sad" / "truncated.mkv"
    whole = encode(truncated, draw([[Pose(160, 90)]] * 16, 320, 240)).read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    write_clip(root / "Sad" / "frames", 3, seed=0)
    return root


def dfer_pack(videos: Path, out: Path, *arguments: str) -> Done:
    source = ["--dataset", "folder", "--folds", 2, "--root", videos]
    return dfer("pack", *source, "--out", out, "--workers", 1, *arguments, cwd=Path.cwd())


def file_hashes(out: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.iterdir())}


def read_frames(index: Index) -> dict[str, list[np.ndarray]]:
    reader = ClipReader(index)
    clips = [
        reader.read(s, r, lambda key, n: np.arange(n))
        for s, shard in enumerate(index.shards)
        for r in range(shard.clips)
    ]
    return {clip.key: clip.frames for clip in clips}


def test_pack_faces_stores_landmarks_and_reports_the_rest(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dfer_pack(videos, out, "--faces")
    assert done.returncode == 0, done.stderr
    report, index = read_json(out / "pack_report.json"), read_index(out)
    assert {(p["clip"], p["kind"], p["left_out"]) for p in report["problems"]} == {
        ("Happy/nobody", "no face", True),
        ("Sad/truncated", "damaged video", True),
        ("Sad/frames", "no face", True),
    }
    assert "3 of 7 clips left out" in done.stdout
    assert f"0 of {FRAMES} frames of nobody.mp4, at least half are needed" in done.stdout
    assert "0 of 3 frames of folder frames, at least half are needed (see --detector" in done.stdout
    clips = read_frames(index)
    assert sorted(clips) == ["Happy_video_0", "Happy_video_1", "Sad_video_0", "Sad_video_1"]
    for i in range(len(index.shards)):
        for key, members in read_sidecar_tar(index.path(i), "landmarks"):
            landmarks, found = (
                read_array(members["landmarks.npy"]),
                read_array(members["found.npy"]),
            )
            frames = clips.pop(key)
            assert landmarks.shape == (FRAMES, 68, 2) and found.all() and len(frames) == FRAMES
            assert {f.shape for f in frames} == {(224, 224, 3)}
            eyes = landmarks[:, 36:48].mean(1)
            assert np.abs(eyes - [111.5, 91.3]).max() < 3
    assert not clips

    before = file_hashes(out)
    assert "already packed" in dfer_pack(videos, out, "--faces").stdout
    assert file_hashes(out) == before
    # whole frames are another set
    other = dfer_pack(videos, out)
    assert other.returncode == 2 and "was packed with --clips-per-shard 256 --faces" in other.stderr


def test_pack_faces_resumes_to_the_same_bytes(videos: Path, tmp_path: Path) -> None:
    listing = read_dataset("folder", videos, folds=2, prefer_videos=True)
    records = [record for record in listing.records if "video" in record.key]

    def write(out: Path, stop: bool = False) -> None:
        def progress(done: int, total: int) -> None:
            if stop and done == total:
                raise KeyboardInterrupt

        pack(records, "mine", out, 1, 1, progress, classes=listing.classes, faces=True)

    write(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "b", stop=True)
    kept = sorted((tmp_path / "b").glob("*.landmarks.tar"))
    assert kept and not (tmp_path / "b" / "index.json").exists()
    stamps = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "b").glob("*.tar")}
    lost = kept[0].name
    # a shard without its landmarks is not finished
    kept[0].unlink()
    write(tmp_path / "b")
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "b").glob("*.tar")}
    again = {name for name, stamp in stamps.items() if after[name] != stamp}
    assert again == {lost, lost.replace(".landmarks", "")}


def test_pack_without_faces_stores_whole_frames(videos: Path, tmp_path: Path) -> None:
    listing = read_dataset("folder", videos, folds=2)
    index = pack(listing.records, "mine", tmp_path, workers=1, classes=listing.classes)
    clips = read_frames(index)
    assert sorted(clips) == [
        "Happy_nobody",
        "Happy_video_0",
        "Happy_video_1",
        "Sad_frames",
        "Sad_video_0",
        "Sad_video_1",
    ]
    shown = list(Video(videos / "Happy" / "video 0.mp4"))
    for packed, frame in zip(clips["Happy_video_0"], shown, strict=True):
        assert packed.shape == (240, 320, 3)
        assert np.abs(packed.astype(int) - frame).mean() < 2
    assert not any(
        sidecar_tar_path(index.path(i), "landmarks").exists() for i in range(len(index.shards))
    )
    small = pack(
        listing.records, "mine", tmp_path / "small", workers=1, classes=listing.classes, size=64
    )
    assert {f.shape for frames in read_frames(small).values() for f in frames} == {(64, 64, 3)}
