from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from tests.helpers.data.large_clips import sparse_index

GIB_8 = 8 << 30
JPEG = simplejpeg.encode_jpeg(np.full((8, 8, 3), 90, np.uint8), 95)


@pytest.mark.parametrize("size", [GIB_8 - 1, GIB_8, 3 * GIB_8 + 77])
def test_frame_of_a_large_clip_is_read(tmp_path: Path, size: int) -> None:
    index = sparse_index(tmp_path, size, JPEG)
    clip = ClipReader(index).read(0, 0, lambda key, count: np.array([count - 1]))
    assert clip.frames.shape == (1, 8, 8, 3) and clip.frames.mean() == 90


def test_wrong_size_of_a_large_clip_is_detected(tmp_path: Path) -> None:
    index = sparse_index(tmp_path, GIB_8, JPEG)
    data = bytearray(index.path(0).open("rb").read(2048))
    at = data.index(b"big.mjpg") + 135
    with index.path(0).open("r+b") as file:
        file.seek(at)
        file.write(b"\1")
        # the header's checksum
        file.seek(at - 135 + 148)
        total = int(data[at + 13 : at + 19], 8) + 1
        file.write(b"%06o" % total)
    with pytest.raises(DamagedClip, match="wrong frame offsets"):
        ClipReader(index).read(0, 0, lambda key, count: np.array([count - 1]))
