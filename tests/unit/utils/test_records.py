"""Reading and writing dataclasses as JSON files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from dfer_dist.utils.records import Record, stored_as


@dataclass(frozen=True)
class Point:
    x: float
    name: str | None = None


@dataclass(frozen=True)
class Example(Record):
    remedy: ClassVar[str] = "make it again"

    count: int
    points: list[Point] = field(default_factory=list)
    by_name: dict[str, Point] = field(default_factory=dict)
    modalities: tuple[str, ...] = field(default=(), metadata=stored_as("levels"))


def test_record_survives_a_round_trip(tmp_path: Path) -> None:
    example = Example(3, [Point(1.5), Point(2, "b")], {"c": Point(0.5)}, ("parsing",))
    example.write(tmp_path / "x.json")
    assert Example.read(tmp_path / "x.json") == example
    stored = json.loads((tmp_path / "x.json").read_text())
    assert list(stored) == ["version", "count", "points", "by_name", "levels"]
    assert stored["points"][0] == {"x": 1.5, "name": None}


def test_missing_optional_and_unknown_keys_are_accepted(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"count": 1, "later": True})
    assert Example.read(tmp_path / "x.json") == Example(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "lacks count: make it again"),
        ({"count": "1"}, "count must be an integer, not '1': make it again"),
        ({"count": True}, "count must be an integer, not True"),
        ({"count": 1, "points": {}}, "points must be a list, not {}"),
        ({"count": 1, "points": [{"x": 1}, {}]}, "lacks points[1].x"),
        ({"count": 1, "points": [{"x": None}]}, "points[0].x must be a number, not None"),
        ({"count": 1, "by_name": {"a": 2}}, "by_name.a must be an object, not 2"),
        ({"count": 1, "levels": 2}, "levels must be a list, not 2"),
        ({"count": 1, "levels": [2]}, "levels[0] must be a string, not 2"),
    ],
)
def test_error_names_file_and_key(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.json"
    write_json(path, values)
    with pytest.raises(UserError) as e:
        Example.read(path)
    assert str(e.value).startswith(str(path)) and message in str(e.value)


def test_unreadable_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"version": 1, "count"')
    with pytest.raises(UserError, match=r"x\.json cannot be read"):
        Example.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"version": 2, "count": 1}')
    with pytest.raises(UserError, match="version 1"):
        Example.read(tmp_path / "x.json")
