"""Descriptions beside the shards: what is written is read, damage is noticed, and no test clip's reaches training."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.captions.imports import import_captions
from dfer_dist.data.captions.store import (
    FILE,
    Source,
    Writer,
    clip_hashes,
    clip_keys,
    descriptions,
    parse,
    read,
)
from dfer_dist.data.loading.sampler import all_clips, train_val_split
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.store import open_store
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.verify import verify
from dfer_dist.demo.dataset import DESCRIPTIONS, render_demo
from dfer_dist.utils.errors import UserError
from tests.helpers.descriptions import MODEL
from tests.helpers.web_server import Web

RAW = "The brows of {} rise. The face is surprised."


@pytest.fixture
def index(tiny_shards: Index, tmp_path: Path) -> Index:
    """A copy of ``tiny_shards`` of its own."""
    return load_index(Path(shutil.copytree(tiny_shards.root, tmp_path / "shards")))  # type: ignore[arg-type]


def fill(index: Index, source: Source = MODEL, text: str = RAW) -> dict[str, str]:
    hashes = clip_hashes(index)
    with Writer(index.root) as writer:  # type: ignore[arg-type]
        writer.add(source, [(key, clip, text.format(key)) for key, clip in hashes.items()])
    return hashes


def lines(index: Index) -> list[bytes]:
    return (index.root / FILE).read_bytes().splitlines(keepends=True)  # type: ignore[operator]


def train_keys(index: Index, fold: int) -> list[str]:
    return clip_keys(index, all_clips(index, index.train_shards(fold)))


def test_training_reads_its_own_clips_cleaned(index: Index) -> None:
    fill(index)
    keys = train_keys(index, 2)
    assert len(keys) == len(set(keys)) == 48
    assert descriptions(index, keys, 2) == {key: f"The brows of {key} rise." for key in keys}
    assert descriptions(index, keys[:3], 2).keys() == set(keys[:3])


def test_a_test_clips_description_is_refused_unless_it_is_for_the_test(index: Index) -> None:
    fill(index)
    test = clip_keys(index, all_clips(index, index.test_shards(2)))
    with pytest.raises(ValueError, match=f"1 clips, such as {test[3]}, are tested in fold 2"):
        descriptions(index, [*train_keys(index, 2), test[3]], 2)
    assert descriptions(index, test, 2, testing=True).keys() == set(test)
    assert descriptions(index, test, 1, testing=True).keys() == set(test)
    with pytest.raises(ValueError, match="no clip nobody"):
        descriptions(index, ["nobody"], 2)


def test_keys_of_a_held_out_part_are_told_apart(index: Index) -> None:
    train, val = train_val_split(index, index.train_shards(1), 0.2, 0)
    a, b = clip_keys(index, train), clip_keys(index, val)
    assert len(a) == len(train) and len(b) == len(val)
    assert sorted(a + b) == sorted(train_keys(index, 1))
    rows = train.rows[0]
    assert rows is not None
    assert (
        a[: len(rows)] == np.array(index.sidecar(train.shards[0])["key"].to_pylist())[rows].tolist()
    )


def test_a_clip_without_a_description_or_with_nothing_left_is_absent(index: Index) -> None:
    hashes = clip_hashes(index)
    first, second, third = train_keys(index, 1)[:3]
    with Writer(index.root) as writer:  # type: ignore[arg-type]
        writer.add(MODEL, [(first, hashes[first], "She is sad.")])
        writer.add(MODEL, [(second, hashes[second], "The lips part.")])
        writer.add(MODEL, [(second, hashes[second], "The lips close.")])
        writer.add(MODEL, [(third, "0" * 64, "Of frames that were packed anew.")])
    assert descriptions(index, train_keys(index, 1), 1) == {second: "The lips close."}


def test_of_several_sources_one_is_chosen_by_name_or_hash(index: Index) -> None:
    other = Source({**MODEL.about, "frames": 4})
    chinese = Source({"kind": "import", "name": "captions", "language": "zh"})
    fill(index)
    keys = train_keys(index, 1)[:1]
    fill(index, chinese, "眉毛{}上扬。")
    assert descriptions(index, keys, 1)[keys[0]].startswith("The brows")
    assert descriptions(index, keys, 1, language="zh") == {keys[0]: f"眉毛{keys[0]}上扬。"}
    fill(index, other, "The jaw of {} drops.")
    with pytest.raises(UserError, match=f"2 sources in 'en'.*{MODEL.hash[:8]}.*{other.hash[:8]}"):
        descriptions(index, keys, 1)
    with pytest.raises(UserError, match="2 sources named m"):
        descriptions(index, keys, 1, source="m")
    assert descriptions(index, keys, 1, source=other.hash[:8]) == {
        keys[0]: f"The jaw of {keys[0]} drops."
    }
    with pytest.raises(UserError, match="0 sources named"):
        descriptions(index, keys, 1, source=other.hash[:7])


def test_a_set_at_a_server_is_read(index: Index, tmp_path: Path) -> None:
    fill(index)
    web = Web(index.root)  # type: ignore[arg-type]
    there = load_index(open_store(web.url, str(tmp_path / "cache"), 1))
    keys = train_keys(there, 1)
    assert descriptions(there, keys, 1) == descriptions(index, keys, 1)
    web.close()


def test_without_a_file_the_person_is_told(index: Index) -> None:
    with pytest.raises(UserError, match="dfer describe makes it"):
        descriptions(index, [], 1)


def test_the_hash_of_a_clip_follows_its_frames(
    index: Index, tiny_source: Path, tmp_path: Path
) -> None:
    frames = Path(shutil.copytree(tiny_source / "frames", tmp_path / "frames"))
    shutil.copy(frames / "00002" / "00000.jpg", frames / "00007" / "00001.jpg")
    records = read_lists("dfew", frames, tiny_source / "lists")
    other = clip_hashes(
        pack(records, "dfew", tmp_path / "other", clips_per_shard=60, workers=1)
    )  # cut otherwise as well
    assert {key for key, clip in clip_hashes(index).items() if other[key] != clip} == {"00007"}


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_a_torn_last_line_is_no_line_and_is_cut_off(index: Index, torn: int) -> None:
    fill(index)
    whole = lines(index)
    path = index.root / FILE  # type: ignore[operator]
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:torn])
    assert len(read(index).of(MODEL)) == 59
    hashes = clip_hashes(index)
    with Writer(index.root) as writer:  # type: ignore[arg-type]
        assert len(writer.held.of(MODEL)) == 59
        last = json.loads(whole[-1])
        writer.add(MODEL, [(last["key"], hashes[last["key"]], last["text"])])
    assert lines(index) == whole


@pytest.mark.parametrize("change", ["flip", "no json", "a list", "foreign"])
def test_a_changed_line_is_named(index: Index, change: str) -> None:
    fill(index)
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
    with pytest.raises(UserError, match="line 5 was changed"):
        Writer(index.root)  # type: ignore[arg-type]
    (damage,) = verify(str(index.root))[1]
    assert (damage.file, damage.reason[:18]) == (FILE, "line 5 was changed")


def test_threads_share_a_writer_and_processes_do_not(index: Index) -> None:
    hashes = list(clip_hashes(index).items())
    with Writer(index.root) as writer:  # type: ignore[arg-type]
        threads = [
            threading.Thread(target=writer.add, args=(MODEL, [(key, clip, "x" * 5000)]))
            for key, clip in hashes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(UserError, match="another dfer describe"):
            Writer(index.root)  # type: ignore[arg-type]
    assert len(lines(index)) == 61
    assert len(parse(b"".join(lines(index)), "f").of(MODEL)) == 60


MAFW = (
    "00001.mp4\tanger\t一个男人很生气。眉头紧蹙。\tA man is angry. The deep frown.\n"
    '00002.mp4\tsadness\t眉毛下垂。\t"Ah" the brows fall.\n\n99999.mp4\tfear\t嘴张开。\tThe mouth opens.\n'
)
WANTED = {"00001": "The deep frown.", "00002": '"Ah" the brows fall.'}
LAYOUTS = {
    "train.txt": MAFW.encode("gb18030"),
    "tabs.tsv": MAFW.encode(),
    "page.txt": MAFW.replace("\t一", "\t<br>一").replace("\tA man", "\t <br> A man").encode(),
    "saved.csv": '00001.mp4,很生气。,"A man is angry. The deep frown."\n00002.mp4,眉毛下垂。,"""Ah"" the brows fall."\n999.mp4,嘴。,x\n'.encode(),
    "header.csv": '\ufeffid,Clip,caption\n7,00001,The deep frown.\n8,2,"""Ah"" the brows fall."\n9,none,x\n'.encode(),
    "lines.jsonl": b'{"clip": "00001", "en": "The deep frown.", "label": 3}\n\n{"clip": "00002.avi", "caption": "\\"Ah\\" the brows fall."}\n{"clip": "n", "en": "x"}\n',
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_captions_of_each_layout_are_imported(index: Index, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(LAYOUTS[name])
    done = {one.source.about["language"]: one for one in import_captions(index, [file])}
    assert (done["en"].new, done["en"].same, done["en"].without, done["en"].unexpected) == (
        2,
        0,
        58,
        1,
    )
    found = descriptions(index, WANTED, 5, testing=True)
    assert found == WANTED
    if name in ("train.txt", "tabs.tsv", "page.txt"):
        assert descriptions(index, WANTED, 5, testing=True, language="zh") == {
            "00001": "眉头紧蹙。",
            "00002": "眉毛下垂。",
        }
    before = lines(index)
    again = {one.source.about["language"]: one for one in import_captions(index, [file])}
    assert (again["en"].new, again["en"].same) == (0, 2)
    assert lines(index) == before


def test_the_demo_s_own_descriptions_reach_training_as_they_were_written(tmp_path: Path) -> None:
    source = render_demo(tmp_path / "source", clips=35, size=32, workers=1)
    shards = pack(
        read_lists("demo", source / "frames", source / "lists"),
        "demo",
        tmp_path / "shards",
        workers=1,
    )
    (done,) = import_captions(shards, [source / DESCRIPTIONS])
    assert (done.new, done.without, done.unexpected, done.source.about["language"]) == (
        35,
        0,
        0,
        "en",
    )
    with (source / DESCRIPTIONS).open(encoding="utf-8", newline="") as f:
        written = {row["clip"]: row["caption"] for row in csv.DictReader(f)}
    keys = train_keys(shards, 1)
    assert len(keys) == 28 and descriptions(shards, keys, 1) == {key: written[key] for key in keys}


def test_captions_of_two_files_are_one_source_and_a_changed_one_counts(
    index: Index, tmp_path: Path
) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("clip,caption\n00001,The lips part.\n")
    b.write_text("clip,caption\n00002,The jaw drops.\n")
    import_captions(index, [a, b])
    a.write_text("clip,caption\n00001,The lips close.\n")
    (one,) = import_captions(index, [a])
    assert (one.new, one.same) == (1, 0)
    assert descriptions(index, WANTED, 5, testing=True) == {
        "00001": "The lips close.",
        "00002": "The jaw drops.",
    }


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.xlsx", "PK", "save a spreadsheet as CSV"),
        ("a.csv", "one\ntwo\n", "no header with clip and caption, and 1 columns"),
        ("a.csv", "clip,caption\n00001\n", ":2: a row without a clip"),
        ("a.csv", "clip,caption\n,x\n", ":2: a row without a clip"),
        ("a.csv", "clip,caption\n00001,x\n00001,y\n", ":3: a second caption of clip 00001"),
        ("a.csv", "clip,caption\nsome,x\n", "theirs are named as some"),
        ("a.csv", "clip,caption\n00001,\n", "they have no caption"),
        ("a.csv", "clip,caption\n00001," + "x" * (1 << 21) + "\n", "field larger"),
        ("a.jsonl", '{"clip": 1, "caption": "x"}\n', ":1: no line such as"),
        ("a.jsonl", '{"clip": "00001"}\n', ":1: no line such as"),
        ("a.jsonl", "{\n", ":1: no line such as"),
    ],
)
def test_captions_that_cannot_be_read_are_refused(
    index: Index, tmp_path: Path, name: str, text: str, words: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        import_captions(index, [file])
    assert not (index.root / FILE).exists()  # type: ignore[operator]
