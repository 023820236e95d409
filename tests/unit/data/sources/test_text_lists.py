from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from dfer_dist.data.sources.text_lists import find_delimiter, read_rows, read_text
from dfer_dist.utils.errors import UserError


def parse(fields: list[str]) -> tuple[str, str] | None:
    """Fields of a line with a path and a label of one letter."""
    return (fields[0], fields[1]) if len(fields[1]) == 1 else None


def read(file: Path, text: str) -> list[tuple[str, str]]:
    file.write_text(text)
    return read_rows(file, parse, 2, "'path label'")


@pytest.mark.parametrize(
    "line",
    [
        "my clip,1",
        "my clip;1",
        "my clip\t1",
        "my clip , 1 ",
        "my clip 1",
        "  my clip   1  ",
        '"my clip","1"',
        '"my clip";"1"',
        '"my clip" 1',
        "my clip,1,",
        "my clip;1;;",
        "my clip\t1\t",
        "my clip,1.0",
        "my clip 1.00",
    ],
)
def test_fields_may_be_separated_and_quoted_in_any_usual_way(line: str, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    assert read(file, f"\n{line}\r\n\r\n{line}") == [("my clip", "1")] * 2


def test_a_separator_may_be_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    assert read(file, "clip 1.0,1\n2.0 1.0") == [("clip 1.0", "1"), ("2.0", "1")]
    assert read(file, "one, two 1\na;b,2\n") == [("one, two", "1"), ("a;b", "2")]
    assert read(file, '"one, two",1') == [("one, two", "1")]
    assert read(file, '"one, two" 1\n"x ""y""",2') == [("one, two", "1"), ('x "y"', "2")]


@pytest.mark.parametrize(
    "header",
    ["video_name,label", '"video_name","label"', "Clip;Emotion", "path label", "file\tclass"],
)
def test_header_is_skipped_in_the_first_line_only(header: str, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    assert read(file, f"{header}\na,1") == [("a", "1")]
    with pytest.raises(UserError, match=r"list\.txt:2: '.*' is not of the form 'path label'"):
        read(file, f"a,1\n{header}")


def test_line_that_is_no_row_is_named_with_the_form_that_is_wanted(tmp_path: Path) -> None:
    for line in ("a", "a,b,1", "a,12"):
        with pytest.raises(UserError, match=rf"list\.txt:3: '{line}' is not of the form 'path l"):
            read(tmp_path / "list.txt", f"path,label\nb,1\n{line}\n")


@pytest.mark.parametrize(
    "data",
    [
        "表情,1".encode(),
        codecs.BOM_UTF8 + "表情,1".encode(),
        "表情,1".encode("utf-16"),
        codecs.BOM_UTF16_BE + "表情,1".encode("utf-16-be"),
        "表情,1".encode("gb18030"),
    ],
)
def test_read_text_knows_usual_encodings(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    assert read_text(tmp_path / "list.txt") == "表情,1"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["clip,label", "表情,1\r\n"])
def test_read_text_knows_utf_16_without_a_mark(encoding: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "list.txt") == text


def test_read_text_rejects_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match="UTF-8, UTF-16 or GB18030"):
        read_text(tmp_path / "list.txt")


def test_delimiter_is_the_first_separator() -> None:
    texts = ["clip,caption", "a.mp4;one, two", "clip\tcaption", "clip"]
    assert [find_delimiter(f"{text}\na,b;c") for text in texts] == [",", ";", "\t", ","]
