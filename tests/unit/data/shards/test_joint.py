"""Several sets as one index: classes by name, unambiguous clips, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dfer_dist.config.schema import DataConfig, ExtraClasses
from dfer_dist.data.shards import sidecars
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import (
    JointIndex,
    check_mixture,
    join,
    map_classes,
    open_sets,
    sets_of,
    with_classes,
)
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.utils.errors import UserError
from tests.helpers.data.sets import OTHER_CLASSES, pack_other

# of OTHER_CLASSES among dfew's: anger, contempt, fear, happiness, sadness
LABELS = (3, -1, 6, 0, 1)


@pytest.fixture(scope="module")
def other(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Fifty clips of five folds; five classes, one of which dfew lacks."""
    return pack_other(tiny_source, tmp_path_factory.mktemp("other") / "shards")


def first(_: str, count: int) -> np.ndarray:
    return np.zeros(1, np.int64)


def test_classes_are_matched_by_name_case_and_adjective(tiny_shards: Index) -> None:
    assert map_classes(OTHER_CLASSES, tiny_shards.classes) == LABELS
    assert map_classes(("Boredom", "CALM"), ("calm", "boredom")) == (1, 0)


@pytest.mark.parametrize("extra", ExtraClasses)
def test_joint_labels_are_those_of_the_class_names(
    tiny_shards: Index, other: Index, extra: ExtraClasses
) -> None:
    joint = join([tiny_shards, other], extra)
    kept = ("contempt",) if extra is ExtraClasses.keep else ()
    assert joint.classes == (*tiny_shards.classes, *kept)
    assert joint.lost_classes(0) == {}
    assert joint.lost_classes(1) == ({} if kept else {"contempt": 10})
    expected = [label if label >= 0 or not kept else 7 for label in LABELS]
    offset = len(tiny_shards.shards)
    for i, shard in enumerate(other.shards):
        own, mapped = other.sidecar(i), joint.sidecar(offset + i)
        assert mapped["label"].to_pylist() == [expected[c] for c in own["label"].to_pylist()]
        assert mapped.drop_columns("label") == own.drop_columns("label")
        used = [c for c in mapped["label"].to_pylist() if c >= 0]
        counts = np.bincount(used, minlength=len(joint.classes)).tolist()
        assert counts == list(joint.shards[offset + i].histogram)
        assert joint.shards[offset + i].clips == shard.clips
    assert joint.sidecar(2) == tiny_shards.sidecar(2)


def test_reader_returns_joint_labels_and_tells_equal_keys_apart(
    tiny_shards: Index, other: Index
) -> None:
    joint = join([tiny_shards, other], ExtraClasses.keep)
    joint_reader, own_reader = ClipReader(joint), ClipReader(other)
    offset = len(tiny_shards.shards)
    for row in range(other.shards[1].clips):
        clip, own = joint_reader.read(offset + 1, row, first), own_reader.read(1, row, first)
        assert np.array_equal(clip.frames, own.frames)
        assert clip.label == joint_reader.label(offset + 1, row)
        assert joint.classes[clip.label] in (OTHER_CLASSES[own.label], "anger", "happiness")
        assert joint_reader.key(offset + 1, row) == f"other/{own.key}"
    names = {joint_reader.key(i, r) for i, s in enumerate(joint.shards) for r in range(s.clips)}
    assert len(names) == 60 + 50


def test_damaged_clip_is_named_with_its_set(
    tiny_shards: Index, tiny_source: Path, tmp_path: Path
) -> None:
    other = pack_other(tiny_source, tmp_path / "other")
    other.path(0).write_bytes(bytes(other.shards[0].bytes))
    joint = join([tiny_shards, other], ExtraClasses.keep)
    with pytest.raises(DamagedClip, match=r"shard other/fold1-00000\.tar, clip 000"):
        ClipReader(joint).read(len(tiny_shards.shards), 0, first)


def test_set_alone_keeps_its_keys_and_folds(tiny_shards: Index, other: Index) -> None:
    joint = join([tiny_shards, other], ExtraClasses.leave_out)
    assert joint.one_set(0) is tiny_shards
    alone = joint.one_set(1)
    assert (alone.name, alone.hash, alone.classes) == ("other", other.hash, tiny_shards.classes)
    assert ClipReader(alone).key(0, 0) == ClipReader(other).key(0, 0)
    assert [alone.test_shards(k) for k in alone.folds] == [
        other.test_shards(k) for k in other.folds
    ]


def test_hash_depends_on_each_set_and_on_the_classes(tiny_shards: Index, other: Index) -> None:
    changed = replace(other, hash="0" * 64)
    hashes = {
        join(sets, extra).hash
        for sets in ([tiny_shards, other], [other, tiny_shards], [tiny_shards, changed])
        for extra in ExtraClasses
    }
    assert len(hashes) == 6


def test_votes_and_labels_follow_the_joint_classes(tiny_shards: Index, other: Index) -> None:
    table = other.sidecar(0)
    votes = [[1.0, 2.0, 3.0, 4.0, 0.0], [], *[[0.0, 0.0, 0.0, 0.0, 5.0]] * (len(table) - 2)]
    labels = [[0, 1], *[[label] for label in table["label"].to_pylist()[1:]]]

    class WithVotes(Index):
        def sidecar(self, shard: int):
            return table.append_column("votes", [votes]).append_column("labels", [labels])

    voted = WithVotes(**{f.name: getattr(other, f.name) for f in fields(other)})
    voted = replace(voted, extras=("votes", "labels"))
    joint = join([tiny_shards, voted], ExtraClasses.leave_out)
    assert joint.extras == ("votes", "labels")
    mapped = joint.sidecar(len(tiny_shards.shards))
    assert mapped["votes"].to_pylist()[:2] == [[4.0, 0.0, 0.0, 1.0, 0.0, 0.0, 3.0], []]
    assert mapped["labels"].to_pylist()[0] == [3]
    own = joint.sidecar(0)
    assert own["votes"].to_pylist() == [[]] * len(own)
    assert own["labels"].to_pylist() == [[label] for label in own["label"].to_pylist()]


def test_sets_that_cannot_be_joined_are_refused(tiny_shards: Index, other: Index) -> None:
    def refuse(second: Index, message: str) -> None:
        with pytest.raises(UserError, match=message) as e:
            join([tiny_shards, second], ExtraClasses.keep)
        assert "\n" not in str(e.value)

    refuse(replace(other, name="dfew"), "are both named dfew: give each set once")
    refuse(replace(other, classes=("a", "b", "c", "d", "e")), "no class in common with dfew")
    three = tuple(s for s in other.shards if s.split in ("fold1", "fold2", "fold3"))
    refuse(
        replace(other, shards=three), "other has 3 folds, and there is a fold 4: give sets with as"
    )


def test_set_without_a_class_of_the_model_is_refused(other: Index) -> None:
    with pytest.raises(UserError, match="no class in common with the model"):
        with_classes(other, ("calm", "boredom"))


def test_mixture_of_unknown_or_single_set_is_refused(tiny_shards: Index, other: Index) -> None:
    check_mixture({"dfew": 2.0, "other": 0.5}, [tiny_shards, other])
    with pytest.raises(UserError, match=r"data\.mixture=\{mafw: 0\.5\}: the sets are dfew, other"):
        check_mixture({"mafw": 0.5}, [tiny_shards, other])
    with pytest.raises(UserError, match="weighs several sets, and data"):
        check_mixture({"dfew": 0.5}, [tiny_shards])


def test_open_sets_opens_one_or_several(tiny_shards: Index, other: Index) -> None:
    alone = open_sets(DataConfig(shards=str(tiny_shards.root)))
    assert alone == tiny_shards and sets_of(alone) == (alone,)
    assert not isinstance(open_sets(DataConfig(shards=[str(tiny_shards.root)])), JointIndex)
    joint = open_sets(DataConfig(shards=[str(tiny_shards.root), str(other.root)]))
    assert sets_of(joint) == (tiny_shards, other)
    assert joint.name == "dfew+other"


def test_missing_shard_of_any_set_is_found_when_opened(
    tiny_shards: Index, tiny_source: Path, tmp_path: Path
) -> None:
    other = pack_other(tiny_source, tmp_path / "other")
    gone = other.path(3)
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone} is missing: copy it again; 4 clips"):
        open_sets(DataConfig(shards=[str(tiny_shards.root), str(other.root)]))


def test_maps_that_were_made_differently_are_refused(
    tiny_shards: Index, other: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = join([tiny_shards, other], ExtraClasses.keep)
    makers = {"dfew": "network", "other": "network"}

    def read(index: Index, shard: int, kind: str) -> Any:
        by = makers[index.shard_name(shard).partition("/")[0]]
        return SimpleNamespace(sha256=f"{shard}", made={"by": by})

    monkeypatch.setattr(sidecars, "read_modality_manifest", read)
    made = sidecars.describe_modalities(joint, ["parsing"])
    assert made and made["made"] == {"parsing": ["network"]}
    makers["other"] = "regions"
    message = r"model\.modalities has parsing, made differently for the sets \(dfew: network; other"
    with pytest.raises(UserError, match=message):
        sidecars.describe_modalities(joint, ["parsing"])
