"""Paths of a run folder, and choices of folds."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir, parse_folds
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("1,3-5", [1, 3, 4, 5]),
        ("2", [2]),
        ("5,1,1", [1, 5]),
        ("1-5", [1, 2, 3, 4, 5]),
        (" 1 , 2", [1, 2]),
        ("3-3", [3]),
    ],
)
def test_fold_numbers_and_ranges_are_parsed(text: str, folds: list[int]) -> None:
    assert parse_folds(text, [1, 2, 3, 4, 5]) == folds


@pytest.mark.parametrize("text", ["0", "6", "1,6", "4-6", "0-2"])
def test_unknown_fold_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="out of range: this data set has 1 to 5"):
        parse_folds(text, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("text", ["x", "", ",", "1,", "-1", "1-", "1-x", "1.5", "²", "5-3"])
def test_text_that_names_no_folds_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="give numbers and ranges such as 1,3-5"):
        parse_folds(text, [1, 2, 3, 4, 5])


def test_data_set_with_one_fold_has_fold_1() -> None:
    assert parse_folds("1", [1]) == [1]
    with pytest.raises(UserError, match=r"fold 2 is out of range: this data set has 1$"):
        parse_folds("2", [1])


def test_huge_range_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="out of range"):
        parse_folds("1-99999999999", [1, 2])


def test_run_dir_gives_paths_and_info(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    assert run.fold(3).result == tmp_path / "demo" / "fold-3" / "result.json"
    assert run.fold(3).checkpoints == tmp_path / "demo" / "fold-3" / "checkpoints"
    with pytest.raises(UserError, match="is not a run"):
        run.info()
    write_json(run.run, {"folds": [1]})
    assert run.info().folds == run.info().folds == [1]
    run.update_info(index_hash="ab")
    assert (run.info().index_hash, run.info().folds) == ("ab", [1])
