"""Imports of ready-made captions."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from dfer_dist.data.captions.imports import import_captions
from dfer_dist.data.captions.store import (
    FILE,
    descriptions,
)
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.demo.dataset import DESCRIPTIONS, render_demo
from dfer_dist.utils.errors import UserError
from tests.helpers.data.descriptions import train_keys


@pytest.fixture
def index(tiny_shards: Index, tmp_path: Path) -> Index:
    """A copy of ``tiny_shards`` of its own."""
    return load_index(Path(shutil.copytree(tiny_shards.root, tmp_path / "shards")))  # type: ignore[arg-type]


def lines(index: Index) -> list[bytes]:
    return (index.root / FILE).read_bytes().splitlines(keepends=True)  # type: ignore[operator]


MAFW = (
    "00001.mp4\tanger\t一个男人很生气。眉头紧蹙。\tA man is angry. The deep frown.\n"
    '00002.mp4\tsadness\t眉毛下垂。\t"Ah" the brows fall.\n'
    "\n"
    "99999.mp4\tfear\t嘴张开。\tThe mouth opens.\n"
)
SAVED = (
    '00001.mp4,很生气。,"A man is angry. The deep frown."\n'
    '00002.mp4,眉毛下垂。,"""Ah"" the brows fall."\n'
    "999.mp4,嘴。,x\n"
)
HEADER = '\ufeffid,Clip,caption\n7,00001,The deep frown.\n8,2,"""Ah"" the brows fall."\n9,none,x\n'
JSON_LINES = (
    '{"clip": "00001", "en": "The deep frown.", "label": 3}\n'
    "\n"
    '{"clip": "00002.avi", "caption": "\\"Ah\\" the brows fall."}\n'
    '{"clip": "n", "en": "x"}\n'
)
WANTED = {"00001": "The deep frown.", "00002": '"Ah" the brows fall.'}
LAYOUTS = {
    "train.txt": MAFW.encode("gb18030"),
    "tabs.tsv": MAFW.encode(),
    "page.txt": MAFW.replace("\t一", "\t<br>一").replace("\tA man", "\t <br> A man").encode(),
    "saved.csv": SAVED.encode(),
    "header.csv": HEADER.encode(),
    "lines.jsonl": JSON_LINES.encode(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_import_captions_reads_each_layout(index: Index, tmp_path: Path, name: str) -> None:
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


def test_import_captions_of_the_demo_keeps_every_word(tmp_path: Path) -> None:
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


def test_import_captions_merges_files_and_replaces_changed(index: Index, tmp_path: Path) -> None:
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
    ("name", "text", "message"),
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
def test_import_captions_refuses_unreadable_files(
    index: Index, tmp_path: Path, name: str, text: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        import_captions(index, [file])
    assert not (index.root / FILE).exists()  # type: ignore[operator]
