from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import simplejpeg

from dfer_dist.data.packing.media import clip_files
from dfer_dist.data.sources.layouts import (
    CLASSES,
    Row,
    _find_lists,
    _read_list,
    join_splits,
    known_class,
    read_lists,
)
from dfer_dist.utils.errors import UserError
from tests.helpers.clips import write_clip
from tests.helpers.owners import SPLITS, needs_splits


@pytest.fixture
def two_folds(tmp_path: Path) -> Path:
    """Folder with ``frames/`` of four clips and ``lists/`` of two folds, free to be spoilt."""
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


def refused(root: Path, *words: str) -> None:
    """Reading must fail with one line that holds all words."""
    with pytest.raises(UserError) as caught:
        read(root)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_clips_come_with_label_and_split_whatever_ends_the_last_line(two_folds: Path) -> None:
    expected = [("a", 0, "fold1"), ("b", 1, "fold1"), ("c", 2, "fold2"), ("d", 3, "fold2")]
    assert read(two_folds) == expected
    for file in (two_folds / "lists").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().rstrip() + b"\n\n")
    assert read(two_folds) == expected


def test_training_lists_may_be_absent(two_folds: Path) -> None:
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    assert len(read(two_folds)) == 4


def test_a_pair_of_lists_is_a_training_and_a_test_split(two_folds: Path) -> None:
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
    refused(two_folds, "clip a", "train", "test")


def test_slashes_become_underscores_in_keys(two_folds: Path) -> None:
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


def test_frames_are_in_order_of_their_numbers(two_folds: Path) -> None:
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
def test_empty_and_missing_folders_are_refused(two_folds: Path, folder: str) -> None:
    (two_folds / folder).rename(two_folds / "away")
    refused(two_folds, str(two_folds / folder), "no folder")
    (two_folds / folder).mkdir()
    refused(two_folds, str(two_folds / folder), "empty")


def test_unknown_data_set_is_refused(two_folds: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'afew': one of .*dfew"):
        read_lists("afew", two_folds / "frames", two_folds / "lists")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a 2", ["X_set_1_test.txt:2", "'a 2'", "path frames label"]),
        ("a two 0", ["X_set_1_test.txt:2", "path frames label"]),
        ("a 2 -1", ["X_set_1_test.txt:2", "path frames label"]),
        ("a 2 ²", ["X_set_1_test.txt:2", "path frames label"]),
        ("my clip 2 0", ["X_set_1_test.txt:2", "path frames label"]),
        ("a 2 7", ["X_set_1_test.txt:2", "label 7", "0 to 6"]),
        ("c 2 2", ["clip c", "two splits", "fold1", "fold2"]),
    ],
)
def test_unreadable_and_contradicting_lines_are_refused(
    two_folds: Path, line: str, words: list[str]
) -> None:
    (two_folds / "lists" / "X_set_1_test.txt").write_text(f"b 2 1\n{line}\n")
    refused(two_folds, *words)


def test_what_lists_say_differently_is_told_with_the_clip(two_folds: Path) -> None:
    """Fold 1 tests a, b; fold 2 tests c, d. Whatever the lists get wrong, the other clips stay as they are."""
    lists, clean = two_folds / "lists", read(two_folds)
    cases = {
        ("1_test", "a 2 0\nb 2 1\na 2 0"): [("a", "listed twice", False)],
        ("1_test", "a 2 1\nb 2 1"): [("a", "label conflict", True)],  # 0 in fold 2's training list
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


def test_a_list_that_is_no_text_is_refused(two_folds: Path) -> None:
    (two_folds / "lists" / "X_set_1_test.txt").write_bytes(b"\xff\xfe a 2 0")
    refused(two_folds, "X_set_1_test.txt", "UTF-8 or GB18030")


def test_gaps_and_twins_among_the_folds_are_refused(two_folds: Path) -> None:
    lists = two_folds / "lists"
    (lists / "Y_set_2_test.txt").write_text("a 2 0")
    refused(two_folds, "fold 2", "X_set_2_test.txt", "Y_set_2_test.txt")
    (lists / "Y_set_2_test.txt").rename(lists / "X_set_4_test.txt")
    refused(two_folds, "[1, 2, 4]", "without a gap")
    for file in lists.glob("*_test.txt"):
        file.unlink()
    refused(two_folds, "neither")


def test_a_root_without_a_single_clip_is_refused(two_folds: Path) -> None:
    for name in "bcd":
        shutil.rmtree(two_folds / "frames" / name)
    assert len(read(two_folds)) == 4  # what is missing is told when packing
    (two_folds / "frames" / "a").rename(two_folds / "frames" / "other")
    refused(two_folds, "none of the 4 listed clips", "--root")


def test_empty_lists_are_refused(two_folds: Path) -> None:
    for file in (two_folds / "lists").iterdir():
        file.write_text("")
    refused(two_folds, "lists", "empty")


def test_names_of_classes_in_any_case_and_as_adjectives() -> None:
    assert [
        known_class(n) for n in ("Happy", "ANGRY", " sadness", "surprise", "Anxiety", "joy", "1")
    ] == [
        *("happiness", "anger", "sadness", "surprise", "anxiety"),
        *(None, None),
    ]


@pytest.mark.parametrize("name", ["a.b", "../a", "ä", "x" * 91])
def test_names_that_no_tar_member_can_have_are_refused(two_folds: Path, name: str) -> None:
    for file in (two_folds / "lists").glob("*_train.txt"):
        file.unlink()
    (two_folds / "lists" / "X_set_3_test.txt").write_text(f"{name} 2 0")
    refused(two_folds, name, "letters")


@needs_splits
@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        (
            "dfew",
            {"fold1": 2341, "fold2": 2341, "fold3": 2340, "fold4": 2339, "fold5": 2336},
        ),  # 11,697
        (
            "mafw",
            {"fold1": 1839, "fold2": 1837, "fold3": 1833, "fold4": 1832, "fold5": 1831},
        ),  # 9,172
        ("ferv39k", {"train": 31088, "test": 7847}),  # 38,935
    ],
)
def test_official_lists_are_read_and_agree_with_each_other(
    dataset: str, sizes: dict[str, int]
) -> None:
    files = _find_lists(SPLITS / dataset, dataset)
    tests = {split: _read_list(file, len(CLASSES[dataset])) for split, file in files.items()}
    assert {split: len(rows) for split, rows in tests.items()} == sizes
    trains = {} if "test" in files else {s: _train(f) for s, f in files.items()}
    joined = list(join_splits(tests, trains, CLASSES[dataset]))
    assert len(joined) == sum(sizes.values()) and not any(faults for _, _, faults in joined)
    keys = {row.source.replace("/", "_") for _, row, _ in joined}
    assert len(keys) == len(joined) and all(
        re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys
    )
    assert {row.label for _, row, _ in joined} == set(range(len(CLASSES[dataset])))
    if trains:
        short = trains | {"fold3": trains["fold3"][1:]}
        told = [
            f.kind for _, _, faults in join_splits(tests, short, CLASSES[dataset]) for f in faults
        ]
        assert told == ["not trained"]


def _train(file: Path) -> list[Row]:
    return _read_list(file.with_name(file.name.replace("_test", "_train")), 11)


def test_released_lists_are_read_as_they_are(two_folds: Path) -> None:
    """Several data sets in one folder, and paths of the authors' machine."""
    relative = read_lists("dfew", two_folds / "frames", two_folds / "lists")
    for file in list((two_folds / "lists").iterdir()):
        lines = [f"/data/lab/DFEW/faces/{line}" for line in file.read_text().splitlines()]
        (two_folds / "lists" / file.name.replace("X_", "DFEW_")).write_text("\n".join(lines))
        file.unlink()
    (two_folds / "lists" / "MAFW_set_1_test.txt").write_text("z 2 0")
    assert read_lists("dfew", two_folds / "frames", two_folds / "lists") == relative
