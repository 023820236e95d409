"""Faults of clips, and the report on them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dfer_dist.data.packing.media import clip_files, load_frames
from dfer_dist.data.packing.packer import REPORT, pack
from dfer_dist.data.sources.records import ClipRecord, Fault
from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from tests.helpers.clips import write_clip
from tests.helpers.paths import ROOT

JPEG_40_48 = simplejpeg.encode_jpeg(np.zeros((40, 48, 3), np.uint8))
JPEG_40_50 = simplejpeg.encode_jpeg(np.zeros((40, 50, 3), np.uint8))


@pytest.fixture
def clip(tmp_path: Path) -> ClipRecord:
    """A clip of three frames, 48 x 40, three being listed."""
    write_clip(tmp_path / "c", 3, seed=0)
    return ClipRecord("c", 0, "fold1", "c", tmp_path / "c", 3)


def png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


Spoil = Callable[[Path], object]

FAULTS: dict[
    str, tuple[Spoil, str, str, int | None]
] = {  # spoils the folder; kind, words; frames kept, or None if left out
    "gone": (shutil.rmtree, "missing", "neither folder nor film", None),
    "hollow": (
        lambda c: [f.rename(f.with_suffix(".txt")) for f in list(c.iterdir())],
        "no frames",
        "no JPEG or PNG",
        None,
    ),
    "fewer": (
        lambda c: (c / "00001.jpg").unlink(),
        "fewer frames",
        "2 frames are there, 3 are listed",
        2,
    ),
    "text": (
        lambda c: (c / "00001.jpg").write_text("no picture"),
        "unreadable frame",
        "00001.jpg cannot be decoded",
        2,
    ),
    "empty": (
        lambda c: (c / "00001.jpg").write_bytes(b""),
        "unreadable frame",
        "00001.jpg cannot be decoded",
        2,
    ),
    "half": (
        lambda c: cut(c / "00002.jpg", 500),
        "unreadable frame",
        "00002.jpg cannot be decoded",
        2,
    ),
    "two bytes": (
        lambda c: cut(c / "00002.jpg", -2),
        "unreadable frame",
        "00002.jpg cannot be decoded",
        2,
    ),
    "bad link": (
        lambda c: (c / "00003.jpg").symlink_to("nowhere"),
        "unreadable frame",
        "00003.jpg cannot be decoded",
        3,
    ),
    "bad png": (
        lambda c: (c / "00003.jpg").write_bytes(png(np.zeros((40, 48, 3), np.uint8))[:-30]),
        *("unreadable frame", "00003.jpg cannot be decoded", 3),
    ),
    "all bad": (
        lambda c: [f.write_text("x") for f in c.iterdir()],
        "no frames",
        "no frame can be decoded",
        None,
    ),
    "sizes": (
        lambda c: (c / "00002.jpg").write_bytes(JPEG_40_50),
        "sizes differ",
        "has 50 x 40 pixels, the frames before it 48 x 40",
        None,
    ),
    "film": (
        lambda c: (c.with_suffix(".mp4").touch(), shutil.rmtree(c)),
        "damaged film",
        "0 frames decoded",
        None,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_and_the_clip_is_kept_without_it_or_left_out(
    case: str, clip: ClipRecord, tmp_path: Path
) -> None:
    spoil, kind, words, kept = FAULTS[case]
    write_clip(tmp_path / "good", 2, seed=1)
    spoil(clip.media)
    good = ClipRecord("good", 1, "fold1", "good", tmp_path / "good")
    index = pack([clip, good], "dfew", tmp_path / "out", workers=1)
    table = index.sidecar(0).to_pydict()
    assert dict(zip(table["key"], table["frames"], strict=True)) == {"good": 2} | (
        {} if kept is None else {"c": kept}
    )
    report = read_json(tmp_path / "out" / REPORT)
    fault = report["problems"][-1]
    assert (fault["clip"], fault["split"], fault["kind"], fault["left_out"]) == (
        "c",
        "fold1",
        kind,
        kept is None,
    )
    assert words in fault["reason"] and "0x" not in fault["reason"]
    assert (report["listed"], report["clips"], report["frames"]) == (
        2,
        1 + (kept is not None),
        2 + (kept or 0),
    )
    assert report["splits"]["fold1"]["classes"]["sadness"] == 1
    assert report["splits"]["fold1"]["problems"] == len(report["problems"])
    for out in ("out", "strict"):  # also where it was packed without
        with pytest.raises(UserError, match=r"^clip c: .*--strict"):
            pack([clip, good], "dfew", tmp_path / out, workers=1, strict=True)
    assert not (tmp_path / "strict" / "index.json").exists()


def test_faults_of_the_lists_are_reported_and_left_out_too(
    clip: ClipRecord, tmp_path: Path
) -> None:
    conflict = Fault("label conflict", "two labels: anger in fold1, fear in fold2", True)
    twice = Fault("listed twice", "twice in the list of fold1")
    clips = [
        clip,
        replace(clip, key="d", source="d", faults=(conflict,)),
        replace(clip, key="e", source="e", faults=(twice,)),
    ]
    clips.append(
        replace(
            clip,
            key="f",
            source="f",
            split="none",
            faults=(Fault("not tested", "in no test list", True),),
        )
    )
    index = pack(clips, "dfew", tmp_path / "out", workers=1)
    assert sorted(index.sidecar(0)["key"].to_pylist()) == ["c", "e"] and index.splits == ["fold1"]
    report = read_json(tmp_path / "out" / REPORT)
    assert [(p["clip"], p["kind"], p["left_out"]) for p in report["problems"]] == [
        ("d", "label conflict", True),
        ("e", "listed twice", False),
        ("f", "not tested", True),
    ]
    assert {s: (c["listed"], c["clips"]) for s, c in report["splits"].items()} == {
        "fold1": (3, 2),
        "none": (1, 0),
    }
    with pytest.raises(UserError, match="clip d: two labels"):
        pack(clips, "dfew", tmp_path / "strict", strict=True)


def test_a_split_without_a_clip_is_refused(clip: ClipRecord, tmp_path: Path) -> None:
    lost = replace(clip, key="d", source="d", split="fold2", media=tmp_path / "d")
    with pytest.raises(
        UserError,
        match=r"no clip of fold2 could be packed; clip d: neither folder nor film .*--root",
    ):
        pack([clip, lost], "dfew", tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_shard_of_which_nothing_is_left_is_not_written(clip: ClipRecord, tmp_path: Path) -> None:
    clips = [
        replace(clip, key=k, source=k, media=clip.media if k in "ad" else tmp_path / "gone")
        for k in "abcd"
    ]
    index = pack(clips, "dfew", tmp_path / "out", 1, workers=1)
    assert sum(s.clips for s in index.shards) == len(index.shards) == 2
    assert sorted(f.name for f in (tmp_path / "out").iterdir() if f.suffix == ".tar") == [
        s.file for s in index.shards
    ]


def test_png_frames_become_jpegs_close_to_them_and_jpegs_beside_them_win(clip: ClipRecord) -> None:
    colours = (
        np.random.default_rng(0)
        .integers(0, 256, (5, 6, 3), dtype=np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)
    )
    for mode in ("RGB", "RGBA", "L", "P"):
        (clip.media / "00001.png").write_bytes(png(colours, mode))
        assert load_frames(clip).encoded == 0 and len(load_frames(clip).jpegs) == 3
        single = replace(clip, media=(clip.media / "00001.png",), listed_frames=None)
        frames = load_frames(single)
        assert frames.encoded == 1 and not frames.faults
        with Image.open(clip.media / "00001.png") as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert (
            np.abs(simplejpeg.decode_jpeg(frames.jpegs[0]) - expected).max() <= 32
        )  # dithered palettes are the worst
        assert np.abs(simplejpeg.decode_jpeg(frames.jpegs[0]) - expected).mean() < 4
    for frame in clip.media.glob("*.jpg"):
        frame.unlink()
    assert [f.name for f in clip_files(clip)] == ["00001.png"]


def test_resizing_encodes_only_frames_of_another_size_and_mends_differing_ones(
    clip: ClipRecord, tmp_path: Path
) -> None:
    square = simplejpeg.encode_jpeg(np.full((32, 32, 3), 90, np.uint8), 50)
    (clip.media / "00001.jpg").write_bytes(square)
    assert load_frames(clip).left_out
    frames = load_frames(clip, 32)
    assert not frames.faults and frames.encoded == 2 and frames.jpegs[1] == square
    assert {simplejpeg.decode_jpeg(j).shape for j in frames.jpegs} == {(32, 32, 3)}
    (clip.media / "00000.jpg").write_bytes(
        simplejpeg.encode_jpeg(np.tile([[[0] * 3, [255] * 3]], (64, 32, 1)).astype(np.uint8), 100)
    )
    fine = simplejpeg.decode_jpeg(load_frames(clip, 32).jpegs[0]).astype(int)
    assert np.abs(fine[4:-4, 4:-4] - 127).max() < 12  # stripes a pixel wide turn grey: no aliasing
    pack([clip], "dfew", tmp_path / "out", workers=1, size=32)
    assert read_json(tmp_path / "out" / REPORT)["encoded_frames"] == 2


def test_changed_frames_and_mended_clips_are_noticed(clip: ClipRecord, tmp_path: Path) -> None:
    gone = replace(clip, key="d", source="d", media=tmp_path / "d")
    pack([clip, gone], "dfew", tmp_path / "out", workers=1)
    state = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    pack([clip, gone], "dfew", tmp_path / "out", workers=1)
    frame = clip.media / "00001.jpg"
    before = frame.read_bytes()
    frame.write_bytes(JPEG_40_48)
    with pytest.raises(UserError, match="or its lists or frames have changed since"):
        pack([clip, gone], "dfew", tmp_path / "out", workers=1)
    frame.write_bytes(before)
    pack([clip, gone], "dfew", tmp_path / "out", workers=1)
    write_clip(tmp_path / "d", 3, seed=5)
    with pytest.raises(UserError, match="or its lists or frames have changed since"):
        pack([clip, gone], "dfew", tmp_path / "out", workers=1)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()} == state
    (tmp_path / "out" / REPORT).unlink()
    with pytest.raises(UserError, match=r"no pack_report\.json to compare with"):
        pack([clip, gone], "dfew", tmp_path / "out", workers=1)


def test_the_terminal_shows_counts_and_faults(tmp_path: Path) -> None:
    for name in ("happy/a", "happy/b", "sad/c", "sad/d"):
        write_clip(tmp_path / "mine" / name, 3, seed=ord(name[-1]))
    (tmp_path / "mine/happy/b/00001.jpg").write_text("x")
    (tmp_path / "mine/sad/c/00001.jpg").write_bytes(JPEG_40_50)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    code = "import sys; from launch.cli import main; sys.argv = ['dfer', *sys.argv[1:]]; main()"
    words = [
        "pack",
        "--dataset",
        "folder",
        "--root",
        "mine",
        "--out",
        "out",
        "--folds",
        "2",
        "--workers",
        "1",
    ]
    start = [*python_command(), "-c", code, *words]
    done = subprocess.run(start, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert ["clips", "2", "1", "3"] in rows or ["clips", "1", "2", "3"] in rows
    assert "1 of 4 clips left out, 1 kept with faults:" in done.stdout
    assert (
        "happy/b: 00001.jpg cannot be decoded" in done.stdout
        and "sad/c: 00001.jpg has 50 x 40 pixels" in done.stdout
    )
    assert read_json(tmp_path / "out" / REPORT)["dataset"] == "mine"
    assert json.loads((tmp_path / "out" / "index.json").read_text())["classes"] == [
        "happiness",
        "sadness",
    ]
    strict = subprocess.run(
        [*start[:-4], "--strict", "--folds", "2"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        strict.returncode == 2
        and strict.stderr.startswith("error: clip ")
        and len(strict.stderr.splitlines()) == 1
    )
