"""Names of compound classes."""

from __future__ import annotations

from dfer_dist.data.sources.compound import (
    MAFW_COMPOUND,
    components,
    membership,
    single_classes,
)
from dfer_dist.data.sources.records import CLASSES, ELEVEN

CLASSES_OF_FOUR = ("fear", "a+b", "anger+fear", "anger")


def test_class_is_compound_only_if_the_list_has_its_components() -> None:
    assert components("anger+fear", CLASSES_OF_FOUR) == ("anger", "fear")
    assert components("a+b", CLASSES_OF_FOUR) == ("a+b",)
    assert components("anger", CLASSES_OF_FOUR) == ("anger",)
    assert single_classes(CLASSES_OF_FOUR) == ("fear", "a+b", "anger")
    # columns fear, a+b, anger
    assert membership(CLASSES_OF_FOUR).astype(int).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [1, 0, 1],
        [0, 0, 1],
    ]
    assert membership(ELEVEN).tolist() == [[i == j for j in range(11)] for i in range(11)]


def test_mafw_has_32_compound_classes_after_its_11() -> None:
    classes = CLASSES["mafw-compound"]
    assert (len(classes), len(set(classes))) == (43, 43)
    assert single_classes(classes) == classes[:11] == ELEVEN
    sets = {frozenset(components(name, classes)) for name in MAFW_COMPOUND}
    assert len(sets) == 32
    assert sorted(map(len, sets)) == [2] * 23 + [3] * 9
    # MAFW names no other emotion together with neutral
    assert not any("neutral" in own for own in sets)
