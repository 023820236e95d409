"""The cache of remote files, shared by processes that may be killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfer_dist.data.loading.prefetch import check_cache
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.shards import store
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.utils.errors import UserError
from tests.helpers.data.remote import (
    every,
    open_remote,
    retry_quickly,
    same_clips,
    start_readers,
    wait_until,
)
from tests.helpers.data.web_server import Web


@pytest.fixture
def web(tiny_shards: Index) -> Iterator[Web]:
    server = Web(tiny_shards.root)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_quickly(monkeypatch)


def test_cache_shared_by_processes_fetches_once(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    for name in ("fold1-00000.tar", "fold1-00001.tar", "fold2-00000.tar"):
        web.faults[name] = ["slow"]  # so that the other one surely comes while it is fetched
    for process in start_readers(web.url, tmp_path, 10**9):
        assert process.communicate(timeout=60)[0] == "done\n"
    del web.asked["index.json"]
    assert set(web.asked.values()) == {1} and len(web.asked) == 30
    assert (
        sorted(f.suffix for f in tmp_path.iterdir() if not f.name.endswith(".lock"))
        == [".parquet"] * 15 + [".tar"] * 15
    )


def test_cache_limit_holds_while_evicted_files_are_read(web: Web, tmp_path: Path) -> None:
    total = sum(f.stat().st_size for f in web.folder.iterdir())
    limit = total // 3
    processes, most = start_readers(web.url, tmp_path, limit, times=2), 0
    while any(p.poll() is None for p in processes):
        names = [(f.name, f) for f in tmp_path.iterdir()]
        sizes = []
        for name, f in names:
            try:
                sizes.append(
                    int(name.split(".")[-2]) if name.endswith(".part") else f.stat().st_size
                )
            except FileNotFoundError:
                continue
        most = max(most, sum(sizes))
        time.sleep(0.002)
    assert [p.communicate()[0] for p in processes] == ["done\n"] * 2  # every clip was whole
    assert limit // 2 < most <= limit
    assert all(
        n >= 2 for name, n in web.asked.items() if name.endswith(".tar")
    )  # what was evicted came again


def open_files(folder: Path) -> list[str]:
    """Names of files in a folder that this process has open."""
    links = [os.readlink(f.path) for f in os.scandir("/proc/self/fd") if os.path.islink(f.path)]
    return [Path(name).name for name in links if name.startswith(str(folder))]


def test_reader_reads_evicted_shard_and_frees_its_space(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    index = open_remote(web, tmp_path)
    reader, good = ClipReader(index), ClipReader(tiny_shards)
    reader.read(0, 0, every)
    index.root.cache.drop(f"{index.shards[0].sha256}.tar")
    assert same_clips(reader, good, 0) and web.asked[index.shards[0].file] == 1
    assert open_files(tmp_path) == [f"{index.shards[0].sha256}.tar (deleted)"]
    reader.read(1, 0, every)
    assert open_files(tmp_path) == [f"{index.shards[1].sha256}.tar"]
    assert same_clips(reader, good, 0) and web.asked[index.shards[0].file] == 2


def test_cache_discards_download_of_killed_process(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    web.faults["fold1-00000.tar"] = ["hang"]
    size = tiny_shards.shards[0].bytes
    limit = size + store._MAX_SIDECAR  # for one shard
    (process,) = start_readers(web.url, tmp_path, limit, count=1)
    wait_until(lambda: [f for f in tmp_path.glob(".*.tar.*.part") if f.stat().st_size == size // 2])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.glob(".*.part")
    assert left.stat().st_size == size // 2
    index = open_remote(web, tmp_path, limit)
    assert (
        ClipReader(index).read(1, 0, every).frames.any()
    )  # another shard: the dead download reserves no space
    assert not list(tmp_path.glob(".*.part"))
    assert same_clips(ClipReader(index), ClipReader(tiny_shards), 0)


def test_cache_waiter_takes_over_from_killed_process(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    web.faults["fold1-00000.tar"] = ["hang"]
    (process,) = start_readers(web.url, tmp_path, 10**9, count=1)
    # the tar, not the sidecar before it: else this thread may request the tar first, and hang
    wait_until(lambda: [f for f in tmp_path.glob(".*.tar.*.part") if f.stat().st_size])
    index, got = open_remote(web, tmp_path), []
    thread = threading.Thread(target=lambda: got.append(ClipReader(index).read(0, 0, every)))
    thread.start()
    time.sleep(0.2)
    assert not got and web.asked["fold1-00000.tar"] == 1
    process.kill()
    process.communicate()
    thread.join(20)
    assert len(got) == 1 and web.asked["fold1-00000.tar"] == 2, (
        web.asked,
        sorted(f.name for f in tmp_path.iterdir()),
    )


def test_reader_refetches_bytes_altered_in_the_cache(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    index = open_remote(web, tmp_path)
    ClipReader(index).read(0, 0, every)
    tar, sidecar = (
        tmp_path / f"{index.shards[0].sha256}.tar",
        tmp_path / f"{index.shards[0].sidecar_sha256}.parquet",
    )
    row = index.sidecar(0).to_pylist()[1]
    for path, at in ((tar, row["offset"] + row["size"] // 2), (sidecar, 100)):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
    reader = ClipReader(index)
    with pytest.raises(DamagedClip, match=row["key"]):
        reader.read(0, 1, every)
    assert same_clips(reader, ClipReader(tiny_shards), 0)
    tar.write_bytes(b"short")
    assert same_clips(ClipReader(index), ClipReader(tiny_shards), 0)
    assert web.asked["fold1-00000.tar"] == 3 and web.asked["fold1-00000.parquet"] == 2


def test_cache_that_is_too_small_or_a_file_is_refused(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    whole = sum(s.bytes for s in tiny_shards.shards)
    plan = EpochPlan(all_clips(tiny_shards, range(15)), 0, 0, 10, 2)
    small = open_remote(web, tmp_path, whole // 2)
    with pytest.raises(
        UserError, match=r"data\.cache_gb=.*10 lanes of this machine read .* GB of shards at a time"
    ):
        check_cache(small, plan, range(2), 2)
    check_cache(small, plan, range(1), 10)
    check_cache(tiny_shards, plan, range(2), 2)
    check_cache(open_remote(web, tmp_path, whole), plan, range(2), 2)
    with pytest.raises(UserError, match=r"a single shard has"):
        ClipReader(open_remote(web, tmp_path / "tiny", 2 * store._MAX_SIDECAR // 40)).read(
            0, 0, every
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache=.*file"):
        open_remote(web, tmp_path / "file").sidecar(0)
