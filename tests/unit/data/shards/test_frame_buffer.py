"""Long clips are packed in bounded memory."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards import frame_buffer
from dfer_dist.data.shards.frame_buffer import FrameBuffer
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.sources.records import ClipRecord
from tests.helpers.data.clips import write_clip
from tests.helpers.data.videos import encode

LIMIT = 1 << 19  # bytes of a clip in memory in these tests
NUM_FRAMES = 48


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_buffer, "_MAX_IN_MEMORY", LIMIT)


def noise(seed: int) -> np.ndarray:
    """Return a frame whose JPEG has some 150 kB."""
    return np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def frame_folder(parent: Path) -> Path:
    (parent / "c").mkdir()
    for t in range(NUM_FRAMES):
        jpeg = simplejpeg.encode_jpeg(noise(t), 95)
        (parent / "c" / f"{t}.jpg").write_bytes(jpeg)
    return parent / "c"


def video(parent: Path) -> Path:
    return encode(parent / "c.avi", map(noise, range(NUM_FRAMES)), codec="ffv1")


@pytest.mark.parametrize("make", [frame_folder, video])
def test_long_clip_is_packed_in_bounded_memory(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    record = ClipRecord("c", 0, "fold1", "c", make(tmp_path))
    # modules are imported while the first clip is packed
    write_clip(tmp_path / "first", 2, seed=0)
    pack([replace(record, media=tmp_path / "first")], "dfew", tmp_path / "first_out", workers=1)
    tracemalloc.start()
    index = pack([record], "dfew", tmp_path / "out", workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    packed = index.shards[0].bytes
    assert packed > 8 * LIMIT, "the test needs a clip that is larger than the bound"
    assert peak < 6 * LIMIT
    assert len(read_all(index)) == NUM_FRAMES


def read_all(index: Index) -> list[bytes]:
    return ClipReader(index).jpegs(0, 0)


def test_frames_beyond_the_limit_are_in_a_file_of_the_folder(tmp_path: Path) -> None:
    frames = FrameBuffer(tmp_path)
    jpegs = [bytes([t]) * (LIMIT // 3) for t in range(5)]
    assert not open_files(tmp_path)
    for jpeg in jpegs:
        frames.append(jpeg)
    assert len(open_files(tmp_path)) == 1
    assert list(frames) == jpegs and len(frames) == 5
    assert frames.open().read() == b"".join(jpegs)
    assert frames.offsets == [LIMIT // 3 * t for t in range(6)]
    assert frames.crc32 == [zlib.crc32(jpeg) for jpeg in jpegs]
    frames.close()
    assert not open_files(tmp_path) and not list(tmp_path.iterdir())


def open_files(folder: Path) -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            # that of the listing
            continue
    return [link for link in links if link.startswith(f"{folder}/")]
