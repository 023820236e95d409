"""Reading clips of a shard: exact frames, and damage that is noticed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import BLOCK, Index, read_index, sidecar_path
from dfer_dist.data.shards.reader import _MAX_OPEN, ClipReader, DamagedClip, _decode, _member_size
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import write_clip


def every(_: str, frames: int) -> np.ndarray:
    return np.arange(frames)


def source_frames(root: Path, key: str) -> list[np.ndarray]:
    return [
        simplejpeg.decode_jpeg(f.read_bytes()) for f in sorted((root / "frames" / key).iterdir())
    ]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_read_returns_frames_and_label_as_packed(tiny_source: Path, tiny_shards: Index) -> None:
    lines = [
        line
        for f in (tiny_source / "lists").glob("*_test.txt")
        for line in f.read_text().splitlines()
    ]
    labels = {key: int(label) for key, _, label in map(str.split, lines)}
    reader, seen = ClipReader(tiny_shards), set()
    for shard in range(len(tiny_shards.shards)):
        for row in range(tiny_shards.shards[shard].clips):
            clip = reader.read(shard, row, every)
            assert (clip.key, clip.label) == (reader.key(shard, row), reader.label(shard, row))
            assert clip.label == labels[clip.key]
            assert same(clip.frames, source_frames(tiny_source, clip.key))
            seen.add(clip.key)
    assert len(seen) == 60


def test_read_returns_frames_in_requested_order(tiny_source: Path, tiny_shards: Index) -> None:
    asked: list[tuple[str, int]] = []

    def choose(key: str, frames: int) -> np.ndarray:
        asked.append((key, frames))
        return np.array([2, 0, 2, frames - 1])

    clip = ClipReader(tiny_shards).read(3, 1, choose)
    source = source_frames(tiny_source, clip.key)
    assert asked == [(clip.key, len(source))]
    assert same(clip.frames, [source[2], source[0], source[2], source[-1]])


def test_read_decodes_into_buffer_of_the_same_size(tiny_source: Path, tiny_shards: Index) -> None:
    reader = ClipReader(tiny_shards)
    source = source_frames(tiny_source, reader.key(3, 1))
    for shape, fits in (
        ((3, 40, 48, 3), True),
        ((3, 48, 40, 3), False),
        ((3, 24, 24, 3), False),
        ((3, 64, 64, 3), False),
    ):
        buffer = np.full(shape, 77, np.uint8)
        clip = reader.read(3, 1, lambda _, n: np.array([2, 0, 2]), buffer)
        assert (clip.frames is buffer) == fits and (fits or (buffer == 77).all())
        assert same(clip.frames, [source[2], source[0], source[2]])


def test_decode_refuses_frames_of_different_sizes() -> None:
    jpegs = {
        f: simplejpeg.encode_jpeg(np.zeros((16, width, 3), np.uint8))
        for f, width in enumerate((16, 24, 8))
    }
    assert _decode([1, 1], [(1, memoryview(jpegs[1]))], None).shape == (2, 16, 24, 3)
    for wanted in ([0, 1], [1, 0], [1, 2]):
        with pytest.raises(ValueError, match=r"size|buffer"):
            _decode(wanted, [(f, memoryview(jpegs[f])) for f in wanted], None)


def test_read_long_clip_whose_json_exceeds_first_read(tmp_path: Path) -> None:
    write_clip(tmp_path / "src", 3, seed=0, width=16, height=16)
    three = sorted((tmp_path / "src").iterdir())
    records = [ClipRecord("long", 1, "fold1", "long", tuple(three[i % 3] for i in range(2500)))]
    records.append(ClipRecord("short", 2, "fold1", "short", tuple(three)))
    index = pack(records, "dfew", tmp_path / "out", workers=1)
    reader = ClipReader(index)
    pictures = [simplejpeg.decode_jpeg(f.read_bytes()) for f in three]
    for row in range(2):
        clip = reader.read(0, row, lambda _, n: np.array([0, n // 2, n - 1]))
        n = {"long": 2500, "short": 3}[clip.key]
        assert same(clip.frames, [pictures[f % 3] for f in (0, n // 2, n - 1)])


@dataclass
class Victim:
    """A shard to be damaged, with its original bytes and clips."""

    index: Index
    path: Path
    good: bytes
    rows: list[dict]
    frames: list[list[np.ndarray]]

    def check(self, data: bytes) -> list[bool]:
        """Write ``data`` as the shard; each clip must be exact (False) or DamagedClip (True)."""
        self.path.write_bytes(data)
        reader = ClipReader(self.index)  # size was checked before the damage was done
        damaged = []
        for i, row in enumerate(self.rows):
            clip, error = None, None
            try:
                clip = reader.read(0, i, every)
            except DamagedClip as e:
                error = e
            if clip:
                assert (clip.key, clip.label) == (row["key"], row["label"])
                assert same(clip.frames, self.frames[i])
            else:
                assert (error.shard, error.key) == (self.path.name, row["key"]) and error.reason
                assert row["key"] in str(error) and self.path.name in str(error)
            damaged.append(clip is None)
        return damaged


@pytest.fixture(scope="module")
def victim(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    root = tmp_path_factory.mktemp("victim")
    for file in (tiny_shards.path(0), sidecar_path(tiny_shards.path(0))):
        shutil.copy(file, root)
    index = replace(tiny_shards, root=root, shards=tiny_shards.shards[:1])
    path, reader = index.path(0), ClipReader(index)
    rows = index.sidecar(0).to_pylist()
    return Victim(
        index,
        path,
        path.read_bytes(),
        rows,
        [reader.read(0, i, every).frames for i in range(len(rows))],
    )


def edit(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def damage(victim: Victim, data: bytes, how: str, delicate: bool, seed: int) -> bytes:
    """Edit a shard anywhere or, if ``delicate``, in the headers and the JSON member of a clip."""
    rng = np.random.default_rng(seed)
    row = victim.rows[rng.integers(len(victim.rows))]
    at = row["offset"] + int(rng.integers(3 * BLOCK)) if delicate else int(rng.integers(len(data)))
    if how == "flip":
        return edit(data, at, bytes([data[at] ^ int(rng.integers(1, 256))]))
    if how == "zero":
        return edit(data, at, bytes(min(int(rng.integers(1, 2000)), len(data) - at)))
    if how == "noise":
        return edit(data, at, rng.bytes(min(int(rng.integers(1, 100)), len(data) - at)))
    if how == "copy":  # a block written to the wrong place
        of = int(rng.integers(len(data) // BLOCK)) * BLOCK
        return edit(data, at // BLOCK * BLOCK, data[of : of + BLOCK])
    header = row["offset"] + 2 * BLOCK * int(rng.integers(2))
    a, b = (header + int(i) for i in rng.choice(200, 2, replace=False))
    up = int(
        rng.integers(min(255 - data[a], data[b]) + 1)
    )  # "pair": a header's checksum is no more than a sum of bytes
    return edit(edit(data, a, bytes([data[a] + up])), b, bytes([data[b] - up]))


EDITS = st.tuples(
    st.sampled_from(["flip", "zero", "noise", "copy", "pair"]), st.booleans(), st.integers(0, 2**63)
)


@settings(max_examples=200, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_read_returns_no_altered_frame_or_label(
    victim: Victim, edits: list[tuple[str, bool, int]]
) -> None:
    data = victim.good
    for change in edits:
        data = damage(victim, data, *change)
    assert len(data) == len(victim.good)
    victim.check(data)


def test_read_reports_only_the_damaged_clip(victim: Victim) -> None:
    assert victim.check(victim.good) == [False] * len(victim.rows)
    for hit, row in enumerate(victim.rows):
        for at in (0, BLOCK + 3, row["size"] // 2):  # header, JSON, frames
            place = row["offset"] + at
            damaged = victim.check(edit(victim.good, place, bytes([victim.good[place] ^ 16])))
            assert damaged == [i == hit for i in range(len(victim.rows))]


def test_read_ignores_damage_in_frames_not_requested(victim: Victim) -> None:
    row = victim.rows[1]
    place = row["offset"] + row["size"] // 2
    victim.path.write_bytes(edit(victim.good, place, bytes([victim.good[place] ^ 16])))
    clip = ClipReader(victim.index).read(0, 1, lambda _, n: np.array([0]))
    assert same(clip.frames, victim.frames[1][:1])


def test_member_size_matches_tarfile_and_detects_any_flip(victim: Victim) -> None:
    victim.path.write_bytes(victim.good)
    with tarfile.open(victim.path) as tar:
        members = tar.getmembers()
    for info in members[:2]:
        header = victim.good[info.offset : info.offset + BLOCK]
        assert _member_size(header, info.name) == info.size
        for at in range(BLOCK):
            for bit in (1, 8, 128):
                with pytest.raises(ValueError, match=r".+"):
                    _member_size(edit(header, at, bytes([header[at] ^ bit])), info.name)
        with pytest.raises(ValueError, match=r"where 'other\.json' should be"):
            _member_size(header, "other.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"label":', b'"lebal":'),
        (b'"offsets":[0,', b'"offsets":[9,'),
        (b'"offsets":[0,', b'"offsets":[NaN'),
        (b'"offsets":[', b'"offsets":{'),
        (b"{", b"["),
    ],
)
def test_read_refuses_altered_json(victim: Victim, old: bytes, new: bytes) -> None:
    at = victim.good.index(old, victim.rows[0]["offset"] + BLOCK)
    assert victim.check(edit(victim.good, at, new))[0]


def with_offsets(victim: Victim, change: Callable[[list[int]], object]) -> bytes:
    """The shard with other frame offsets in its first clip's JSON member."""
    start = victim.rows[0]["offset"] + BLOCK
    end = victim.good.index(b"}", start) + 1
    meta = json.loads(victim.good[start:end])
    meta["offsets"] = change(meta["offsets"])
    del meta["source"], meta["split"]  # not read, and frees space
    text = json.dumps(meta, separators=(",", ":")).encode()
    assert len(text) <= end - start
    return edit(victim.good, start, text.ljust(end - start))


@pytest.mark.parametrize("value", [1e9, -1, True, None, "x", [], 10**23])
def test_read_refuses_offsets_of_any_type(victim: Victim, value: object) -> None:
    assert victim.check(with_offsets(victim, lambda offsets: [*offsets[:-2], value, offsets[-1]]))[
        0
    ]


@pytest.mark.parametrize(
    "change",
    [lambda o: o[:-2] + o[-1:], lambda o: [*o[:-1], o[-1], o[-1]], lambda o: o[::-1], lambda o: []],
)
def test_read_refuses_wrong_list_of_offsets(
    victim: Victim, change: Callable[[list[int]], list[int]]
) -> None:
    assert victim.check(with_offsets(victim, change))[0]


def test_read_refuses_deeply_nested_json(tmp_path: Path) -> None:
    write_clip(tmp_path / "src", 1, seed=1, width=8, height=8)
    record = ClipRecord("a", 3, "fold1", "a", tuple((tmp_path / "src").iterdir()) * 1000)
    index = pack([record], "dfew", tmp_path / "out", workers=1)
    index.path(0).write_bytes(edit(index.path(0).read_bytes(), BLOCK, b"[" * 3000))
    with pytest.raises(DamagedClip):
        ClipReader(index).read(0, 0, every)


def test_truncated_shard_is_refused_and_its_clips_reported(
    victim: Victim, tiny_shards: Index, tmp_path: Path
) -> None:
    rows = victim.rows
    for cut in (
        rows[2]["offset"],
        rows[2]["offset"] + BLOCK,
        rows[2]["offset"] + rows[2]["size"] // 2,
        0,
    ):
        kept = sum(r["offset"] + r["size"] <= cut for r in rows)
        assert victim.check(victim.good[:cut]) == [i >= kept for i in range(len(rows))]
    copy = shutil.copytree(tiny_shards.root, tmp_path / "copy")
    (copy / victim.path.name).write_bytes(victim.good[: rows[2]["offset"]])
    with pytest.raises(
        UserError,
        match=rf"{victim.path.name} has {rows[2]['offset']} bytes, not {len(victim.good)}",
    ):
        read_index(copy)


def test_read_reports_removed_shard(victim: Victim) -> None:
    victim.path.unlink()
    with pytest.raises(DamagedClip, match="No such file"):
        ClipReader(victim.index).read(0, 0, every)
    victim.path.write_bytes(victim.good)


def test_reader_limits_open_files_and_closes_them(tiny_shards: Index) -> None:
    def opened() -> int:
        return sum(os.path.realpath(f.path) == path for f in os.scandir("/proc/self/fd"))

    path = str(tiny_shards.path(0).resolve())
    many = replace(tiny_shards, shards=tiny_shards.shards[:1] * (2 * _MAX_OPEN))
    reader = ClipReader(many)
    for shard in [*range(2 * _MAX_OPEN), 0, 1]:
        assert reader.read(shard, 0, lambda _, n: np.array([0])).key == reader.key(0, 0)
    assert 0 < opened() <= _MAX_OPEN
    del reader
    assert opened() == 0


def test_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(DamagedClip("s.tar", "k", "why")))
    assert (error.shard, error.key, error.reason, str(error)) == (
        "s.tar",
        "k",
        "why",
        "shard s.tar, clip k: why",
    )


@pytest.mark.parametrize("name", ["pipe:touch pwned;", "dfew:v2", "file:x", "a b#c"])
def test_folder_name_is_never_run_or_taken_for_a_url(
    tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_shards.root, name)
    index = read_index(Path(name))
    assert ClipReader(index).read(0, 0, every).key == ClipReader(tiny_shards).key(0, 0)
    assert not list(tmp_path.rglob("pwned"))
