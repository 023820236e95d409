from __future__ import annotations

from collections.abc import Sequence

import pytest

from dfer_dist.data.sources.lists.classes import choose_classes
from dfer_dist.utils.errors import UserError


@pytest.mark.parametrize(
    ("given", "fields", "names", "labels"),
    [
        (None, ["Sad", "happy", "Sad"], ("happiness", "sadness"), [1, 0, 1]),
        (None, ["joy", "Calm"], ("Calm", "joy"), [1, 0]),
        (["sad", "calm"], ["calm", "Sad"], ("sad", "calm"), [1, 0]),
        (["Sad", "Angry", "Fear"], ["fear", "sadness"], ("sadness", "anger", "fear"), [2, 0]),
        (["a", "b", "c"], ["0", "2.0"], ("a", "b", "c"), [0, 2]),
        (["a", "b", "c"], ["1", "3", "2"], ("a", "b", "c"), [0, 2, 1]),
        # from 0, because 3 is no label
        (["a", "b", "c"], ["1", "2"], ("a", "b", "c"), [1, 2]),
    ],
)
def test_classes_are_names_or_numbers(
    given: Sequence[str] | None, fields: list[str], names: tuple[str, ...], labels: list[int]
) -> None:
    classes = choose_classes(given, dict.fromkeys(fields, "x.csv:1"))
    assert classes.names == names
    assert [classes.labels(field) for field in fields] == [(label,) for label in labels]


@pytest.mark.parametrize(
    ("field", "labels"),
    [
        ("anger+sadness", (1, 0)),
        ("sad | angry", (0, 1)),
        ("sadness_anger", (0, 1)),
        ("anger;anger", (1,)),
        ("0&1", (0, 1)),
        ("anger+joy", None),
        ("2", None),
        ("-1", None),
    ],
)
def test_field_may_name_several_classes(field: str, labels: tuple[int, ...] | None) -> None:
    assert choose_classes(["sadness", "anger"], {}).labels(field) == labels


def test_name_with_a_separator_is_one_class_if_it_is_given() -> None:
    classes = choose_classes(["anger", "anger_disgust", "very+sad"], {})
    assert classes.labels("anger_disgust") == (1,) and classes.labels("very+sad") == (2,)


@pytest.mark.parametrize(
    ("given", "fields", "message"),
    [
        (None, ["0", "6"], r"labels are numbers, 0 to 6: name the classes .* with --classes"),
        (["a", "b"], ["0", "1", "2"], r"x:1: label 2 is out of range: --classes names 2, 0 to 1"),
        (["a", "b"], ["-1"], r"x:1: label -1 is out of range"),
        (["sad", "fear"], ["sad", "joy"], r"x:1: class 'joy' is none of --classes sadness,fear"),
        (["sad", "fear"], ["sad+joy"], r"x:1: class 'joy' is none of"),
        (["sad", "Sadness"], [], "give names that differ"),
        (["a", " "], [], "give names that differ"),
        (["a"], [], "1 class, a: at least two are needed"),
        (None, ["sad"], "1 class, sadness: at least two are needed"),
    ],
)
def test_unknown_labels_and_unclear_names_are_refused(
    given: Sequence[str] | None, fields: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_classes(given, dict.fromkeys(fields, "x:1"))
