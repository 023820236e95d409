from __future__ import annotations

import os
import re

import pytest

from dfer_dist.data.sources.names import is_system, make_keys, plain_name, printable

GBK = os.fsdecode("你好".encode("gb18030"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Happy/你好 1", "Happy/你好 1"),
        (GBK, r"\xc4\xe3\xba\xc3"),
        (os.fsdecode(b"caf\xe9.mp4"), r"caf\xe9.mp4"),
        ("two\nlines\t1", r"two\x0alines\x091"),
    ],
)
def test_printable_is_text_of_one_line(name: str, expected: str) -> None:
    assert printable(name) == expected
    assert printable(name).encode()


def test_plain_name_is_the_same_for_bytes_and_accents_that_mean_the_same() -> None:
    assert plain_name(GBK) == plain_name("你好") == "你好"
    assert plain_name("cafe\u0301") == plain_name("caf\u00e9")
    assert plain_name("a") != plain_name("A")


def test_keys_that_are_fit_and_unique_stay_as_they_are() -> None:
    sources = ["Action/Happy/0015", "00001", "Sad/video 1", "a-b_c", "/d/"]
    assert make_keys(sources) == ["Action_Happy_0015", "00001", "Sad_video_1", "a-b_c", "d"]


@pytest.mark.parametrize(
    "sources",
    [
        ["高兴/你好", "高兴/再见", "悲伤/你好"],
        ["a/b", "a_b", "a b"],
        ["x" * 200, "x" * 199 + "y", "x" * 91],
        ["a.b", "a:b", "../a"],
        [printable(GBK), "____"],
    ],
)
def test_keys_of_other_names_are_made_unique(sources: list[str]) -> None:
    keys = make_keys(sources)
    assert len(set(keys)) == len(sources)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)
    # the key of a clip does not depend on the order of the others
    assert make_keys(sources[::-1]) == keys[::-1]


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "__MACOSX",
        "$RECYCLE.BIN",
        ".git",
        "._a.jpg",
        "lost+found",
        "Thumbs.db",
        "~snapshot",
        "RECYCLED",
        "FOUND.000",
        "@SynoEAStream",
        "~$table.xlsx",
        "Thumbs.db:encryptable",
    ],
)
def test_what_systems_make_is_known(name: str) -> None:
    assert is_system(name)
    assert not is_system(f"a{name}")
