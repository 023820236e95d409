"""Sets whose hashes all agree, forged to write or read elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfer_dist.data.shards.index import (
    SIDECAR,
    DamagedIndex,
    Index,
    Shard,
    content_hash,
    read_index,
)
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.verify import verify
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import write_index


def every(_: str, frames: int) -> np.ndarray:
    return np.arange(frames)


def forged(
    root: Path,
    members: list[tarfile.TarInfo],
    keys: list[str],
    video: bytes,
    name: str = "fold1-00000.tar",
) -> Index:
    """A set whose hashes all agree, made by somebody who means harm."""
    root.mkdir()
    rows: list[dict] = []
    with tarfile.open(root / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, key in zip(members, keys, strict=True):
            meta = {
                "key": key,
                "label": 0,
                "split": "fold1",
                "source": "",
                "frames": 1,
                "offsets": [0, len(video)],
            }
            text = json.dumps(meta).encode()
            offset = tar.offset
            head = tarfile.TarInfo(f"{key}.json")
            head.size = len(text)
            tar.addfile(head, io.BytesIO(text))
            info.size = len(video) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(video))
            rows.append(
                {
                    "key": key,
                    "label": 0,
                    "offset": offset,
                    "size": tar.offset - offset,
                    "frames": 1,
                    "crc32": [0],
                }
            )
    pq.write_table(pa.Table.from_pylist(rows, schema=SIDECAR), root / "x.parquet")
    tar_bytes, table = (root / "x.tar").read_bytes(), (root / "x.parquet").read_bytes()
    sums = [hashlib.sha256(b).hexdigest() for b in (tar_bytes, table)]
    shards = (Shard(name, "fold1", len(rows), len(tar_bytes), (len(rows),), *sums),)
    (root / "fold1-00000.tar").write_bytes(tar_bytes)
    (root / "fold1-00000.parquet").write_bytes(table)
    index = Index(root, "dfew", ("happiness",), shards, content_hash("dfew", ["happiness"], shards))
    write_index(index)
    return index


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("key", ["../up", "/etc/passwd", "a/b", "..", ".hidden", ""])
def test_keys_that_are_paths_are_refused(tmp_path: Path, key: str) -> None:
    index = forged(tmp_path / "set", [member(f"{key}.mjpg")], [key], b"video")
    assert read_index(tmp_path / "set") == index
    with pytest.raises(
        UserError, match=r"fold1-00000\.parquet has keys or labels that no packer writes"
    ):
        ClipReader(index).read(0, 0, every)
    assert "fold1-00000.tar" in {d.file for d in verify(str(tmp_path / "set"))[1]} or key == ""
    assert verify(str(tmp_path / "set"))[1]


@pytest.mark.parametrize(
    "info",
    [
        member("a.mjpg", tarfile.SYMTYPE, "/etc/passwd"),
        member("a.mjpg", tarfile.LNKTYPE, "../x"),
        member("a.mjpg", tarfile.FIFOTYPE),
        member("../a.mjpg"),
        member("/a.mjpg"),
        member("b.mjpg"),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_links_and_paths_in_a_tar_are_refused(tmp_path: Path, info: tarfile.TarInfo) -> None:
    index = forged(tmp_path / "set", [info], ["a"], b"video")
    assert read_index(tmp_path / "set") == index
    with pytest.raises(DamagedClip, match=r"where 'a\.mjpg' should be"):
        ClipReader(index).read(0, 0, every)
    (found,) = verify(str(tmp_path / "set"))[1]
    assert found.file == "fold1-00000.tar"
    assert (
        "has other members" in found.reason
        if info.name == "b.mjpg"
        else "a path, link or special file" in found.reason
    )


def test_verify_reports_members_without_sidecar_row(tmp_path: Path) -> None:
    index = forged(tmp_path / "set", [member("a.mjpg")], ["a"], b"video")
    with tarfile.open(index.path(0), "a") as tar:
        tar.addfile(member("more.sh"))
    entry = replace(
        index.shards[0],
        bytes=index.path(0).stat().st_size,
        sha256=hashlib.sha256(index.path(0).read_bytes()).hexdigest(),
    )
    write_index(replace(index, shards=(entry,), hash=content_hash("dfew", ["happiness"], [entry])))
    assert [d.reason for d in verify(str(tmp_path / "set"))[1]] == [
        "has other members than its sidecar"
    ]


@pytest.mark.parametrize(
    "change",
    [{"file": "../x.tar"}, {"file": "/x.tar"}, {"sha256": "../../x"}, {"file": 5}, {"clips": -1}],
)
def test_index_that_names_files_elsewhere_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    index = forged(tmp_path / "set", [member("a.mjpg")], ["a"], b"video")
    shards = (replace(index.shards[0], **change),)
    write_index(replace(index, shards=shards, hash=content_hash("dfew", ["happiness"], shards)))
    with pytest.raises(DamagedIndex, match=r"index\.json"):
        read_index(tmp_path / "set")
