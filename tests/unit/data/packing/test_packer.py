from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import simplejpeg

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport
from dfer_dist.data.shards.index import content_hash, read_index
from dfer_dist.data.sources.records import ClipRecord, Fault
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import encode_png, write_clip

BLACK = np.zeros((40, 48, 3), np.uint8)
JPEG_40_48 = simplejpeg.encode_jpeg(BLACK)
JPEG_40_50 = simplejpeg.encode_jpeg(np.zeros((40, 50, 3), np.uint8))


@pytest.fixture
def clip(tmp_path: Path) -> ClipRecord:
    """A clip of three frames, 48 x 40, of which its list has three."""
    write_clip(tmp_path / "c", 3, seed=0)
    return ClipRecord("c", 0, "fold1", "c", tmp_path / "c", 3)


class FaultCase(NamedTuple):
    """A change of a clip's folder, the fault it causes, and how many frames are packed."""

    change: Callable[[Path], object]
    kind: str
    reason: str
    frames: int | None = None


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def hide_frames(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(".txt"))


def overwrite_frames(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_text("x")


def number_by_face(folder: Path) -> None:
    for i, file in enumerate(sorted(folder.iterdir())):
        for face in range(2):
            shutil.copy(file, folder / f"face_{face}_{i + 1}.jpg")
        file.unlink()


def replace_by_empty_video(folder: Path) -> None:
    folder.with_suffix(".mp4").touch()
    shutil.rmtree(folder)


FAULTS = {
    "deleted": FaultCase(shutil.rmtree, "missing", "neither its folder nor its video"),
    "no image": FaultCase(hide_frames, "no frames", "no image of a known kind, but 3 .txt files"),
    "one frame less": FaultCase(
        lambda c: (c / "00001.jpg").unlink(), "fewer frames", "2 frames exist, 3 are listed", 2
    ),
    "text": FaultCase(
        lambda c: (c / "00001.jpg").write_text("no picture"),
        "unreadable frame",
        "00001.jpg cannot be decoded",
        2,
    ),
    "empty frame": FaultCase(
        lambda c: (c / "00001.jpg").write_bytes(b""),
        "unreadable frame",
        "00001.jpg cannot be decoded",
        2,
    ),
    "half a frame": FaultCase(
        lambda c: truncate(c / "00002.jpg", 500),
        "unreadable frame",
        "00002.jpg cannot be decoded",
        2,
    ),
    "two bytes missing": FaultCase(
        lambda c: truncate(c / "00002.jpg", -2),
        "unreadable frame",
        "00002.jpg cannot be decoded",
        2,
    ),
    "broken link": FaultCase(
        lambda c: (c / "00003.jpg").symlink_to("nowhere"),
        "unreadable frame",
        "00003.jpg cannot be decoded",
        3,
    ),
    "truncated png": FaultCase(
        lambda c: (c / "00003.jpg").write_bytes(encode_png(BLACK)[:-30]),
        "unreadable frame",
        "00003.jpg cannot be decoded",
        3,
    ),
    "all unreadable": FaultCase(overwrite_frames, "no frames", "no frame can be decoded"),
    "sizes": FaultCase(
        lambda c: (c / "00002.jpg").write_bytes(JPEG_40_50),
        "sizes differ",
        "has 50 x 40 pixels, the frames before it 48 x 40",
    ),
    "two faces": FaultCase(
        number_by_face, "several sequences", "face_0_1.jpg, face_1_1.jpg; move each into a folder"
    ),
    "empty video": FaultCase(replace_by_empty_video, "damaged video", "0 frames decoded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_pack_reports_a_fault_and_keeps_other_clips(
    name: str, clip: ClipRecord, tmp_path: Path
) -> None:
    case = FAULTS[name]
    left_out = case.frames is None
    write_clip(tmp_path / "good", 2, seed=1)
    case.change(clip.media)
    good = ClipRecord("good", 1, "fold1", "good", tmp_path / "good")

    index = pack([clip, good], "dfew", tmp_path / "out", workers=1)
    table = index.sidecar(0).to_pydict()
    frames = dict(zip(table["key"], table["frames"], strict=True))
    assert frames == ({"good": 2} if left_out else {"good": 2, "c": case.frames})

    report = PackReport.read(tmp_path / "out" / REPORT)
    problem = report.problems[-1]
    assert (problem.clip, problem.split) == ("c", "fold1")
    assert (problem.kind, problem.left_out) == (case.kind, left_out)
    assert case.reason in problem.reason
    assert "0x" not in problem.reason, "addresses differ from run to run"
    assert (report.listed, report.clips) == (2, 2 - left_out)
    assert report.frames == 2 + (case.frames or 0)
    assert report.splits["fold1"].classes["sadness"] == 1
    assert report.splits["fold1"].problems == len(report.problems)


@pytest.mark.parametrize("name", FAULTS)
def test_pack_strict_stops_at_a_fault(name: str, clip: ClipRecord, tmp_path: Path) -> None:
    write_clip(tmp_path / "good", 2, seed=1)
    FAULTS[name].change(clip.media)
    clips = [clip, ClipRecord("good", 1, "fold1", "good", tmp_path / "good")]
    pack(clips, "dfew", tmp_path / "finished", workers=1)
    # also if the set was packed before without it
    for out in ("finished", "new"):
        with pytest.raises(UserError, match=r"^clip c: .*--strict"):
            pack(clips, "dfew", tmp_path / out, workers=1, strict=True)
    assert not (tmp_path / "new" / "index.json").exists()


def test_pack_reports_faults_of_the_lists(clip: ClipRecord, tmp_path: Path) -> None:
    conflict = Fault("label conflict", "two labels: anger in fold1, fear in fold2", True)
    twice = Fault("listed twice", "twice in the list of fold1")
    untested = Fault("not tested", "in no test list", True)
    clips = [
        clip,
        replace(clip, key="d", source="d", faults=(conflict,)),
        replace(clip, key="e", source="e", faults=(twice,)),
        replace(clip, key="f", source="f", split="none", faults=(untested,)),
    ]
    index = pack(clips, "dfew", tmp_path / "out", workers=1)
    assert sorted(index.sidecar(0)["key"].to_pylist()) == ["c", "e"]
    assert index.splits == ["fold1"]
    report = PackReport.read(tmp_path / "out" / REPORT)
    assert [(p.clip, p.kind, p.left_out) for p in report.problems] == [
        ("d", "label conflict", True),
        ("e", "listed twice", False),
        ("f", "not tested", True),
    ]
    counts = {name: (split.listed, split.clips) for name, split in report.splits.items()}
    assert counts == {"fold1": (3, 2), "none": (1, 0)}
    with pytest.raises(UserError, match="clip d: two labels"):
        pack(clips, "dfew", tmp_path / "strict", strict=True)


def test_pack_rejects_a_split_without_clips(clip: ClipRecord, tmp_path: Path) -> None:
    lost = replace(clip, key="d", source="d", split="fold2", media=tmp_path / "d")
    message = r"no clip of fold2 could be packed; clip d: neither its folder nor .*--root"
    with pytest.raises(UserError, match=message):
        pack([clip, lost], "dfew", tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "index.json").exists()


def test_pack_counts_dropped_frames_of_packed_clips(clip: ClipRecord, tmp_path: Path) -> None:
    for name, frames in (("d", 4), ("e", 20)):
        write_clip(tmp_path / name, frames, seed=1)
        (tmp_path / name / "00001.jpg").write_bytes(b"")
    clips = [clip, *(replace(clip, key=k, source=k, media=tmp_path / k) for k in "de")]
    pack(clips, "dfew", tmp_path / "out", workers=1, max_bad_frames=10)
    report = PackReport.read(tmp_path / "out" / REPORT)
    assert report.clips == 2 and report.dropped_frames == 1 and report.frames == 3 + 19
    assert {p.clip for p in report.problems if p.left_out} == {"d"}
    with pytest.raises(UserError, match=r"was packed with .* --max-bad-frames 10: give the same"):
        pack(clips, "dfew", tmp_path / "out", workers=1)


def test_index_lists_clips_that_are_left_out(clip: ClipRecord, tmp_path: Path) -> None:
    conflict = Fault("label conflict", "two labels", True)
    untested = Fault("not tested", "in no test list", True)
    clips = [
        clip,
        replace(clip, key="d", source="d", media=tmp_path / "d"),
        replace(clip, key="e", source="e", faults=(conflict, Fault("other", "", True))),
        replace(clip, key="f", source="f", split="none", faults=(untested,)),
        replace(clip, key="g", source="g", split="fold2", faults=(Fault("kept", ""),)),
        replace(clip, key="h", source="h", split="fold2", media=tmp_path / "h"),
    ]
    index = pack(clips, "dfew", tmp_path / "out", workers=1)
    assert [(lost.clip, lost.split, lost.kind) for lost in index.left_out] == [
        ("d", "fold1", "missing"),
        ("e", "fold1", "label conflict"),
        ("h", "fold2", "missing"),
    ]
    assert (index.lost_test_clips(1), index.lost_test_clips(2)) == (["d", "e"], ["h"])
    assert read_index(tmp_path / "out") == index
    # the list is part of the hash
    file = tmp_path / "out" / "index.json"
    file.write_text(file.read_text().replace('"clip": "h"', '"clip": "x"'))
    with pytest.raises(UserError, match="was changed"):
        read_index(tmp_path / "out")
    # a set without losses is stored as before
    complete = pack([clip], "dfew", tmp_path / "complete", workers=1)
    assert "left_out" not in (tmp_path / "complete" / "index.json").read_text()
    assert complete.hash == content_hash("dfew", complete.classes, complete.shards)


def test_split_without_clips_is_explained_by_a_clip_of_it(clip: ClipRecord, tmp_path: Path) -> None:
    write_clip(tmp_path / "d", 2, seed=1)
    (tmp_path / "d" / "00001.jpg").write_bytes(JPEG_40_50)
    missing = replace(clip, key="e", source="e", media=tmp_path / "e")
    mixed = replace(clip, key="d", source="d", split="fold2", media=tmp_path / "d")
    with pytest.raises(UserError, match=r"no clip of fold2 .*; clip d: .* \(see --resize\)$"):
        pack([clip, missing, mixed], "dfew", tmp_path / "out", workers=1)


def test_pack_reads_names_of_any_bytes(clip: ClipRecord, tmp_path: Path) -> None:
    stored = os.fsdecode(b"\xc4\xe3")
    clip.media.rename(tmp_path / stored)
    for file in (tmp_path / stored).iterdir():
        file.rename(file.with_name(f"{stored}{file.name}"))
    (tmp_path / stored / f"{stored}00001.jpg").write_text("x")
    index = pack(
        [replace(clip, source=r"\xc4\xe3", media=tmp_path / stored)], "dfew", tmp_path / "out"
    )
    assert index.sidecar(0)["frames"].to_pylist() == [2]
    (problem,) = PackReport.read(tmp_path / "out" / REPORT).problems
    assert problem.reason.startswith(r"\xc4\xe300001.jpg cannot be decoded")


def test_report_counts_what_is_not_read(clip: ClipRecord, tmp_path: Path) -> None:
    write_clip(tmp_path / "d", 2, seed=1)
    for name in ("c/a.png", "c/b.png", "d/c.PNG", "d/sound.wav", "d/Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "d" / "more").mkdir()
    clips = [clip, replace(clip, key="d", source="d", media=tmp_path / "d", listed_frames=None)]
    unread = {".wav files": 2, ".zip files": 1}
    for _ in range(2):
        # what a finished set did not read is kept
        pack(clips, "dfew", tmp_path / "out", 1, workers=1, unread=unread, notes=["a note"])
        report = PackReport.read(tmp_path / "out" / REPORT)
        found = {".png files": 3, ".wav files": 3, ".zip files": 1, "folders": 1}
        assert (report.unread, report.notes) == (found, ["a note"])


def test_pack_writes_no_shard_without_clips(clip: ClipRecord, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    clips = [
        replace(clip, key=key, source=key, media=clip.media if key in "ad" else missing)
        for key in "abcd"
    ]
    index = pack(clips, "dfew", tmp_path / "out", 1, workers=1)
    assert sum(shard.clips for shard in index.shards) == len(index.shards) == 2
    tars = sorted(file.name for file in (tmp_path / "out").glob("*.tar"))
    assert tars == [shard.file for shard in index.shards]


def test_pack_again_detects_changed_files(clip: ClipRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    missing = replace(clip, key="d", source="d", media=tmp_path / "d")

    def pack_again() -> None:
        pack([clip, missing], "dfew", out, workers=1)

    pack_again()
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    pack_again()
    frame = clip.media / "00001.jpg"
    before = frame.read_bytes()
    frame.write_bytes(JPEG_40_48)
    with pytest.raises(UserError, match="or its lists or frames have changed since"):
        pack_again()
    frame.write_bytes(before)
    pack_again()
    # the missing clip appears
    write_clip(tmp_path / "d", 3, seed=5)
    with pytest.raises(UserError, match="or its lists or frames have changed since"):
        pack_again()
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == times
    (out / REPORT).unlink()
    with pytest.raises(UserError, match=r"no pack_report\.json to compare with"):
        pack_again()
