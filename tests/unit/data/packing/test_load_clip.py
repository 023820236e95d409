from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dfer_dist.data.packing.load_clip import load_clip
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport
from dfer_dist.data.sources.records import ClipRecord, clip_files
from tests.helpers.data.clips import HUGE_IMAGE, encode_png, write_clip
from tests.helpers.data.videos import damage_frames, encode, write_planes


@pytest.fixture
def clip(tmp_path: Path) -> ClipRecord:
    """A clip of three frames, 48 x 40."""
    write_clip(tmp_path / "c", 3, seed=0)
    return ClipRecord("c", 0, "fold1", "c", tmp_path / "c", 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_png_frame_is_encoded_as_similar_jpeg(clip: ClipRecord, mode: str) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = clip.media / "00001.png"
    file.write_bytes(encode_png(tiles.repeat(8, 0).repeat(8, 1), mode))
    loaded = load_clip(replace(clip, media=(file,), listed_frames=None))
    assert loaded.num_encoded == 1 and not loaded.faults
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    difference = np.abs(simplejpeg.decode_jpeg(next(iter(loaded.jpegs))) - expected)
    # dithered palettes differ most
    assert difference.max() <= 32
    assert difference.mean() < 4


def test_clip_files_prefers_jpegs_over_pngs(clip: ClipRecord) -> None:
    (clip.media / "00001.png").write_bytes(encode_png(np.zeros((40, 48, 3), np.uint8)))
    loaded = load_clip(clip)
    assert loaded.num_encoded == 0 and len(loaded.jpegs) == 3
    for frame in clip.media.glob("*.jpg"):
        frame.unlink()
    assert [f.name for f in clip_files(clip)] == ["00001.png"]


def test_frame_of_too_many_pixels_is_a_damaged_frame(clip: ClipRecord) -> None:
    (clip.media / "00001.jpg").write_bytes(HUGE_IMAGE)
    loaded = load_clip(clip)
    assert loaded.num_dropped == 1 and len(loaded.jpegs) == 2
    assert "more than 89 million pixels" in loaded.faults[0].reason


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "jpe", "jfif"])
def test_jpegs_of_any_suffix_are_copied(clip: ClipRecord, suffix: str) -> None:
    expected = list(load_clip(clip).jpegs)
    for frame in list(clip.media.iterdir()):
        frame.rename(frame.with_suffix(f".{suffix}"))
    loaded = load_clip(clip)
    assert list(loaded.jpegs) == expected
    assert not loaded.faults and loaded.num_encoded == 0


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tiff", "ppm"])
def test_frames_of_other_kinds_are_encoded(clip: ClipRecord, suffix: str) -> None:
    expected = []
    for frame in sorted(clip.media.iterdir()):
        pixels = simplejpeg.decode_jpeg(frame.read_bytes())
        Image.fromarray(pixels).save(frame.with_suffix(f".{suffix}"), quality=100, lossless=True)
        frame.unlink()
        expected.append(pixels.astype(int))
    loaded = load_clip(clip)
    assert not loaded.faults and loaded.num_encoded == 3
    packed = [simplejpeg.decode_jpeg(jpeg) for jpeg in loaded.jpegs]
    assert np.abs(np.array(packed) - np.array(expected)).mean() < 4


def test_turned_jpegs_are_encoded_upright(clip: ClipRecord) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    for frame in clip.media.iterdir():
        Image.open(frame).save(frame, quality=95, exif=exif)
    before = simplejpeg.decode_jpeg((clip.media / "00000.jpg").read_bytes()).astype(int)
    loaded = load_clip(clip)
    assert not loaded.faults and loaded.num_encoded == 3
    packed = [simplejpeg.decode_jpeg(jpeg) for jpeg in loaded.jpegs]
    assert np.abs(packed[0] - before[::-1].swapaxes(0, 1)).mean() < 4


@pytest.mark.parametrize(
    ("percentage", "left_out"), [(None, False), (34, False), (33, True), (0, True)]
)
def test_damaged_frames_of_a_folder_are_dropped_if_few(
    clip: ClipRecord, percentage: float | None, left_out: bool
) -> None:
    (clip.media / "00001.jpg").write_bytes(b"")
    loaded = load_clip(clip, max_bad_frames=percentage)
    assert len(loaded.jpegs) == 2 and loaded.num_dropped == 1
    kinds = ["unreadable frame", *(["too many bad frames"] if left_out else [])]
    assert [fault.kind for fault in loaded.faults] == kinds
    assert any(fault.left_out for fault in loaded.faults) == left_out


@pytest.mark.parametrize(
    ("percentage", "left_out"), [(None, True), (9.9, True), (10, False), (50, False)]
)
def test_damaged_frames_of_a_video_are_dropped_if_few(
    tmp_path: Path, percentage: float | None, left_out: bool
) -> None:
    frames = [np.full((48, 64, 3), 20 * t, np.uint8) for t in range(10)]
    file = encode(tmp_path / "c.avi", frames, codec="mpeg4", gop_size=1)
    damage_frames(file, [4])
    loaded = load_clip(ClipRecord("c", 0, "fold1", "c", file), max_bad_frames=percentage)
    (fault,) = loaded.faults
    assert (fault.kind, fault.left_out) == ("damaged video", left_out)
    if left_out:
        assert "4 frames decoded (see --max-bad-frames)" in fault.reason
        return
    assert fault.reason.startswith("c.avi: damaged frames dropped: 1 (")
    assert loaded.num_dropped == 1 and loaded.num_encoded == 9
    shown = [round(float(simplejpeg.decode_jpeg(jpeg).mean()) / 20) for jpeg in loaded.jpegs]
    assert shown == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_hdr_video_is_left_out_by_name(tmp_path: Path) -> None:
    colors = {"color_trc": 16, "colorspace": 9}
    file = write_planes(tmp_path / "c.mkv", "yuv420p10le", [400, 512, 512], **colors)
    (fault,) = load_clip(ClipRecord("c", 0, "fold1", "c", file)).faults
    assert fault.left_out and fault.kind == "unsupported video"
    assert fault.reason == "c.mkv: it is HDR (PQ, as in HDR10): convert it to SDR"


def test_resize_encodes_only_frames_of_another_size(clip: ClipRecord, tmp_path: Path) -> None:
    square = simplejpeg.encode_jpeg(np.full((32, 32, 3), 90, np.uint8), 50)
    (clip.media / "00001.jpg").write_bytes(square)
    assert [fault.left_out for fault in load_clip(clip).faults] == [True]
    loaded = load_clip(clip, 32)
    assert not loaded.faults
    assert loaded.num_encoded == 2 and list(loaded.jpegs)[1] == square
    assert {simplejpeg.decode_jpeg(jpeg).shape for jpeg in loaded.jpegs} == {(32, 32, 3)}
    pack([clip], "dfew", tmp_path / "out", workers=1, size=32)
    assert PackReport.read(tmp_path / "out" / REPORT).encoded_frames == 2


def test_reason_of_the_first_frame_is_given_if_none_can_be_decoded(clip: ClipRecord) -> None:
    for file in clip.media.iterdir():
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    fault = load_clip(clip).faults[-1]
    assert (fault.left_out, fault.reason) == (
        True,
        "no frame can be decoded; 00000.jpg cannot be decoded: "
        "a pointer of Git LFS: run git lfs pull",
    )


def test_resize_turns_thin_stripes_grey_without_aliasing(clip: ClipRecord) -> None:
    stripes = np.tile([[[0] * 3, [255] * 3]], (64, 32, 1)).astype(np.uint8)
    (clip.media / "00000.jpg").write_bytes(simplejpeg.encode_jpeg(stripes, 100))
    pixels = simplejpeg.decode_jpeg(next(iter(load_clip(clip, 32).jpegs))).astype(int)
    assert np.abs(pixels[4:-4, 4:-4] - 127).max() < 12


def test_image_is_a_clip_of_one_frame(clip: ClipRecord) -> None:
    file = clip.media / "00001.jpg"
    loaded = load_clip(replace(clip, media=file, listed_frames=None))
    assert list(loaded.jpegs) == [file.read_bytes()] and not loaded.faults
    missing = load_clip(replace(clip, media=file.with_name("9.jpg")))
    assert [fault.kind for fault in missing.faults] == ["missing"]


def test_part_of_a_video_is_packed_and_of_frames_is_not(clip: ClipRecord, tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), 20 * t, np.uint8) for t in range(10)]
    whole = replace(clip, media=encode(tmp_path / "v.mp4", frames), listed_frames=None)
    expected = list(load_clip(whole).jpegs)
    assert list(load_clip(replace(whole, start=0.08, end=0.2)).jpegs) == expected[2:5]
    loaded = load_clip(replace(clip, start=0.08))
    reason = "it has only frames: start and end are of videos"
    assert [(f.kind, f.reason, f.left_out) for f in loaded.faults] == [("no video", reason, True)]
