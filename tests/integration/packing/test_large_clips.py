"""A clip of more than 8 GiB is written, and read by this and other programs."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from webdataset.writer import TarWriter

from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import add_member
from tests.helpers.data.large_clips import clip_row, json_member, make_index, write_holes

SIZE = (8 << 30) + 5
_ZEROS = bytes(1 << 20)


class SparseFile(io.FileIO):
    """A file whose zeros are holes."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if data != _ZEROS[: len(data)]:
            return super().write(data)
        self.seek(len(data), io.SEEK_CUR)
        return len(data)


@pytest.mark.data_full  # 20 s
def test_clip_of_more_than_8_gib_is_written_and_read(tmp_path: Path) -> None:
    jpegs = [simplejpeg.encode_jpeg(np.full((8, 8, 3), v, np.uint8), 95) for v in (90, 150)]
    rows = [
        clip_row("big", [SIZE - len(jpegs[0]), len(jpegs[0])], jpegs[:1]),
        clip_row("small", [len(jpegs[1])], jpegs[1:]),
    ]
    with (tmp_path / "big").open("wb") as file:
        write_holes(file, SIZE, jpegs[0])
    tar = tmp_path / "fold1-00000.tar"
    with SparseFile(tar, "w") as out, TarWriter(out, encoder=False, mtime=0) as writer:
        for row, data in zip(
            rows, ((tmp_path / "big").open("rb"), io.BytesIO(jpegs[1])), strict=True
        ):
            row["offset"] = writer.tarstream.offset
            writer.write({"__key__": row["key"], "json": json_member(row)})
            add_member(writer, f"{row['key']}.mjpg", data, row["offsets"][-1])
            row["size"] = writer.tarstream.offset - row["offset"]
            data.close()
    assert tar.stat().st_blocks < 1000, "it is sparse"

    reader = ClipReader(make_index(tar, rows))
    for clip, value in enumerate((90, 150)):
        frames = reader.read(0, clip, lambda key, count: np.array([count - 1])).frames
        assert frames.mean() == value
    members = [("big.json", None), ("big.mjpg", SIZE), ("small.json", None), ("small.mjpg", None)]
    with tarfile.open(tar) as opened:
        found = {info.name: info.size for info in opened}
    assert list(found) == [name for name, _ in members] and found["big.mjpg"] == SIZE
    command = ["tar", "tvf", tar]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in listed.splitlines()] == list(found)
    assert str(SIZE) in listed
