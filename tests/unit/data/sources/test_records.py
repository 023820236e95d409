from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.records import canonical_class, list_frames


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


def test_list_frames_skips_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("2.JPG", "1.jpeg", ".0.jpg", "0.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in list_frames(tmp_path)] == ["1.jpeg", "2.JPG"]
