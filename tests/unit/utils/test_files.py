"""Atomic writes and JSON files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, read_json, sha256_file, write_json, write_text


def test_atomic_write_replaces(tmp_path: Path) -> None:
    file = tmp_path / "below" / "a.txt"
    write_text(file, "old")
    write_text(file, "neu: ä")
    assert file.read_text(encoding="utf-8") == "neu: ä"
    assert os.listdir(file.parent) == ["a.txt"]


def test_reader_of_the_replaced_file_still_sees_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with file.open() as reader:
        write_text(file, "new")
        assert reader.read() == "old"


def test_failed_atomic_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def write_half() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half of the n")
            assert file.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_failed_atomic_write_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.txt"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    def write_to_a_full_disk() -> None:
        # its error has no file
        with atomic_path(tmp_path / "a.txt"), open("/dev/full", "w") as full:
            full.write("x")

    with pytest.raises(OSError, match=r"No space left on device: '/.*/a\.txt'$"):
        write_to_a_full_disk()
    assert os.listdir(tmp_path) == []


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_file_mode_is_kept_by_a_writer_that_makes_another_file(tmp_path: Path) -> None:
    """As safetensors does."""
    with atomic_path(tmp_path / "a.txt") as temporary:
        other = tmp_path / "other"
        other.touch(0o600)
        other.replace(temporary)
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None], "y": "ä"})
    assert read_json(tmp_path / "a.json") == {"version": 1, "x": [1, 2.5, None], "y": "ä"}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n "version": 1')


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json")["x"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1, "x"', "cannot be read"),
        ("", "cannot be read"),
        ("[1]", "not of version 1"),
        ('{"x": 1}', "not of version 1"),
        ('{"version": 2}', "not of version 1"),
        ("\xff", "cannot be read"),
    ],
)
def test_bad_json_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        sha256_file(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
