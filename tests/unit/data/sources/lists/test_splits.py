from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.lists.rows import split_value
from dfer_dist.data.sources.lists.splits import Splits, splits_of_column, splits_of_files
from dfer_dist.data.sources.records import ClipRecord, listed_clip
from dfer_dist.utils.errors import UserError


def lists(**clips: str) -> dict[Path, list[ClipRecord]]:
    """Return lists by name, ``__`` for ``/``, with clips of one letter."""
    return {
        Path("org", name.replace("__", "/") + ".csv"): [listed_clip(clip, 0) for clip in letters]
        for name, letters in clips.items()
    }


def names(rows: dict[str, list[ClipRecord]]) -> dict[str, str]:
    return {split: "".join(row.source for row in found) for split, found in rows.items()}


@pytest.mark.parametrize(
    ("files", "tests", "trains"),
    [
        ({"train": "ab", "test": "c"}, {"train": "ab", "test": "c"}, {}),
        ({"train": "ab", "val": "c"}, {"train": "ab", "test": "c"}, {}),
        ({"train": "a", "val": "b", "test": "c"}, {"train": "a", "val": "b", "test": "c"}, {}),
        ({"train": "ab", "val": "c", "test": "c"}, {"train": "ab", "test": "c"}, {}),
        ({"set_1__train": "ab", "set_1__test": "c"}, {"train": "ab", "test": "c"}, {}),
        ({"fold1": "a", "fold2": "bc"}, {"fold1": "a", "fold2": "bc"}, {}),
        ({"fold0": "a", "fold1": "bc"}, {"fold1": "a", "fold2": "bc"}, {}),
        (
            {"x_set_1_train": "b", "x_set_1_test": "a", "x_set_2_train": "a", "x_set_2_test": "b"},
            {"fold1": "a", "fold2": "b"},
            {"fold1": "b", "fold2": "a"},
        ),
        (
            {"split01__test": "a", "split02__test": "b", "split01__val": "a", "split02__val": "b"},
            {"fold1": "a", "fold2": "b"},
            {},
        ),
        (
            {"single_testset_1": "a", "single_testset_2": "b", "single_trainset_1": "b"},
            {"fold1": "a", "fold2": "b"},
            {"fold1": "b"},
        ),
        ({"clips": "ab"}, {}, {}),
        ({"clips": "ab", "more": "c"}, {}, {}),
    ],
)
def test_names_of_lists_tell_the_splits(
    files: dict[str, str], tests: dict[str, str], trains: dict[str, str]
) -> None:
    splits = splits_of_files(lists(**files))
    assert names(splits.tests) == tests and names(splits.trains) == trains


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "a", "clips": "b"}, r"name of org/clips.csv tells no split, that of .*train"),
        ({"fold1": "a", "fold2": "b", "test": "c"}, r"name of org/test.csv tells no split"),
        ({"train": "ab"}, "a training split, but none to test on"),
        ({"fold1": "a", "fold3": "b"}, "folds 1, 3: number them from 1 without a gap"),
        ({"fold2": "a", "fold3": "b"}, "folds 2, 3: number them from 1 without a gap"),
        ({"test_1": "a", "test_2": "b", "train_3": "ab"}, "fold 3 of .* has no test list"),
        (
            {"test_1": "a", "test_2": "b", "val_1": "c"},
            "fold1 val has clips of its own: folds have no validation part",
        ),
    ],
)
def test_lists_without_a_clear_split_are_refused(files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        splits_of_files(lists(**files))


def of_column(*values: str) -> Splits:
    rows = [listed_clip("abcdef"[i], 0, split=split_value(v, "x:1")) for i, v in enumerate(values)]
    return splits_of_column(rows)


def test_column_tells_the_splits() -> None:
    assert names(of_column("Training", "dev", "train").tests) == {"train": "ac", "test": "b"}
    assert names(of_column("0", "1.0", "fold 0").tests) == {"fold2": "b", "fold1": "ac"}
    assert of_column("0", "1").notes == ["folds 0 to 1 of column fold are numbered 1 to 2"]
    assert names(of_column("train", "val", "test").tests)["val"] == "b"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("train", "song"), "x:1: split 'song' is unknown: give train, val, test, ambiguous or"),
        (("train", ""), "x:1: split '' is unknown"),
        (("1", "2", "test"), "column fold has folds and test: give either"),
        (("1", "1"), "one fold only: at least two are needed"),
        (("1", "4"), "folds 1, 4: number them"),
        (("train", "train"), "none to test on"),
    ],
)
def test_column_without_a_clear_split_is_refused(values: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        of_column(*values)
