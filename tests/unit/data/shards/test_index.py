"""The index of a set of shards, and what packing writes."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT
from dfer_dist.data.shards.index import Index, read_index, sidecar_path
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.sources.records import ClipRecord, clip_files
from dfer_dist.utils.errors import UserError


@pytest.fixture(scope="module")
def records(tiny_source: Path) -> list[ClipRecord]:
    """What ``tiny_shards`` was packed from."""
    return read_lists("dfew", tiny_source / "frames", tiny_source / "lists")


@pytest.fixture
def copy(tiny_shards: Index, tmp_path: Path) -> Path:
    """A copy of ``tiny_shards``, to be damaged."""
    return shutil.copytree(tiny_shards.root, tmp_path / "copy")


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {f.name: (f.stat().st_mtime_ns, f.stat().st_ino) for f in folder.iterdir()}


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_validation_split_is_neither_trained_nor_tested(tiny_shards: Index) -> None:
    entry = tiny_shards.shards[0]
    splits = ("test", "train", "train", "val")
    index = replace(tiny_shards, shards=tuple(replace(entry, split=s) for s in splits))
    assert (index.folds, index.test_shards(1), index.train_shards(1)) == ([1], [0], [1, 2])
    assert index.val_shards == [3]
    assert index.ambiguous_shards == []
    assert tiny_shards.val_shards == []


def test_ambiguous_clips_are_in_no_fold(tiny_shards: Index) -> None:
    entry = tiny_shards.shards[0]
    splits = ("ambiguous", "fold1", "fold2")
    index = replace(tiny_shards, shards=tuple(replace(entry, split=s) for s in splits))
    assert (index.folds, index.ambiguous_shards) == ([1, 2], [0])
    assert (index.test_shards(1), index.train_shards(1)) == ([1], [2])


def test_pack_writes_every_clip_once_in_its_split(
    tiny_shards: Index, records: list[ClipRecord]
) -> None:
    packed = []
    for i, shard in enumerate(tiny_shards.shards):
        table = tiny_shards.sidecar(i).to_pydict()
        assert len(table["key"]) == shard.clips <= 5
        assert np.bincount(table["label"], minlength=7).tolist() == list(shard.histogram)
        assert table["frames"] == [len(c) for c in table["crc32"]]
        packed += [
            (k, y, shard.split, n)
            for k, y, n in zip(table["key"], table["label"], table["frames"], strict=True)
        ]
    assert sorted(packed) == sorted((r.key, r.label, r.split, len(clip_files(r))) for r in records)
    assert tiny_shards.folds == [1, 2, 3, 4, 5] and len(tiny_shards.shards) == 15
    for fold in tiny_shards.folds:
        test, train = tiny_shards.test_shards(fold), tiny_shards.train_shards(fold)
        assert {tiny_shards.shards[i].split for i in test} == {f"fold{fold}"}
        assert sorted(test + train) == list(range(15))


def test_pack_copies_frames_and_records_their_offsets(
    tiny_shards: Index, records: list[ClipRecord]
) -> None:
    sources = {r.key: r for r in records}
    for i in range(len(tiny_shards.shards)):
        with tarfile.open(tiny_shards.path(i)) as tar:
            rows = tiny_shards.sidecar(i).to_pylist()
            assert tar.getnames() == [f"{r['key']}.{x}" for r in rows for x in ("json", "mjpg")]
            for row in rows:
                record = sources[row["key"]]
                meta = json.load(tar.extractfile(f"{row['key']}.json"))
                assert (
                    meta["source"] == record.source
                    and meta["split"] == record.split
                    and meta["label"] == record.label
                )
                assert tar.getmember(f"{row['key']}.json").offset == row["offset"]
                video, at = tar.extractfile(f"{row['key']}.mjpg").read(), meta["offsets"]
                assert at[0] == 0 and at[-1] == len(video)
                assert [video[a:b] for a, b in pairwise(at)] == [
                    f.read_bytes() for f in clip_files(record)
                ]


def test_pack_again_changes_nothing(copy: Path, records: list[ClipRecord]) -> None:
    before = state(copy)
    assert pack(records, "dfew", copy, 5) == read_index(copy)
    assert state(copy) == before


def test_pack_refuses_folder_of_another_set(copy: Path, records: list[ClipRecord]) -> None:
    before, (first, *rest) = state(copy), records
    others = {
        "name": ("demo", records),
        "fewer clips": ("dfew", rest),
        "a label": ("dfew", [replace(first, label=first.label + 1), *rest]),
        "a split": ("dfew", [replace(first, split="fold2"), *rest]),
        "frames": ("dfew", [replace(first, media=clip_files(first)[:-1]), *rest]),
    }
    for dataset, clips in others.values():
        with pytest.raises(UserError, match=r"holds another data set \(dfew, 60 clips\)"):
            pack(clips, dataset, copy, 5)
    for settings in ({"clips_per_shard": 6}, {"clips_per_shard": 5, "size": 32}):
        with pytest.raises(UserError, match=r"was packed with --clips-per-shard 5: give the same"):
            pack(records, "dfew", copy, **settings)
    assert state(copy) == before


def test_pack_completes_partial_folder_of_the_same_set(
    tiny_shards: Index, copy: Path, records: list[ClipRecord]
) -> None:
    (copy / "index.json").unlink()
    with pytest.raises(
        UserError, match=r"fold1-00001\.(tar|parquet), which is no shard of this set"
    ):
        pack(
            [r for r in records if r.split == "fold1"], "dfew", copy, 256
        )  # its only shard would be fold1-00000
    (copy / "fold2-00001.tar").write_bytes(b"cut short")
    (copy / "fold3-00001.parquet").unlink()
    (copy / ".fold3-00001.tar.x1y2.tar").write_bytes(b"left by a killed process")
    pack(records, "dfew", copy, 5, workers=1)
    assert {k: v for k, v in files(copy).items() if k[0] != "."} == files(tiny_shards.root)


def test_pack_refuses_no_clips_and_duplicate_keys(
    records: list[ClipRecord], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="0 clips"):
        pack([], "dfew", tmp_path)
    with pytest.raises(UserError, match="0 per shard"):
        pack(records, "dfew", tmp_path, 0)
    with pytest.raises(UserError, match="the same key"):
        pack([records[0], replace(records[1], key=records[0].key)], "dfew", tmp_path)
    assert not any(tmp_path.iterdir())


def test_read_index_refuses_changed_index(copy: Path) -> None:
    file = copy / "index.json"
    good = json.loads(file.read_text())
    good["shards"][0]["histogram"][0] += 1
    changes = {
        "hash does not match": {"shards": good["shards"]},
        "its hash": {"classes": ["sadness", *good["classes"][1:]]},
        "not an index": {"shards": [{"file": "fold1-00000.tar"}]},
        "not of version": {"version": 99},
    }
    text = file.read_text()
    for message, change in changes.items():
        edit_json(file, **change)
        with pytest.raises(UserError, match=message) as caught:
            read_index(copy)
        assert str(file) in str(caught.value)
        file.write_text(text)
    file.write_text(text[:-40])
    with pytest.raises(UserError, match=r"index\.json is not an index .* cannot be read"):
        read_index(copy)
    file.unlink()
    with pytest.raises(UserError, match=r"holds no index\.json"):
        read_index(copy)


def test_read_index_refuses_missing_or_resized_shard(copy: Path) -> None:
    shard = copy / "fold3-00001.tar"
    data = shard.read_bytes()
    for damaged in (data[:-512], data + bytes(512), b""):
        shard.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"fold3-00001\.tar has {len(damaged)} bytes, not {len(data)}"
        ):
            read_index(copy)
    shard.unlink()
    with pytest.raises(UserError, match=r"fold3-00001\.tar is missing"):
        read_index(copy)


def test_sidecar_refuses_missing_or_changed_file(copy: Path) -> None:
    index = read_index(copy)
    path = sidecar_path(index.path(4))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name} differs from the index"):
        index.sidecar(4)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} is missing"):
        index.sidecar(4)
    assert index.sidecar(3).num_rows == index.shards[3].clips


def test_index_with_one_test_split_has_one_fold(records: list[ClipRecord], tmp_path: Path) -> None:
    pair = [replace(r, split="test" if i % 4 == 0 else "train") for i, r in enumerate(records[:20])]
    index = pack(pair, "ferv39k", tmp_path, 4, workers=1)
    assert read_index(tmp_path) == index
    assert index.folds == [1] and index.splits == ["test", "train"]
    assert sum(index.shards[i].clips for i in index.test_shards(1)) == 5
    assert sum(index.shards[i].clips for i in index.train_shards(1)) == 15


def test_extras_of_clips_are_columns_of_the_sidecars(
    records: list[ClipRecord], tmp_path: Path
) -> None:
    first, second, third = records[:3]
    clips = [
        replace(first, split="fold1", group="Ana", votes=(1, 0, 6.5, 0, 0, 0, 3)),
        replace(second, split="fold1", label=3, labels=(1, 3)),
        replace(third, split="fold2", label=2),
    ]
    index = pack(clips, "dfew", tmp_path / "all", workers=1)
    assert index.extras == ("group", "votes", "labels")
    assert read_index(tmp_path / "all") == index
    rows = {row["key"]: row for i in (0, 1) for row in index.sidecar(i).to_pylist()}
    assert [rows[clip.key]["group"] for clip in clips] == ["Ana", "", ""]
    assert [rows[clip.key]["votes"] for clip in clips] == [[1, 0, 6.5, 0, 0, 0, 3], [], []]
    assert [rows[clip.key]["labels"] for clip in clips] == [[first.label], [1, 3], [2]]
    groups = pack([replace(r, group="x") for r in records], "dfew", tmp_path / "one", workers=1)
    assert groups.extras == ("group",)
    assert groups.sidecar(0).column_names[-1] == "group"


def test_extras_change_the_sidecars_and_nothing_else(
    records: list[ClipRecord], tiny_shards: Index, tmp_path: Path
) -> None:
    clips = [replace(r, group=str(i)) for i, r in enumerate(records)]
    index = pack(clips, "dfew", tmp_path, 5, workers=1)
    assert index.hash != tiny_shards.hash
    assert [s.sha256 for s in index.shards] == [s.sha256 for s in tiny_shards.shards]
    others = {
        "other groups": [replace(clips[0], group="other"), *clips[1:]],
        "no groups": records,
        "part of a video": [replace(clips[0], start=1.0), *clips[1:]],
    }
    for changed in others.values():
        with pytest.raises(UserError, match="holds another data set"):
            pack(changed, "dfew", tmp_path, 5)
    edit_json(tmp_path / "index.json", extras=["group", "votes"])
    with pytest.raises(UserError, match="hash does not match"):
        read_index(tmp_path)
    edit_json(tmp_path / "index.json", extras=["song"])
    with pytest.raises(UserError, match="not an index of this program"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "extra", [{"votes": (1, 2)}, {"votes": (1, 2) * 4}, {"labels": (0, 7)}, {"labels": (-1, 0)}]
)
def test_sidecar_refuses_votes_and_labels_of_other_classes(
    records: list[ClipRecord], tmp_path: Path, extra: dict[str, tuple[int, ...]]
) -> None:
    index = pack([replace(records[0], **extra)], "dfew", tmp_path, workers=1)
    with pytest.raises(UserError, match=r"fold1-00000\.parquet has keys or labels that no packer"):
        index.sidecar(0)


def test_pack_writes_plain_tar_without_local_paths(
    records: list[ClipRecord], tmp_path: Path
) -> None:
    pack(records[:2], "dfew", tmp_path / "out", workers=1)
    shard = tmp_path / "out" / "fold1-00000.tar"
    with tarfile.open(shard) as tar:
        for member in tar:
            assert member.isreg() and member.mtime == 0 and "/" not in member.name
    assert shard.stat().st_mode & 0o600 == 0o600
    for text in (
        shard.read_bytes(),
        (shard.parent / REPORT).read_bytes(),
        (shard.parent / "index.json").read_bytes(),
    ):
        assert str(tmp_path).encode() not in text and b"tiny" not in text
