from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir, parse_folds
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, read_json, write_json, write_text


def test_atomic_write_replaces(tmp_path: Path) -> None:
    file = tmp_path / "below" / "a.txt"
    write_text(file, "old")
    write_text(file, "neu: ä")
    assert file.read_text(encoding="utf-8") == "neu: ä"
    assert os.listdir(file.parent) == ["a.txt"]


def test_reader_of_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with file.open() as reader:
        write_text(file, "new")
        assert reader.read() == "old"


def test_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def write_half() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half of the n")
            assert file.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_that_fails_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.txt"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_temporary_file_keeps_the_suffix_that_writers_look_at(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")


def test_files_are_for_others_to_read_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None], "y": "ä"})
    assert read_json(tmp_path / "a.json") == {"version": 1, "x": [1, 2.5, None], "y": "ä"}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n "version": 1')


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json")["x"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"version": 1, "x"', "cannot be read"),
        ("", "cannot be read"),
        ("[1]", "not of version 1"),
        ('{"x": 1}', "not of version 1"),
        ('{"version": 2}', "not of version 1"),
        ("\xff", "cannot be read"),
    ],
)
def test_bad_json_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words) as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("words", "folds"),
    [
        ("1,3-5", [1, 3, 4, 5]),
        ("2", [2]),
        ("5,1,1", [1, 5]),
        ("1-5", [1, 2, 3, 4, 5]),
        (" 1 , 2", [1, 2]),
        ("3-3", [3]),
    ],
)
def test_folds(words: str, folds: list[int]) -> None:
    assert parse_folds(words, [1, 2, 3, 4, 5]) == folds


@pytest.mark.parametrize("words", ["0", "6", "1,6", "4-6", "0-2"])
def test_folds_out_of_range(words: str) -> None:
    with pytest.raises(UserError, match="out of range: this data set has 1 to 5"):
        parse_folds(words, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("words", ["x", "", ",", "1,", "-1", "1-", "1-x", "1.5", "²", "5-3"])
def test_words_that_are_no_folds(words: str) -> None:
    with pytest.raises(UserError, match="give numbers and ranges such as 1,3-5"):
        parse_folds(words, [1, 2, 3, 4, 5])


def test_fold_of_a_set_with_one() -> None:
    assert parse_folds("1", [1]) == [1]
    with pytest.raises(UserError, match=r"fold 2 is out of range: this data set has 1$"):
        parse_folds("2", [1])


def test_huge_range_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="out of range"):
        parse_folds("1-99999999999", [1, 2])


def test_paths(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    assert run.fold(3).result == tmp_path / "demo" / "fold-3" / "result.json"
    assert run.fold(3).checkpoints == tmp_path / "demo" / "fold-3" / "checkpoints"
    with pytest.raises(UserError, match="is not a run"):
        run.describe()
    write_json(run.run, {"folds": [1]})
    assert run.describe()["folds"] == [1]
