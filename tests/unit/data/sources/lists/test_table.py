from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.lists.table import read_table
from dfer_dist.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("a.mp4 3\nb.mp4 0\n", ("path", "label"), [("a.mp4", "3"), ("b.mp4", "0")]),
        ("a,sad\nb,fear\n", ("path", "label"), [("a", "sad"), ("b", "fear")]),
        ("my a.mp4 3\n", ("path", "", "label"), [("my", "a.mp4", "3")]),
        ("my a.mp4 3\nb.mp4 0\n", ("path", "label"), [("my a.mp4", "3"), ("b.mp4", "0")]),
        ("a 16 3\nb 7 0\n", ("path", "frames", "label"), [("a", "16", "3"), ("b", "7", "0")]),
        ("my a 16 3\nb 7 0\n", ("path", "frames", "label"), [("my a", "16", "3"), ("b", "7", "0")]),
        (
            "a/b a.wav 3\nc d.wav 0\n",
            ("path", "", "label"),
            [("a/b", "a.wav", "3"), ("c", "d.wav", "0")],
        ),
        ('"a b.mp4" 3\nc 0\n', ("path", "label"), [("a b.mp4", "3"), ("c", "0")]),
        (
            "Clip;Emotion;Start Time\nx;sad;1\n",
            ("clip", "emotion", "start_time"),
            [("x", "sad", "1")],
        ),
        ("video_name,label\n1,2\n", ("video_name", "label"), [("1", "2")]),
        (
            "path\tlabel\tvotes\na\tsad\t1;0;5\n",
            ("path", "label", "votes"),
            [("a", "sad", "1;0;5")],
        ),
        ("path label\na sad\n", ("path", "label"), [("a", "sad")]),
        ("path,label,group\na,sad,\n\n", ("path", "label", "group"), [("a", "sad", "")]),
    ],
)
def test_tables_of_usual_forms_are_read(
    text: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], tmp_path: Path
) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text)
    table = read_table(file)
    assert (table.columns, table.rows) == (columns, rows)
    assert len(table.lines) == len(rows)


def test_columns_are_found_by_other_names(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("name,class,file,subset\nn,sad,f,train\n")
    table = read_table(file)
    found = {kind: table.find(kind) for kind in ("path", "label", "split", "fold")}
    assert found == {"path": 2, "label": 1, "split": 3, "fold": None}
    assert table.where(0) == f"{file}:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n", "is empty"),
        ("path,label\na,sad,3\n", r":2: 'a,sad,3' has 3 fields, the header 2: path, label"),
        ("alone\n", r":1: 'alone' is not of the form 'path label' or 'path frames label'"),
        ("a,1,2,3\nb,1,2,3\n", r":1: 'a,1,2,3' is not of the form .*: name more columns"),
    ],
)
def test_tables_of_other_forms_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"list\.csv.*{message}"):
        read_table(file)
    with pytest.raises(UserError, match="is missing or not a file"):
        read_table(tmp_path)
