"""Descriptions next to the shards: stored durably, checked, and never of test clips in training."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.captions.store import (
    FILE,
    Source,
    clip_hashes,
    clip_keys,
    descriptions,
    open_writer,
    parse,
    read,
)
from dfer_dist.data.loading.sampler import all_clips, train_val_split
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.verify import verify
from dfer_dist.utils.errors import UserError
from tests.helpers.data.descriptions import MODEL, fill_descriptions, train_keys


@pytest.fixture
def index(tiny_shards: Index, tmp_path: Path) -> Index:
    """A copy of ``tiny_shards`` of its own."""
    return load_index(Path(shutil.copytree(tiny_shards.root, tmp_path / "shards")))  # type: ignore[arg-type]


def lines(index: Index) -> list[bytes]:
    return (index.root / FILE).read_bytes().splitlines(keepends=True)  # type: ignore[operator]


def test_descriptions_of_training_clips_are_cleaned(index: Index) -> None:
    fill_descriptions(index)
    keys = train_keys(index, 2)
    assert len(keys) == len(set(keys)) == 48
    assert descriptions(index, keys, 2) == {key: f"The brows of {key} rise." for key in keys}
    assert descriptions(index, keys[:3], 2).keys() == set(keys[:3])


def test_descriptions_refuses_test_clips_unless_testing(index: Index) -> None:
    fill_descriptions(index)
    test = clip_keys(index, all_clips(index, index.test_shards(2)))
    with pytest.raises(ValueError, match=f"1 clips, such as {test[3]}, are tested in fold 2"):
        descriptions(index, [*train_keys(index, 2), test[3]], 2)
    assert descriptions(index, test, 2, testing=True).keys() == set(test)
    assert descriptions(index, test, 1, testing=True).keys() == set(test)
    with pytest.raises(ValueError, match="no clip nobody"):
        descriptions(index, ["nobody"], 2)


def test_clip_keys_separates_training_and_validation(index: Index) -> None:
    train, val = train_val_split(index, all_clips(index, index.train_shards(1)), 0.2, 0)
    a, b = clip_keys(index, train), clip_keys(index, val)
    assert len(a) == len(train) and len(b) == len(val)
    assert sorted(a + b) == sorted(train_keys(index, 1))
    rows = train.rows[0]
    assert rows is not None
    assert (
        a[: len(rows)] == np.array(index.sidecar(train.shards[0])["key"].to_pylist())[rows].tolist()
    )


def test_descriptions_leaves_out_missing_and_emptied(index: Index) -> None:
    hashes = clip_hashes(index)
    first, second, third = train_keys(index, 1)[:3]
    with open_writer(index) as writer:
        writer.add(MODEL, [(first, hashes[first], "She is sad.")])
        writer.add(MODEL, [(second, hashes[second], "The lips part.")])
        writer.add(MODEL, [(second, hashes[second], "The lips close.")])
        writer.add(MODEL, [(third, "0" * 64, "Of frames that were packed anew.")])
    assert descriptions(index, train_keys(index, 1), 1) == {second: "The lips close."}


def test_descriptions_chooses_source_by_name_or_hash(index: Index) -> None:
    other = Source({**MODEL.about, "frames": 4})
    chinese = Source({"kind": "import", "name": "captions", "language": "zh"})
    fill_descriptions(index)
    keys = train_keys(index, 1)[:1]
    fill_descriptions(index, chinese, "眉毛{}上扬。")
    assert descriptions(index, keys, 1)[keys[0]].startswith("The brows")
    assert descriptions(index, keys, 1, language="zh") == {keys[0]: f"眉毛{keys[0]}上扬。"}
    fill_descriptions(index, other, "The jaw of {} drops.")
    with pytest.raises(UserError, match=f"2 sources in 'en'.*{MODEL.hash[:8]}.*{other.hash[:8]}"):
        descriptions(index, keys, 1)
    with pytest.raises(UserError, match="2 sources named m"):
        descriptions(index, keys, 1, source="m")
    assert descriptions(index, keys, 1, source=other.hash[:8]) == {
        keys[0]: f"The jaw of {keys[0]} drops."
    }
    with pytest.raises(UserError, match="0 sources named"):
        descriptions(index, keys, 1, source=other.hash[:7])


def test_descriptions_without_file_names_the_command(index: Index) -> None:
    with pytest.raises(UserError, match="dfer describe makes it"):
        descriptions(index, [], 1)


def test_clip_hash_depends_on_frames(index: Index, tiny_source: Path, tmp_path: Path) -> None:
    frames = Path(shutil.copytree(tiny_source / "frames", tmp_path / "frames"))
    shutil.copy(frames / "00002" / "00000.jpg", frames / "00007" / "00001.jpg")
    records = read_lists("dfew", frames, tiny_source / "lists")
    other = clip_hashes(
        pack(records, "dfew", tmp_path / "other", clips_per_shard=60, workers=1)
    )  # cut otherwise as well
    assert {key for key, clip in clip_hashes(index).items() if other[key] != clip} == {"00007"}


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_writer_removes_torn_last_line(index: Index, torn: int) -> None:
    fill_descriptions(index)
    whole = lines(index)
    path = index.root / FILE  # type: ignore[operator]
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:torn])
    assert len(read(index).of(MODEL)) == 59
    hashes = clip_hashes(index)
    with open_writer(index) as writer:
        assert len(writer.stored.of(MODEL)) == 59
        last = json.loads(whole[-1])
        writer.add(MODEL, [(last["key"], hashes[last["key"]], last["text"])])
    assert lines(index) == whole


@pytest.mark.parametrize("change", ["flip", "no json", "a list", "foreign"])
def test_changed_line_is_named(index: Index, change: str) -> None:
    fill_descriptions(index)
    assert verify(str(index.root))[1] == []
    whole = lines(index)
    new = {
        "flip": whole[4].replace(b"rise", b"fall"),
        "no json": b"{\n",
        "a list": b"[1]\n",
        "foreign": b'{"sha256": "0"}\n',
    }
    whole[4] = new[change]
    (index.root / FILE).write_bytes(b"".join(whole))  # type: ignore[operator]
    with pytest.raises(UserError, match="line 5 was changed"):
        descriptions(index, [], 1)
    with pytest.raises(UserError, match="line 5 was changed"), open_writer(index):
        pass
    (damage,) = verify(str(index.root))[1]
    assert (damage.file, damage.reason[:18]) == (FILE, "line 5 was changed")


def test_writer_is_shared_by_threads_but_opened_once(index: Index) -> None:
    hashes = list(clip_hashes(index).items())
    with open_writer(index) as writer:
        threads = [
            threading.Thread(target=writer.add, args=(MODEL, [(key, clip, "x" * 5000)]))
            for key, clip in hashes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(UserError, match="another dfer describe"), open_writer(index):
            pass
    assert len(lines(index)) == 61
    assert len(parse(b"".join(lines(index)), "f").of(MODEL)) == 60
