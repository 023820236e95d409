from __future__ import annotations

import pytest

from dfer_dist.data.sources.records import canonical_class


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Happy", "happiness"),
        ("ANGRY", "anger"),
        (" sadness", "sadness"),
        ("surprise", "surprise"),
        ("Anxiety", "anxiety"),
        ("joy", None),
        ("1", None),
    ],
)
def test_canonical_class_knows_cases_and_adjectives(name: str, expected: str | None) -> None:
    assert canonical_class(name) == expected
