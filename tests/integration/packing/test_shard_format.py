"""Shards as other programs read them, packed by several processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import simplejpeg
import webdataset as wds

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.sources.records import ClipRecord


@pytest.fixture(scope="module")
def records(tiny_source: Path) -> list[ClipRecord]:
    """What ``tiny_shards`` was packed from."""
    return read_lists("dfew", tiny_source / "frames", tiny_source / "lists")


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_webdataset_and_tar_read_the_shards(tiny_shards: Index, records: list[ClipRecord]) -> None:
    paths = [str(tiny_shards.path(i)) for i in range(len(tiny_shards.shards))]
    samples = list(wds.WebDataset(paths, shardshuffle=False))
    assert sorted(s["__key__"] for s in samples) == sorted(r.key for r in records)
    for sample in samples:
        meta = json.loads(sample["json"])
        assert meta["key"] == sample["__key__"] and meta["offsets"][-1] == len(sample["mjpg"])
        assert simplejpeg.decode_jpeg(sample["mjpg"][: meta["offsets"][1]]).shape == (40, 48, 3)
    listing = subprocess.run(
        ["tar", "tf", paths[0]], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listing == [
        f"{k}.{x}" for k in tiny_shards.sidecar(0)["key"].to_pylist() for x in ("json", "mjpg")
    ]


@pytest.mark.skipif(
    not shutil.which("ffprobe"), reason="ffprobe is not there: make system installs it"
)
def test_ffprobe_plays_a_clip(tiny_shards: Index, tmp_path: Path) -> None:
    table = tiny_shards.sidecar(0).to_pydict()
    with tarfile.open(tiny_shards.path(0)) as tar:
        tar.extract(f"{table['key'][0]}.mjpg", tmp_path, filter="data")
    shown = "stream=codec_name,width,height,nb_read_frames"
    command = [
        "ffprobe",
        "-v",
        "error",
        "-count_frames",
        "-show_entries",
        shown,
        "-of",
        "json",
        tmp_path / f"{table['key'][0]}.mjpg",
    ]
    (stream,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[
        "streams"
    ]
    assert (stream["codec_name"], stream["width"], stream["height"]) == ("mjpeg", 48, 40)
    assert int(stream["nb_read_frames"]) == table["frames"][0]


def test_pack_bytes_are_independent_of_order_and_workers(
    tiny_shards: Index, records: list[ClipRecord], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    again = pack(
        records[::-1],
        "dfew",
        tmp_path,
        5,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert files(tmp_path) == files(tiny_shards.root) and again.hash == tiny_shards.hash
    assert seen == sorted(seen) and seen[-1] == (60, 60)  # tiny_shards was packed by one
