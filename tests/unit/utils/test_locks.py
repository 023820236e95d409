"""Locks between processes; a second open file acts as a second process."""

from __future__ import annotations

import os
from pathlib import Path

from dfer_dist.utils.locks import file_lock, is_locked, try_lock


def test_held_lock_is_seen_and_refused_to_others(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with file_lock(path), path.open("a") as other:
        assert is_locked(path)
        assert not try_lock(other)
    assert not is_locked(path)
    assert path.exists()


def test_missing_lock_file_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / ".lock")
    assert not (tmp_path / ".lock").exists()


def test_asking_does_not_lock_out_another_question(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    with path.open() as file:
        assert not is_locked(path)
        assert try_lock(file)


def test_lock_ends_although_a_fork_keeps_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with file_lock(path) as file:
        inherited = os.dup(file.fileno())
    try:
        assert not is_locked(path)
    finally:
        os.close(inherited)


def test_lock_file_keeps_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / ".array"
    for text in ("1", "2"):
        with file_lock(path) as file:
            file.seek(0)
            assert file.read() == ("" if text == "1" else "1")
            file.write(text)
    assert path.read_text() == "12"
