"""Whether an overlay fits a packed set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import (
    PackedClips,
    check_overlay,
    groups_in_file,
    open_folds,
    read_packed,
    stored_groups,
)
from dfer_dist.data.shards.index import Index
from dfer_dist.utils.errors import UserError
from tests.helpers.data.folds import fold_overlay


@pytest.fixture(scope="module")
def clips(tiny_shards: Index) -> PackedClips:
    return read_packed(tiny_shards)


@pytest.fixture
def overlay(tiny_shards: Index) -> FoldOverlay:
    return fold_overlay(tiny_shards, 3)


def check(overlay: FoldOverlay, index: Index) -> list[str]:
    return check_overlay(overlay, index, read_packed(index), "folds.json")


def test_read_packed_has_every_clip(tiny_shards: Index, clips: PackedClips) -> None:
    assert len(clips.keys) == len(set(clips.keys)) == 60 and min(clips.keys) == "00000"
    assert [clips.labels.count(c) for c in range(7)] == [10, 10, 10, 10, 10, 5, 5]
    assert all(clips.testable) and set(clips.groups) == {""}
    marked = replace(tiny_shards.shards[0], split="ambiguous")
    index = replace(tiny_shards, shards=(marked, *tiny_shards.shards[1:]))
    assert read_packed(index).testable == [i >= marked.clips for i in range(60)]


def test_overlay_is_read_as_written(
    tiny_shards: Index, overlay: FoldOverlay, tmp_path: Path
) -> None:
    overlay.write(tmp_path / "folds.json")
    assert FoldOverlay.read(tmp_path / "folds.json") == overlay
    assert check(overlay, tiny_shards) == []
    data = DataConfig(folds=str(tmp_path / "folds.json"))
    assert open_folds(data, tiny_shards) == overlay
    assert open_folds(replace(data, folds_hash=overlay.hash), tiny_shards) == overlay
    assert open_folds(DataConfig(), tiny_shards) is None
    with pytest.raises(UserError, match=r"data\.folds=no\.json is missing: dfer folds writes"):
        open_folds(DataConfig(folds="no.json"), tiny_shards)
    with pytest.raises(UserError, match=f"has the hash {overlay.hash[:12]}, but .*=abc: give"):
        open_folds(replace(data, folds_hash="abc"), tiny_shards)


def test_edited_overlay_is_refused(overlay: FoldOverlay, tmp_path: Path) -> None:
    overlay.write(tmp_path / "folds.json")
    content = json.loads((tmp_path / "folds.json").read_text())
    content["fold_of"]["00000"] = 2
    (tmp_path / "folds.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"was changed: .* \(--by file takes folds"):
        FoldOverlay.read(tmp_path / "folds.json")
    with pytest.raises(UserError, match=r"none\.json is missing"):
        FoldOverlay.read(tmp_path / "none.json")


def test_overlay_of_another_set_is_refused(tiny_shards: Index, overlay: FoldOverlay) -> None:
    other = replace(tiny_shards, hash="0" * 64)
    with pytest.raises(UserError, match=r"folds\.json is of another set \(dfew, index "):
        check(overlay, other)


def test_every_clip_has_one_fold(tiny_shards: Index, overlay: FoldOverlay) -> None:
    more = replace(overlay, fold_of=overlay.fold_of | {"nobody": 1})
    with pytest.raises(UserError, match="the set has no clip nobody"):
        check(more, tiny_shards)
    fewer = replace(overlay, fold_of={k: f for k, f in overlay.fold_of.items() if k > "00001"})
    with pytest.raises(UserError, match=r"has no fold for clip 00000 \(2 missing\)"):
        check(fewer, tiny_shards)
    for fold in (0, 4):
        outside = replace(overlay, fold_of=overlay.fold_of | {"00007": fold})
        with pytest.raises(UserError, match=f"clip 00007 is in fold {fold}, but folds are 1 to 3"):
            check(outside, tiny_shards)


def test_empty_fold_is_refused(tiny_shards: Index, overlay: FoldOverlay) -> None:
    with pytest.raises(UserError, match="fold 4 has no clip: give fewer folds"):
        check(replace(overlay, folds=4), tiny_shards)


def test_fold_without_a_class_is_a_warning(tiny_shards: Index, clips: PackedClips) -> None:
    by_class = {k: 1 + (c == 6) for k, c in zip(clips.keys, clips.labels, strict=True)}
    overlay = replace(fold_overlay(tiny_shards, 2), fold_of=by_class)
    assert check(overlay, tiny_shards) == [
        "fold 1 tests no clip of fear",
        "fold 2 tests no clip of happiness, sadness, neutral, anger, surprise, disgust",
        "fold 1 tests 55 clips, fold 2 5: groups are too large",
    ]


def test_group_in_two_folds_is_refused(tiny_shards: Index, overlay: FoldOverlay) -> None:
    groups = dict.fromkeys(list(overlay.fold_of)[:6:3], "anna")
    assert check(replace(overlay, group_of=groups), tiny_shards) == []
    leaking = replace(overlay, group_of=groups | {list(overlay.fold_of)[1]: "anna"})
    with pytest.raises(UserError, match="group anna is in folds 1 and 2: give it one"):
        check(leaking, tiny_shards)


def test_ambiguous_clips_need_no_fold(tiny_shards: Index, overlay: FoldOverlay) -> None:
    marked = replace(tiny_shards.shards[0], split="ambiguous")
    index = replace(tiny_shards, shards=(marked, *tiny_shards.shards[1:]))
    keys = index.sidecar(0)["key"].to_pylist()
    free = replace(overlay, fold_of=overlay.fold_of | dict.fromkeys(keys, 0))
    assert check(free, index) == []


def test_groups_in_file_are_found_by_name_or_key(clips: PackedClips, tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("clip,person\n" + "".join(f"{k}.mp4,p{k[-1]}\n" for k in clips.keys))
    assert groups_in_file(clips, file, "person") == {k: f"p{k[-1]}" for k in clips.keys}
    named = replace(clips, keys=["Happy_a_b", "c"], testable=[True, False])
    file.write_text("clip,person\nHappy/a b,x\n")
    assert groups_in_file(named, file, "person") == {"Happy_a_b": "x"}
    with pytest.raises(UserError, match=f"no row for clip {clips.keys[0]}, nor for 59 more"):
        groups_in_file(clips, file, "person")


def test_stored_groups_must_be_known(tiny_shards: Index, clips: PackedClips) -> None:
    with pytest.raises(UserError, match="does not say the group of 60 clips, such as"):
        stored_groups(tiny_shards, clips)
    known = replace(clips, groups=[f"p{k[-1]}" for k in clips.keys])
    assert stored_groups(tiny_shards, known)["00013"] == "p3"
