"""A set that an earlier version has packed is compared with what this version would pack."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.packing import load_clip
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport, decoder_versions
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.data.video import image
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import encode_png, write_clip


def pack_clip(folder: Path) -> Index:
    return pack([ClipRecord("c", 0, "fold1", "c", folder / "c")], "dfew", folder / "out", workers=1)


def pack_by_earlier_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack as before there were rules: no metadata turned frames, and any frames were a clip."""
    with monkeypatch.context() as earlier:
        earlier.setattr(image, "find_turn", lambda _: None)
        earlier.setattr(load_clip, "find_sequences", lambda _: [])
        pack_clip(folder)
    report = json.loads((folder / "out" / REPORT).read_text())
    del report["decoders"]
    (folder / "out" / REPORT).write_text(json.dumps(report))


def write_with_orientation(file: Path, orientation: int) -> None:
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(data, "JPEG", exif=exif)
    file.write_bytes(data.getvalue())


def test_set_of_sideways_frames_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "c", 2, seed=0)
    for t in (2, 3):
        write_with_orientation(tmp_path / "c" / f"{t:05d}.jpg", 3)
    pack_by_earlier_version(tmp_path, monkeypatch)
    for _ in range(2):
        with pytest.raises(UserError, match=r"not turn frames.* of clip c: choose an empty --out"):
            pack_clip(tmp_path)
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    pack_clip(tmp_path)
    pack_clip(tmp_path)


def test_set_of_joined_sequences_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "c", 4, seed=0)
    for t, file in enumerate(sorted((tmp_path / "c").iterdir())):
        file.rename(file.with_name(f"face_{t // 2}_{t % 2}.jpg"))
    pack_by_earlier_version(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"joined the sequences .* of clip c: choose an empty"):
        pack_clip(tmp_path)


def test_set_of_upright_frames_is_kept_and_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_clip(tmp_path / "c", 2, seed=0)
    write_with_orientation(tmp_path / "c" / "00002.jpg", 1)
    pack_by_earlier_version(tmp_path, monkeypatch)
    with caplog.at_level("INFO"):
        assert pack_clip(tmp_path) == pack_clip(tmp_path)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert PackReport.read(tmp_path / "out" / REPORT).decoders == decoder_versions()


def test_set_of_encoded_frames_is_kept_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").mkdir()
    for t in range(3):
        (tmp_path / "c" / f"{t}.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    pack_by_earlier_version(tmp_path, monkeypatch)
    for _ in range(2):
        caplog.clear()
        pack_clip(tmp_path)
        assert "3 frames were encoded by another version" in caplog.text


def test_damaged_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "c", 2, seed=0)
    pack_by_earlier_version(tmp_path, monkeypatch)
    tar = tmp_path / "out" / "fold1-00000.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=r"has another CRC32.*copy the shard again"):
        pack_clip(tmp_path)
