"""Sets that were damaged on their way: what reaches the model is as packed or is told as lost, and verify names what to copy again."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import (
    SIDECAR,
    DamagedIndex,
    Index,
    Shard,
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
from dfer_dist.utils.files import write_json
from tests.helpers.clips import write_clip
from tests.helpers.paths import DFER
from tests.helpers.web_server import Web

Clip = tuple[str, int, list[np.ndarray]]


def every(_: str, frames: int) -> np.ndarray:
    return np.arange(frames)


@dataclass
class Set:
    """A set to be damaged, what it held, and how its files were."""

    root: Path
    index: Index
    clips: dict[tuple[int, int], Clip]
    files: dict[str, bytes]

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(f"Set({self.root})")  # not all its bytes, where an example fails

    def mend(self) -> None:
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
        """Read all that can be read: each clip must be as it was packed. Files, and keys of clips, that were told to be damaged."""
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
    packed.mend()


def write_index(index: Index) -> None:
    body = {
        "name": index.name,
        "classes": list(index.classes),
        "shards": [vars(s) for s in index.shards],
        "hash": index.hash,
    }
    write_json(index.root / "index.json", body)


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
            mine, theirs = path.read_bytes(), other.read_bytes()
            path.write_bytes(theirs)
            other.write_bytes(mine)


HOW = ["flip", "cut", "lose a piece", "zero", "extend", "remove", "swap"]
FAULT = st.tuples(
    st.sampled_from(HOW),
    st.sampled_from(["tar", "tar", "tar", "sidecar", "index"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 10**6),
)


def check_all_is_told(victim: Set, faults: list[tuple[str, str, float, int]]) -> None:
    try:
        for words in faults:
            damage(victim, *words)
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
        victim.mend()


@settings(max_examples=120, deadline=None)
@given(faults=st.lists(FAULT, min_size=1, max_size=3))
def test_no_damage_reaches_the_model_and_verify_names_it_all(
    packed: Set, faults: list[tuple[str, str, float, int]]
) -> None:
    check_all_is_told(packed, faults)


@pytest.mark.data_full
@settings(max_examples=5000, deadline=None)
@given(faults=st.lists(FAULT, min_size=1, max_size=6))
def test_no_damage_of_many_reaches_the_model(
    packed: Set, faults: list[tuple[str, str, float, int]]
) -> None:
    check_all_is_told(packed, faults)


@pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.data_full)])
def test_a_shard_cut_at_any_byte_or_with_any_byte_altered_is_told(
    tmp_path: Path, stride: int
) -> None:
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
            told = set()
            for row, clip in enumerate(clips):
                try:
                    got = ClipReader(index).read(0, row, every)
                except DamagedClip as e:
                    told.add(e.key)
                else:
                    assert (got.key, got.label) == (clip.key, clip.label)
                    assert all(map(np.array_equal, got.frames, clip.frames))
            (found,) = verify(str(index.root))[1]
            assert found.file == path.name and set(found.clips) == told


def test_a_whole_set_is_whole(victim: Set) -> None:
    seen: list[tuple[int, int]] = []
    index, found = verify(str(victim.root), lambda done, total: seen.append((done, total)))
    assert (index, found) == (victim.index, [])
    assert seen == [(i, 6) for i in range(1, 7)]


def test_verify_tells_which_clips_are_hit_and_why(victim: Set) -> None:
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


def test_an_index_of_other_shards_fits_none(victim: Set, tiny_shards: Index) -> None:
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


def test_shards_that_are_gone_or_short_stop_a_run_unless_the_budget_covers_their_clips(
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
        match=rf"fold1-00000\.tar is missing: copy it again \(1 more .*{lost} clips would be lost, data.loss_budget={lost - 1}",
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
    told = {b.keys[0]: b.lost[0] for b in stream if b.lost}
    assert len(stream) == len(victim.clips) and len(told) == lost
    gone = set(index.sidecar(0)["key"].to_pylist()) | {r["key"] for r in rows[-2:]}
    assert set(told) == gone
    assert all(f"clip {key}" in line and "fold" in line for key, line in told.items())


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
def test_keys_that_are_paths_are_refused_even_where_all_hashes_agree(
    tmp_path: Path, key: str
) -> None:
    index = forged(tmp_path / "set", [member(f"{key}.mjpg")], [key], b"video")
    assert read_index(tmp_path / "set") == index
    with pytest.raises(
        UserError, match=r"fold1-00000\.tar: its sidecar has keys or labels that no packer writes"
    ):
        ClipReader(index).read(0, 0, every)
    assert "fold1-00000.tar" in {d.file for d in verify(str(tmp_path / "set"))[1]} or key == ""
    assert verify(str(tmp_path / "set"))[1]


@pytest.mark.parametrize(
    "odd",
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
def test_links_and_paths_in_a_tar_are_refused_even_where_all_hashes_agree(
    tmp_path: Path, odd: tarfile.TarInfo
) -> None:
    index = forged(tmp_path / "set", [odd], ["a"], b"video")
    assert read_index(tmp_path / "set") == index
    with pytest.raises(DamagedClip, match=r"where 'a\.mjpg' should be"):
        ClipReader(index).read(0, 0, every)
    (found,) = verify(str(tmp_path / "set"))[1]
    assert found.file == "fold1-00000.tar"
    assert (
        "has other members" in found.reason
        if odd.name == "b.mjpg"
        else "a path, link or special file" in found.reason
    )


def test_members_that_no_sidecar_names_are_told(tmp_path: Path) -> None:
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
        "has other members than its sidecar tells"
    ]


@pytest.mark.parametrize(
    "change",
    [{"file": "../x.tar"}, {"file": "/x.tar"}, {"sha256": "../../x"}, {"file": 5}, {"clips": -1}],
)
def test_an_index_that_names_files_elsewhere_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    index = forged(tmp_path / "set", [member("a.mjpg")], ["a"], b"video")
    shards = (replace(index.shards[0], **change),)
    write_index(replace(index, shards=shards, hash=content_hash("dfew", ["happiness"], shards)))
    with pytest.raises(DamagedIndex, match=r"index\.json"):
        read_index(tmp_path / "set")


def dfer_verify(where: object) -> tuple[int, str]:
    done = subprocess.run([DFER, "verify", str(where)], capture_output=True, text=True, timeout=60)
    return done.returncode, "".join(
        line for line in (done.stdout + done.stderr).splitlines(True) if "━" not in line
    )


def test_the_command_says_what_to_copy_again_of_a_folder_and_of_a_server(victim: Set) -> None:
    assert dfer_verify(victim.root) == (0, "6 shards, 24 clips: no file is damaged\n")
    rows = victim.index.sidecar(1).to_pylist()
    data = bytearray(victim.index.path(1).read_bytes())
    data[rows[0]["offset"] + 5] ^= 1
    victim.index.path(1).write_bytes(data)
    victim.index.path(5).unlink()
    first = f"copy again fold1-00001.tar: differs from the index (sha256); affected clips: {rows[0]['key']}\n"
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
