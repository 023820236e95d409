"""Sidecar tars: complete, in the shard's order, bound to it by hashes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, read_index, sidecar_path
from dfer_dist.data.shards.sidecars import (
    array_bytes,
    manifest_hash,
    read_array,
    read_manifest,
    read_sidecar_tar,
    sidecar_tar_path,
    write_sidecar_tar,
)
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.data.verify import verify
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json

LONG = "k" * 90  # the longest key there is


@pytest.fixture
def shard(tmp_path: Path, tiny_source: Path) -> Path:
    """A shard of two clips, one with the longest key, and another shard next to it."""
    frames = sorted((tiny_source / "frames" / "00001").iterdir())[:2]
    records = [
        ClipRecord(key, 0, split, key, tuple(frames))
        for key, split in [("a", "train"), (LONG, "train"), ("b", "test")]
    ]
    return pack_index(records, tmp_path / "shards").path(1)


def pack_index(records: list[ClipRecord], out: Path) -> Index:
    index = pack(records, "dfew", out, workers=1)
    assert [s.split for s in index.shards] == ["test", "train"]
    return index


def rows(shard: Path) -> list[tuple[str, dict[str, bytes]]]:
    import pyarrow.parquet as pq

    keys = pq.read_table(sidecar_path(shard))["key"].to_pylist()
    rng = np.random.default_rng(0)
    return [
        (
            k,
            {
                "landmarks.npy": array_bytes(rng.random((2, 68, 2), np.float32)),
                "found.npy": array_bytes(np.array([True, False])),
            },
        )
        for k in keys
    ]


def test_sidecar_tar_round_trip_keeps_the_shard(shard: Path) -> None:
    before = shard.read_bytes()
    tar = write_sidecar_tar(shard, "landmarks", rows(shard))
    assert tar.name == "train-00000.landmarks.tar"
    assert list(read_sidecar_tar(shard, "landmarks")) == rows(shard)
    assert {key for key, _ in read_sidecar_tar(shard, "landmarks")} == {"a", LONG}
    marks = read_array(next(read_sidecar_tar(shard, "landmarks"))[1]["landmarks.npy"])
    assert marks.shape == (2, 68, 2) and marks.dtype == np.float32
    assert shard.read_bytes() == before
    read_index(shard.parent)


def test_write_sidecar_tar_same_rows_give_same_bytes(shard: Path) -> None:
    first = write_sidecar_tar(shard, "landmarks", rows(shard)).read_bytes()
    about = read_manifest(shard, "landmarks")
    assert write_sidecar_tar(shard, "landmarks", rows(shard)).read_bytes() == first
    assert read_manifest(shard, "landmarks") == about and about.clips == 2


def test_webdataset_reads_sidecar_tar_by_key(shard: Path) -> None:
    tar = write_sidecar_tar(shard, "landmarks", rows(shard))
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [(s["__key__"], s["landmarks.npy"], s["found.npy"]) for s in samples] == [
        (key, members["landmarks.npy"], members["found.npy"]) for key, members in rows(shard)
    ]


@pytest.mark.parametrize("change", ["swapped", "one less", "one more", "another key"])
def test_write_sidecar_tar_refuses_other_clips(shard: Path, change: str) -> None:
    good = rows(shard)
    bad = {
        "swapped": good[::-1],
        "one less": good[:1],
        "one more": [*good, good[0]],
        "another key": [good[0], ("zzz", good[1][1])],
    }[change]
    with pytest.raises(UserError, match=r"train-00000\.tar"):
        write_sidecar_tar(shard, "landmarks", bad)
    assert not sidecar_tar_path(shard, "landmarks").exists()
    with pytest.raises(UserError, match="is missing"):
        list(read_sidecar_tar(shard, "landmarks"))


def test_read_sidecar_tar_refuses_changed_or_foreign_files(shard: Path) -> None:
    tar = write_sidecar_tar(shard, "landmarks", rows(shard))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="bytes"):
        list(read_sidecar_tar(shard, "landmarks"))
    flipped = bytearray(whole)
    flipped[700] ^= 1
    tar.write_bytes(flipped)
    with pytest.raises(UserError, match="hash"):
        list(read_sidecar_tar(shard, "landmarks"))
    tar.write_bytes(whole)
    other = shard.with_name("test-00000.tar")
    for suffix in (".tar", ".json"):
        sidecar_tar_path(other, "landmarks").with_suffix(suffix).write_bytes(
            tar.with_suffix(suffix).read_bytes()
        )
    with pytest.raises(UserError, match="another shard"):
        list(read_sidecar_tar(other, "landmarks"))


def test_read_sidecar_tar_refuses_link_with_right_hash(shard: Path) -> None:
    from dfer_dist.utils.files import sha256_file

    tar = write_sidecar_tar(shard, "landmarks", rows(shard))
    with tarfile.open(tar, "w") as archive:
        info = tarfile.TarInfo(f"{rows(shard)[0][0]}.landmarks.npy")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    about = read_json(tar.with_suffix(".json")) | {
        "bytes": tar.stat().st_size,
        "sha256": sha256_file(tar),
    }
    write_json(tar.with_suffix(".json"), about | {"hash": manifest_hash(about)})
    with pytest.raises(UserError, match=r"found \w+\.landmarks\.npy"):
        list(read_sidecar_tar(shard, "landmarks"))


def test_array_bytes_and_read_array_refuse_pickles(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        array_bytes(np.array([{}], dtype=object))
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_array((tmp_path / "bad.npy").read_bytes())


@pytest.mark.parametrize("kind", ["", "Landmarks", "../x", "a.b"])
def test_write_sidecar_tar_refuses_invalid_kind(shard: Path, kind: str) -> None:
    with pytest.raises(UserError, match="cannot name"):
        write_sidecar_tar(shard, kind, rows(shard))


def test_verify_names_damaged_sidecar_tar(shard: Path) -> None:
    tar = write_sidecar_tar(shard, "landmarks", rows(shard))
    assert verify(str(shard.parent))[1] == []
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    (damage,) = verify(str(shard.parent))[1]
    assert damage.file == tar.name and "differs from its hash" in damage.reason
    data[700] ^= 1
    tar.write_bytes(data)
    about = tar.with_suffix(".json")
    original = about.read_text()
    about.write_text(original.replace('"clips": 2', '"clips": 3'))
    (damage,) = verify(str(shard.parent))[1]
    assert damage.file == tar.name and "landmarks.json was changed" in damage.reason
    about.write_text(original)
    tar.unlink()
    (damage,) = verify(str(shard.parent))[1]
    assert damage.file == tar.name and "is missing" in damage.reason
