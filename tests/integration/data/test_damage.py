"""Damaged sets: a clip is read as packed or reported as lost; verify names what to copy again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import (
    DamagedIndex,
    Index,
    check_sizes,
    content_hash,
    load_index,
    read_index,
    sidecar_path,
)
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.data.verify import Damage, verify
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import write_clip, write_index
from tests.helpers.data.web_server import Web
from tests.helpers.forked import Forked
from tests.helpers.paths import DFER

Clip = tuple[str, int, list[np.ndarray]]


def every(_: str, frames: int) -> np.ndarray:
    return np.arange(frames)


@dataclass
class Set:
    """A set to be damaged, with its clips and the original bytes of its files."""

    root: Path
    index: Index
    clips: dict[tuple[int, int], Clip]
    files: dict[str, bytes]

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(f"Set({self.root})")  # not all its bytes, where an example fails

    def restore(self) -> None:
        for name, data in self.files.items():
            if not (self.root / name).is_file() or (self.root / name).read_bytes() != data:
                (self.root / name).write_bytes(data)

    def changed(self) -> set[str]:
        return {
            n
            for n, d in self.files.items()
            if not (self.root / n).is_file() or (self.root / n).read_bytes() != d
        }

    def read(self, index: Index) -> tuple[set[str], set[str]]:
        """Read all clips, each of which must be as packed; return damaged files and keys."""
        reader, files, keys = ClipReader(index), set(), set()
        for shard, row in self.clips:
            try:
                clip = reader.read(shard, row, every)
            except UserError as e:
                files.add(re.search(r"([^/]*\.parquet) (is missing|differs)", str(e))[1])
            except DamagedClip as e:
                files.add(e.shard)
                keys.add(e.key)
            else:
                key, label, frames = self.clips[shard, row]
                assert (clip.key, clip.label, len(clip.frames)) == (key, label, len(frames))
                assert all(map(np.array_equal, clip.frames, frames))
        return files, keys


@pytest.fixture(scope="module")
def packed(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Set:
    """Six shards of ``tiny_shards``, of two folds, as a set of their own."""
    root = tmp_path_factory.mktemp("damage")
    shards = tiny_shards.shards[:6]
    index = replace(
        tiny_shards,
        root=root,
        shards=shards,
        hash=content_hash("dfew", tiny_shards.classes, shards),
    )
    write_index(index)
    for i in range(6):
        for file in (tiny_shards.path(i), sidecar_path(tiny_shards.path(i))):
            shutil.copy(file, root)
    reader, clips = ClipReader(index), {}
    for shard, entry in enumerate(shards):
        for row in range(entry.clips):
            clip = reader.read(shard, row, every)
            clips[shard, row] = (clip.key, clip.label, clip.frames)
    return Set(root, index, clips, {f.name: f.read_bytes() for f in root.iterdir()})


@pytest.fixture
def victim(packed: Set) -> Iterator[Set]:
    yield packed
    packed.restore()


def damage(victim: Set, how: str, what: str, place: float, more: int) -> None:
    """One fault in one file."""
    suffix = {"tar": ".tar", "sidecar": ".parquet", "index": ".json"}[what]
    files = sorted(victim.root / name for name in victim.files if name.endswith(suffix))
    path = files[more % len(files)]
    if not path.is_file():
        return
    data = path.read_bytes()
    at = int(place * len(data))
    if how == "flip" and data:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << more % 8)]) + data[at + 1 :])
    elif how == "cut":
        path.write_bytes(data[:at])
    elif how == "lose a piece":
        path.write_bytes(data[:at] + data[at + 1 + more % 2000 :])
    elif how == "zero":
        path.write_bytes(data[:at] + bytes(min(4096, len(data) - at)) + data[at + 4096 :])
    elif how == "extend":
        path.write_bytes(data + bytes(more % 600 + 1))
    elif how == "remove" and what != "index":
        path.unlink()
    elif how == "swap":
        other = files[int(place * len(files))]
        if other.is_file():
            first, second = path.read_bytes(), other.read_bytes()
            path.write_bytes(second)
            other.write_bytes(first)


HOW = ["flip", "cut", "lose a piece", "zero", "extend", "remove", "swap"]


FAULT = st.tuples(
    st.sampled_from(HOW),
    st.sampled_from(["tar", "tar", "tar", "sidecar", "index"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 10**6),
)


def check_all_is_reported(victim: Set, faults: list[tuple[str, str, float, int]]) -> None:
    try:
        for fault in faults:
            damage(victim, *fault)
        changed = victim.changed()
        try:
            index = load_index(victim.root)
        except DamagedIndex:
            assert "index.json" in changed
            assert [d.file for d in verify(str(victim.root))[1]] == ["index.json"]
            return
        assert index == victim.index  # a change of white space in index.json is none
        files, keys = victim.read(index)
        assert files <= changed and keys <= {key for key, _, _ in victim.clips.values()}
        found = verify(str(victim.root))[1]
        assert {d.file for d in found} == changed - {"index.json"}
        named = {key for d in found for key in d.clips}
        judged = [
            i
            for i in range(6)
            if index.path(i).is_file() and sidecar_path(index.path(i)).name not in changed
        ]
        assert named == keys & {
            key for (shard, _), (key, _, _) in victim.clips.items() if shard in judged
        }
        for i in range(len(index.shards)):
            if index.path(i).name in changed and (
                not index.path(i).is_file() or index.path(i).stat().st_size != index.shards[i].bytes
            ):
                with pytest.raises(UserError, match=r"is missing|bytes, not"):
                    read_index(victim.root)
    finally:
        victim.restore()


@settings(max_examples=120, deadline=None)
@given(faults=st.lists(FAULT, min_size=1, max_size=3))
def test_damage_never_reaches_the_model_and_verify_names_it(
    packed: Set, faults: list[tuple[str, str, float, int]]
) -> None:
    check_all_is_reported(packed, faults)


@pytest.mark.data_full
@settings(max_examples=5000, deadline=None)
@given(faults=st.lists(FAULT, min_size=1, max_size=6))
def test_many_faults_never_reach_the_model(
    packed: Set, faults: list[tuple[str, str, float, int]]
) -> None:
    check_all_is_reported(packed, faults)


@pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.data_full)])
def test_shard_truncated_or_altered_at_any_byte_is_reported(tmp_path: Path, stride: int) -> None:
    write_clip(tmp_path / "src", 2, seed=0, width=8, height=8)
    frames = tuple(sorted((tmp_path / "src").iterdir()))
    index = pack(
        [ClipRecord(key, 2, "fold1", key, frames) for key in "ab"],
        "dfew",
        tmp_path / "set",
        workers=1,
    )
    path, reader = index.path(0), ClipReader(index)
    good, clips = path.read_bytes(), [reader.read(0, row, every) for row in range(2)]
    for at in range(0, len(good), stride):
        for bad in (good[:at], good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]):
            path.write_bytes(bad)
            reported = set()
            for row, clip in enumerate(clips):
                try:
                    got = ClipReader(index).read(0, row, every)
                except DamagedClip as e:
                    reported.add(e.key)
                else:
                    assert (got.key, got.label) == (clip.key, clip.label)
                    assert all(map(np.array_equal, got.frames, clip.frames))
            (found,) = verify(str(index.root))[1]
            assert found.file == path.name and set(found.clips) == reported


def test_verify_intact_set_finds_nothing(victim: Set) -> None:
    seen: list[tuple[int, int]] = []
    index, found = verify(str(victim.root), lambda done, total: seen.append((done, total)))
    assert (index, found) == (victim.index, [])
    assert seen == [(i, 6) for i in range(1, 7)]


def test_verify_names_damaged_clips_and_reasons(victim: Set) -> None:
    rows = victim.index.sidecar(2).to_pylist()
    path = victim.index.path(2)
    data = bytearray(path.read_bytes())
    for row in rows[1:3]:
        data[row["offset"] + row["size"] // 2] ^= 1
    path.write_bytes(data)
    shutil.copy(victim.index.path(0), victim.index.path(1))
    victim.index.path(3).unlink()
    sidecar_path(victim.index.path(4)).write_bytes(b"PAR1")
    third, fourth = (victim.index.shards[i].bytes for i in (0, 1))
    assert verify(str(victim.root))[1] == [
        Damage(
            "fold1-00001.tar",
            f"has {third} bytes, not {fourth}",
            tuple(victim.index.sidecar(1)["key"].to_pylist()),
        ),
        Damage(
            "fold1-00002.tar", "differs from the index (sha256)", (rows[1]["key"], rows[2]["key"])
        ),
        Damage("fold2-00000.tar", "is missing"),
        Damage(
            "fold2-00001.parquet", "differs from the index (sha256): copy it again or pack again"
        ),
    ]


def test_verify_index_of_other_shards_reports_all_files(victim: Set, tiny_shards: Index) -> None:
    others = tuple(
        replace(s, file=victim.index.shards[i].file) for i, s in enumerate(tiny_shards.shards[6:12])
    )
    write_index(
        replace(victim.index, shards=others, hash=content_hash("dfew", tiny_shards.classes, others))
    )
    index, found = verify(str(victim.root))
    assert index and {d.file for d in found} == set(victim.files) - {"index.json"}
    with pytest.raises(UserError, match="bytes, not"):
        read_index(victim.root)
    with pytest.raises(UserError, match="differs from the index"):
        ClipReader(index).read(0, 0, every)


def test_missing_shards_stop_a_run_beyond_the_loss_budget(
    victim: Set,
) -> None:
    index = victim.index
    index.path(0).unlink()
    rows = index.sidecar(4).to_pylist()
    with index.path(4).open("r+b") as f:
        f.truncate(rows[-2]["offset"] + 5)  # the last two clips go
    lost = index.shards[0].clips + 2
    with pytest.raises(
        UserError,
        match=rf"fold1-00000\.tar is missing: copy it again \(1 more .*{lost} clips would be lost, "
        rf"data.loss_budget={lost - 1}",
    ):
        read_index(victim.root, lost - 1)
    assert read_index(victim.root, lost) == index
    with pytest.raises(UserError, match=r"fold2-00001\.tar has \d+ bytes.* a test may lose none"):
        check_sizes(index, index.test_shards(2))  # a test may lose nothing
    plan = EpochPlan(all_clips(index, range(6)), 0, 0, 1, 512)
    stream = list(
        train_loader(
            index,
            DataConfig("-", num_frames=2, image_size=16, workers=0),
            plan,
            epochs=1,
            micro_batch=1,
        )
    )
    lost_keys = {b.keys[0]: b.lost[0] for b in stream if b.lost}
    assert len(stream) == len(victim.clips) and len(lost_keys) == lost
    gone = set(index.sidecar(0)["key"].to_pylist()) | {r["key"] for r in rows[-2:]}
    assert set(lost_keys) == gone
    assert all(f"clip {key}" in line and "fold" in line for key, line in lost_keys.items())


def dfer_verify(where: object) -> tuple[int, str]:
    done = Forked([DFER, "verify", str(where)], os.environ).wait(timeout=60)
    return done.returncode, "".join(
        line for line in (done.stdout + done.stderr).splitlines(True) if "━" not in line
    )


def test_verify_command_names_files_of_folder_and_server(victim: Set) -> None:
    assert dfer_verify(victim.root) == (0, "6 shards, 24 clips: no file is damaged\n")
    rows = victim.index.sidecar(1).to_pylist()
    data = bytearray(victim.index.path(1).read_bytes())
    data[rows[0]["offset"] + 5] ^= 1
    victim.index.path(1).write_bytes(data)
    victim.index.path(5).unlink()
    reason = f"differs from the index (sha256); affected clips: {rows[0]['key']}"
    first = f"copy again fold1-00001.tar: {reason}\n"
    last = "6 shards, 24 clips: 2 files are damaged\n"
    assert dfer_verify(victim.root) == (1, f"{first}copy again fold2-00002.tar: is missing\n{last}")
    web = Web(victim.root)
    web.faults["fold1-00000.tar"] = [503]
    there = f"copy again fold2-00002.tar: {web.url}/fold2-00002.tar: no such file there\n"
    assert dfer_verify(web.url) == (1, first + there + last)
    web.close()
    (victim.root / "index.json").write_bytes(victim.files["index.json"][:-20])
    code, text = dfer_verify(victim.root)
    assert code == 1 and text.startswith("copy again index.json: ") and text.count("\n") == 1
    code, text = dfer_verify(victim.root / "nothing")
    assert code == 2 and "holds no index.json" in text
