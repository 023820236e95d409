from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import simplejpeg

from dfer_dist.data.sources.dfer_clip_lists import (
    _find_lists,
    _read_list,
    count_unlisted,
    join_splits,
    read_lists,
)
from dfer_dist.data.sources.records import CLASSES, ClipRecord, clip_files
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import write_clip
from tests.helpers.data.official_layouts import SPLITS, needs_splits


@pytest.fixture
def two_folds(tmp_path: Path) -> Path:
    """A folder with ``frames/`` of four clips and ``lists/`` of two folds, free to be changed."""
    for i, name in enumerate("abcd"):
        write_clip(tmp_path / "frames" / name, 2, seed=i)
    (tmp_path / "lists").mkdir()
    texts = {
        "1_test": "a 2 0\nb 2 1\n",
        "1_train": "c 2 2\nd 2 3\n",
        "2_test": "c 2 2\nd 2 3",
        "2_train": "a 2 0\r\nb 2 1",
    }
    for name, text in texts.items():
        (tmp_path / "lists" / f"X_set_{name}.txt").write_text(text)
    return tmp_path


def read(root: Path) -> list[tuple[str, int, str]]:
    return [(r.key, r.label, r.split) for r in read_lists("dfew", root / "frames", root / "lists")]


def check_refused(root: Path, *parts: str) -> None:
    """Check that reading fails with one line that holds all parts."""
    with pytest.raises(UserError) as caught:
        read(root)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_read_lists_gives_label_and_split_for_any_line_ending(two_folds: Path) -> None:
    expected = [("a", 0, "fold1"), ("b", 1, "fold1"), ("c", 2, "fold2"), ("d", 3, "fold2")]
    assert read(two_folds) == expected
    for file in (two_folds / "lists").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().rstrip() + b"\n\n")
    assert read(two_folds) == expected


def test_read_lists_works_without_training_lists(two_folds: Path) -> None:
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    assert len(read(two_folds)) == 4


def test_read_lists_of_one_pair_gives_train_and_test_splits(two_folds: Path) -> None:
    for file in (two_folds / "lists").iterdir():
        file.unlink()
    (two_folds / "lists" / "X_train.txt").write_text("a 2 0\nb 2 1\nc 2 2")
    (two_folds / "lists" / "X_test.txt").write_text("d 2 3")
    assert read(two_folds) == [
        ("a", 0, "train"),
        ("b", 1, "train"),
        ("c", 2, "train"),
        ("d", 3, "test"),
    ]
    (two_folds / "lists" / "X_test.txt").write_text("d 2 3\na 2 0")
    check_refused(two_folds, "clip a", "train", "test")


def test_key_has_underscores_for_slashes(two_folds: Path) -> None:
    write_clip(two_folds / "frames" / "Action" / "Happy" / "0015", 3, seed=9)
    (two_folds / "lists" / "X_set_3_test.txt").write_text("Action/Happy/0015 3 0")
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    record = read_lists("dfew", two_folds / "frames", two_folds / "lists")[-1]
    assert (record.key, record.source, len(clip_files(record))) == (
        "Action_Happy_0015",
        "Action/Happy/0015",
        3,
    )


def test_clip_files_are_in_numerical_order(two_folds: Path) -> None:
    clip = two_folds / "frames" / "a"
    data = (clip / "00000.jpg").read_bytes()
    for name in ("1.jpg", "2.JPG", "10.jpeg", "notes.txt"):
        (clip / name).write_bytes(data)
    for name in ("00000.jpg", "00001.jpg"):
        (clip / name).unlink()
    record = read_lists("dfew", two_folds / "frames", two_folds / "lists")[0]
    assert [f.name for f in clip_files(record)] == ["1.jpg", "2.JPG", "10.jpeg"]
    assert simplejpeg.is_jpeg(clip_files(record)[2].read_bytes())


@pytest.mark.parametrize("folder", ["frames", "lists"])
def test_read_lists_rejects_empty_or_missing_folder(two_folds: Path, folder: str) -> None:
    (two_folds / folder).rename(two_folds / "away")
    check_refused(two_folds, str(two_folds / folder), "not a folder")
    (two_folds / folder).mkdir()
    check_refused(two_folds, str(two_folds / folder), "empty")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("a 2", ["X_set_1_test.txt:2", "'a 2'", "path frames label"]),
        ("a two 0", ["X_set_1_test.txt:2", "path frames label"]),
        ("a 2 -1", ["X_set_1_test.txt:2", "path frames label"]),
        ("a 2 ²", ["X_set_1_test.txt:2", "path frames label"]),
        ("a 2 7", ["X_set_1_test.txt:2", "'a 2 7'", "0 to 6"]),
        ("c 2 2", ["clip c", "two splits", "fold1", "fold2"]),
    ],
)
def test_read_lists_rejects_invalid_line(two_folds: Path, line: str, parts: list[str]) -> None:
    (two_folds / "lists" / "X_set_1_test.txt").write_text(f"b 2 1\n{line}\n")
    check_refused(two_folds, *parts)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: f"/home/me/My Data/DFEW/{line}",
        lambda line: f"D:\\My Data\\DFEW\\{line}",
        lambda line: f"//server/share/{line}",
        lambda line: "/data/{},{},{}".format(*line.split()),
        lambda line: '"/my data/{}";{};{};'.format(*line.split()),
        lambda line: "{}\t{}\t{}".format(*line.split()),
        lambda line: f"./{line}",
        lambda line: "/data//DFEW/{}/ {} {}.0".format(*line.split()),
        lambda line: "{}.mp4 {} {}".format(*line.split()),
    ],
)
def test_paths_and_separators_of_any_system_are_read(
    two_folds: Path, change: Callable[[str], str]
) -> None:
    expected = read(two_folds)
    for file in (two_folds / "lists").iterdir():
        lines = "\n".join(map(change, file.read_text().splitlines()))
        file.write_text(lines, encoding="utf-16")
    found = [(key.removesuffix("_mp4"), *rest) for key, *rest in read(two_folds)]
    assert found == expected
    records = read_lists("dfew", two_folds / "frames", two_folds / "lists")
    assert all(clip_files(record) for record in records)
    assert not count_unlisted(two_folds / "frames", [record.source for record in records])


def test_lists_of_other_names_and_fields_are_read_or_named(two_folds: Path) -> None:
    expected = read(two_folds)
    for file in list((two_folds / "lists").iterdir()):
        file.rename(file.with_name(f"{file.stem}_faces.csv"))
    (two_folds / "lists" / "X_set_1_train_faces.csv").write_text("c 2 2")
    # the training list is found too
    records = read_lists("dfew", two_folds / "frames", two_folds / "lists")
    assert [(r.key, r.label, r.split) for r in records] == expected
    assert [fault.kind for r in records for fault in r.faults] == ["not trained"]
    (two_folds / "lists" / "X_set_1_test_faces.csv").write_text("/mnt/DFEW/a 0")
    check_refused(two_folds, "_faces.csv:1", "'path frames label'", "VideoMAE, are not read")


def test_lists_may_be_named_in_upper_case(two_folds: Path) -> None:
    expected = read(two_folds)
    for file in list((two_folds / "lists").iterdir()):
        file.rename(file.with_name(file.name.upper()))
    (two_folds / "lists" / "X_SET_1_TRAIN.TXT").write_text("c 2 2")
    records = read_lists("dfew", two_folds / "frames", two_folds / "lists")
    assert [(r.key, r.label, r.split) for r in records] == expected
    assert [fault.kind for r in records for fault in r.faults] == ["not trained"]


@pytest.mark.parametrize("name", ["a.b", "../frames/ä", "x" * 200, "你 好", "a;b"])
def test_clips_of_any_name_are_read(two_folds: Path, name: str) -> None:
    write_clip(two_folds / "frames" / name, 2, seed=9)
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    (two_folds / "lists" / "X_set_3_test.txt").write_text(f"{name} 2 0")
    record = read_lists("dfew", two_folds / "frames", two_folds / "lists")[-1]
    assert (record.source, len(clip_files(record))) == (name, 2)


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        ("你好", os.fsdecode("你好".encode("gb18030"))),
        ("caf\u00e9", "cafe\u0301"),
        ("clip.mp4", "clip"),
    ],
)
def test_lists_and_folders_may_write_a_name_otherwise(
    two_folds: Path, listed: str, stored: str
) -> None:
    write_clip(two_folds / "frames" / stored, 2, seed=9)
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    (two_folds / "lists" / "X_set_3_test.txt").write_text(f"{listed} 2 0")
    record = read_lists("dfew", two_folds / "frames", two_folds / "lists")[-1]
    assert {file.parent.name for file in clip_files(record)} == {stored}


@pytest.mark.parametrize("stored", ["clip.MP4", "clip.flv", "clip.mpg"])
def test_video_of_a_listed_clip_may_have_any_suffix(two_folds: Path, stored: str) -> None:
    (two_folds / "frames" / stored).touch()
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    for listed in ("clip", "clip.mp4"):
        (two_folds / "lists" / "X_set_3_test.txt").write_text(f"{listed} 2 0")
        record = read_lists("dfew", two_folds / "frames", two_folds / "lists")[-1]
        assert clip_files(record) == (two_folds / "frames" / stored,)


def test_join_splits_reports_contradictions_between_lists(two_folds: Path) -> None:
    """Fold 1 tests a and b, fold 2 tests c and d. Clips without a fault stay as they are."""
    lists, clean = two_folds / "lists", read(two_folds)
    cases = {
        ("1_test", "a 2 0\nb 2 1\na 2 0"): [("a", "listed twice", False)],
        # the label is 0 in fold 2's training list
        ("1_test", "a 2 1\nb 2 1"): [("a", "label conflict", True)],
        ("1_train", "c 2 2"): [("d", "not trained", False)],
        ("1_train", "c 2 2\nd 2 3\na 2 0"): [("a", "trained and tested", False)],
        ("1_train", "c 2 2\nd 2 3\ne 2 4"): [("e", "not tested", True)],
    }
    for (name, text), expected in cases.items():
        file = lists / f"X_set_{name}.txt"
        before = file.read_text()
        file.write_text(text)
        records = read_lists("dfew", two_folds / "frames", lists)
        file.write_text(before)
        assert [(r.source, f.kind, f.left_out) for r in records for f in r.faults] == expected
        split = {r.source: r.split for r in records}
        assert {s: f for s, f in split.items() if s != "e"} == {
            k: s for k, _, s in clean
        } and split.get("e", "none") == "none"
    (lists / "X_set_1_test.txt").write_text("a 2 1\nb 2 1")
    (fault,) = read_lists("dfew", two_folds / "frames", lists)[0].faults
    assert fault.reason == "two labels: sadness in fold1, happiness in training list of fold2"


def test_read_lists_rejects_binary_file(two_folds: Path) -> None:
    (two_folds / "lists" / "X_set_1_test.txt").write_bytes(b"\xff\xfe a 2 01")
    check_refused(two_folds, "X_set_1_test.txt", "UTF-8, UTF-16 or GB18030")


def test_read_lists_rejects_missing_or_duplicate_fold(two_folds: Path) -> None:
    lists = two_folds / "lists"
    (lists / "Y_set_2_test.txt").write_text("a 2 0")
    check_refused(two_folds, "fold 2", "X_set_2_test.txt", "Y_set_2_test.txt")
    (lists / "Y_set_2_test.txt").rename(lists / "X_set_4_test.txt")
    check_refused(two_folds, "[1, 2, 4]", "without a gap")
    for file in lists.glob("*_test.txt"):
        file.unlink()
    check_refused(two_folds, "neither")


def test_read_lists_rejects_root_without_any_clip(two_folds: Path) -> None:
    for name in "bcd":
        shutil.rmtree(two_folds / "frames" / name)
    # single missing clips are reported when packing
    assert len(read(two_folds)) == 4
    (two_folds / "frames" / "a").rename(two_folds / "frames" / "other")
    check_refused(two_folds, "none of the 4 listed clips", "--root")


def test_read_lists_rejects_empty_lists(two_folds: Path) -> None:
    for file in (two_folds / "lists").iterdir():
        file.write_text("")
    check_refused(two_folds, "lists", "empty")


@needs_splits
@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        ("dfew", {"fold1": 2341, "fold2": 2341, "fold3": 2340, "fold4": 2339, "fold5": 2336}),
        ("mafw", {"fold1": 1839, "fold2": 1837, "fold3": 1833, "fold4": 1832, "fold5": 1831}),
        ("ferv39k", {"train": 31088, "test": 7847}),
    ],
)
def test_released_lists_agree_with_each_other(dataset: str, sizes: dict[str, int]) -> None:
    classes = CLASSES[dataset]
    files = _find_lists(SPLITS / dataset, dataset)
    tests = {split: _read_list(file, len(classes)) for split, file in files.items()}
    assert {split: len(rows) for split, rows in tests.items()} == sizes
    trains = {} if "test" in files else {s: _train(f) for s, f in files.items()}
    joined = join_splits(tests, trains, classes)
    assert len(joined) == sum(sizes.values())
    assert not any(clip.faults for clip in joined)
    keys = {clip.source.replace("/", "_") for clip in joined}
    assert len(keys) == len(joined)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)
    assert {clip.label for clip in joined} == set(range(len(classes)))
    if trains:
        shortened = trains | {"fold3": trains["fold3"][1:]}
        faults = [f.kind for clip in join_splits(tests, shortened, classes) for f in clip.faults]
        assert faults == ["not trained"]


def _train(file: Path) -> list[ClipRecord]:
    return _read_list(file.with_name(file.name.replace("_test", "_train")), 11)


def test_read_lists_selects_data_set_and_strips_paths(two_folds: Path) -> None:
    """The released lists of all data sets are in one folder, with paths of the authors' machine."""
    relative = read_lists("dfew", two_folds / "frames", two_folds / "lists")
    for file in list((two_folds / "lists").iterdir()):
        lines = [f"/data/lab/DFEW/faces/{line}" for line in file.read_text().splitlines()]
        (two_folds / "lists" / file.name.replace("X_", "DFEW_")).write_text("\n".join(lines))
        file.unlink()
    (two_folds / "lists" / "MAFW_set_1_test.txt").write_text("z 2 0")
    assert read_lists("dfew", two_folds / "frames", two_folds / "lists") == relative
