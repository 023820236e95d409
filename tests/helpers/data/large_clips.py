"""Clips of more than 8 GiB, which take no space on a file system with sparse files."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.data.shards.index import BLOCK, SIDECAR, Index, Shard, content_hash, sidecar_path


def clip_row(key: str, sizes: list[int], jpegs: list[bytes]) -> dict[str, Any]:
    """Return the sidecar's row of a clip, which has no ``offset`` and ``size`` yet.

    ``jpegs`` are its last frames, ``sizes`` those of all frames, bytes.
    """
    offsets = [sum(sizes[:t]) for t in range(len(sizes) + 1)]
    crc32 = [0] * (len(sizes) - len(jpegs)) + [zlib.crc32(jpeg) for jpeg in jpegs]
    return {"key": key, "label": 0, "frames": len(sizes), "offsets": offsets, "crc32": crc32}


def json_member(row: dict[str, Any]) -> bytes:
    """Return the JSON member of a clip."""
    names = ("key", "label", "frames", "offsets")
    return json.dumps({name: row[name] for name in names}).encode()


def make_index(tar: Path, rows: list[dict[str, Any]]) -> Index:
    """Write the sidecar of a shard, and return the index of the set."""
    pq.write_table(pa.Table.from_pylist(rows, schema=SIDECAR), sidecar_path(tar))
    digest = hashlib.sha256(sidecar_path(tar).read_bytes()).hexdigest()
    shard = Shard(tar.name, "fold1", len(rows), tar.stat().st_size, (len(rows),), "0" * 64, digest)
    return Index(tar.parent, "large", ("a",), (shard,), content_hash("large", ("a",), (shard,)))


def write_holes(file: BinaryIO, size: int, end: bytes) -> None:
    """Write a member's data in a hole of the file, ``end`` at its end, and pad it to blocks."""
    start = file.tell()
    file.seek(start + size - len(end))
    file.write(end)
    file.truncate(start + -(-size // BLOCK) * BLOCK)
    file.seek(0, 2)


def sparse_index(folder: Path, size: int, jpeg: bytes) -> Index:
    """Write a clip of two frames with a member of ``size`` bytes, of which ``jpeg`` is the last."""
    row = clip_row("big", [size - len(jpeg), len(jpeg)], [jpeg])
    text = json_member(row)
    tar = folder / "fold1-00000.tar"
    with tar.open("wb") as file:
        for name, length, end in (("big.json", len(text), text), ("big.mjpg", size, jpeg)):
            info = tarfile.TarInfo(name)
            info.size = length
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            write_holes(file, length, end)
        row |= {"offset": 0, "size": file.tell()}
        file.truncate(file.tell() + 2 * BLOCK)
    return make_index(tar, [row])
