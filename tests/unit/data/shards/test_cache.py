"""The cache of remote files: eviction, limits and concurrent fetches in one process."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dfer_dist.data.shards.cache import Cache


def named(letter: str) -> str:
    """A name as files of the cache have them."""
    return f"{letter * 64}.tar"


def names(folder: Path) -> set[str]:
    """Names of the files in a folder, lock files aside."""
    return {f.name for f in folder.iterdir() if not f.name.endswith(".lock")}


def test_cache_evicts_least_recently_opened_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 300)

    def fill(path: Path) -> None:
        path.write_bytes(bytes(100))

    for seconds, name in enumerate(map(named, "abc")):
        os.close(cache.open(name, 100, fill))
        os.utime(tmp_path / name, (seconds, seconds))
    os.close(cache.open(named("a"), 100, fill))
    os.close(cache.open(named("d"), 100, fill))
    assert names(tmp_path) == {*map(named, "acd")}


def test_cache_ignores_foreign_files(tmp_path: Path) -> None:
    foreign = (
        "thesis.tar",
        "data.parquet",
        "video.mp4.part",
        f".{'a' * 64}.tar.part",
        f"{'A' * 64}.tar",
        named("a") + ".old",
    )
    (tmp_path / "folder").mkdir()
    for name in foreign:
        (tmp_path / name).write_bytes(bytes(500))
    cache = Cache(tmp_path, 150)
    for letter in "ab":
        os.close(cache.open(named(letter), 100, lambda path: path.write_bytes(bytes(100))))
    assert names(tmp_path) == {*foreign, "folder", named("b")}


def test_cache_counts_downloads_at_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, started, go = Cache(tmp_path, 150), [], threading.Event()
    waits, evict = threading.Event(), Cache._evict

    def evict_or_wait(self: Cache, size: int) -> bool:
        fits = evict(self, size)
        if not fits:
            waits.set()
        return fits

    monkeypatch.setattr(Cache, "_evict", evict_or_wait)

    def fetch(path: Path) -> None:
        started.append(path.name)
        go.wait(20)
        path.write_bytes(bytes(100))

    threads = [
        threading.Thread(target=lambda name=name: os.close(cache.open(name, 100, fetch)))
        for name in map(named, "ab")
    ]
    for thread in threads:
        thread.start()
    assert waits.wait(20)
    assert len(started) == 1
    go.set()
    for thread in threads:
        thread.join(20)
    assert len(started) == 2 and len(list(tmp_path.glob("[ab]*.tar"))) == 1


def test_cache_serializes_fetches_of_one_file_that_fail(tmp_path: Path) -> None:
    cache, busy, together, failures = Cache(tmp_path, 10**6), [], [], iter([True] * 9)

    def fetch(path: Path) -> None:
        busy.append(path)
        together.append(len(busy))
        time.sleep(0.02)
        busy.pop()
        if next(failures, False):
            raise OSError("no luck")
        path.write_bytes(bytes(100))

    def ask() -> None:
        for _ in range(3):
            with suppress(OSError):
                os.close(cache.open(named("a"), 100, fetch))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert together == [1] * 10
