"""Shards that lie at a server: a real one, which fails as real ones do, and several processes at one cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.loader import TrainSampler, evaluation_loader, train_loader
from dfer_dist.data.loading.prefetch import Prefetcher, check_cache, evaluation_requests
from dfer_dist.data.loading.sampler import BalancedPlan, EpochPlan, all_clips, clips_by_class
from dfer_dist.data.shards import store
from dfer_dist.data.shards.cache import Cache, default_folder
from dfer_dist.data.shards.index import Index, open_index, read_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.store import Remote, is_remote, open_store, settle
from dfer_dist.utils.errors import UserError
from tests.helpers.remote import READER, batches, every, same_clips
from tests.helpers.web_server import Web


@pytest.fixture
def web(tiny_shards: Index) -> Iterator[Web]:
    server = Web(tiny_shards.root)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_WAITS", (0.01, 0.02, 0.04, 0.08, 0.16))
    monkeypatch.setattr(store, "_failed", {})


def remote(web: Web, folder: Path, limit: int = 10**9) -> Index:
    return read_index(Remote(web.url, Cache(folder, limit)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_set_gives_the_batches_of_a_local_one_and_each_file_comes_once(
    web: Web, tiny_shards: Index, tmp_path: Path, workers: int
) -> None:
    plan = EpochPlan(all_clips(tiny_shards, tiny_shards.train_shards(1)), 3, 0, 8, 2)
    test = all_clips(tiny_shards, tiny_shards.test_shards(1))
    data = DataConfig("-", num_frames=4, image_size=24, workers=workers)
    here, there = (
        batches(
            chain(
                train_loader(index, data, plan, epochs=2, micro_batch=8),
                evaluation_loader(index, data, test, batch=5),
            )
        )
        for index in (tiny_shards, remote(web, tmp_path))
    )
    assert len(here) == 12 + 3 and here == there
    assert set(web.asked.values()) == {1} and len(web.asked) == 2 * 15 + 1


def test_resuming_asks_for_nothing_of_what_was_passed(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    plan = EpochPlan(all_clips(tiny_shards, tiny_shards.train_shards(1)), 3, 1, 8, 3)
    last = [plan.sample_ref(plan.steps - 1, lane) for lane in range(8)]
    data = DataConfig("-", num_frames=4, image_size=24, workers=0)
    stream = train_loader(
        remote(web, tmp_path), data, plan, epochs=2, start=(1, plan.steps - 1), micro_batch=8
    )
    assert len(list(stream)) == 1
    files = {tiny_shards.shards[p.shard].file for p in last}
    assert len(files) < 12
    assert {name for name in web.asked if name.endswith(".tar")} == files


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("batch", "block"), [(8, 2), (8, 512), (1, 7), (48, 1)])
def test_the_plan_tells_which_shards_a_block_needs_soonest_first(
    tiny_shards: Index, balanced: bool, batch: int, block: int
) -> None:
    clips = all_clips(tiny_shards, tiny_shards.train_shards(2))
    plan = EpochPlan(clips, 3, 1, batch, block)
    if balanced:
        plan = BalancedPlan(clips, 3, 1, batch, block, clips_by_class(tiny_shards, clips))
    for lanes in (range(batch), range(batch // 2, batch)):
        for step in range(plan.steps):
            rest = range(step, min((step // block + 1) * block, plan.steps))
            needed = dict.fromkeys(plan.sample_ref(s, lane).shard for s in rest for lane in lanes)
            assert plan.block_shards(step, lanes) == list(needed)


def test_batches_carry_the_shards_of_their_block_and_of_the_next(tiny_shards: Index) -> None:
    plan = EpochPlan(all_clips(tiny_shards, tiny_shards.train_shards(2)), 3, 0, 8, 2)
    asks = list(TrainSampler(plan, epochs=2, start=(0, 1), rank=1, world_size=2, micro_batch=2))
    carried = [(i, set(a.ahead)) for i, a in enumerate(asks) if a.ahead]
    lanes, steps = range(4, 8), [(0, 1), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]
    shards = [set(plan.at(e).block_shards(s, lanes)) for e, s in steps]
    assert carried == [
        (2 * (e * 6 + s - 1), a | b)
        for (e, s), a, b in zip(steps, shards, [*shards[1:], set()], strict=True)
    ]
    walk = evaluation_requests(
        [[plan.sample_ref(0, 0)], [plan.sample_ref(0, 0)], [], [plan.sample_ref(0, 7)]]
    )
    first, last = plan.sample_ref(0, 0).shard, plan.sample_ref(0, 7).shard
    assert [a.ahead for a in walk] == [(first, last), (), (), (last,)]


def test_shards_are_fetched_before_they_are_read(web: Web, tmp_path: Path) -> None:
    index = remote(web, tmp_path)
    prefetcher = Prefetcher(index)
    prefetcher.prefetch([3, 1, 2])
    wait_for(lambda: len(list(tmp_path.glob("*.parquet"))) == 3)
    before = web.asked.total()
    reader = ClipReader(index)
    assert [reader.read(i, 0, every).key for i in (1, 2, 3)] and web.asked.total() == before
    few = replace(
        index, root=Remote(web.url, Cache(tmp_path / "few", 2 * max(s.bytes for s in index.shards)))
    )
    Prefetcher(few).prefetch(range(10))
    wait_for(lambda: len(list((tmp_path / "few").glob("*.tar"))) >= 2)
    time.sleep(0.1)
    assert web.asked[index.shards[9].file] == 0  # more than the cache holds is not fetched ahead


def wait_for(what, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


FAULTS = [[500, 503], ["cut"], ["slow"], [429, "cut", 500], ["alter"]]
FILES = ["fold1-00000.tar", "fold1-00000.parquet", "index.json"]


@pytest.mark.parametrize(
    ("name", "faults"), [(n, f) for n in FILES for f in FAULTS if (n, f) != (FILES[2], FAULTS[4])]
)
def test_faults_that_pass_are_waited_for(
    web: Web, tiny_shards: Index, tmp_path: Path, faults: list[object], name: str
) -> None:
    web.faults[name] = list(faults)
    index = remote(web, tmp_path)
    assert same_clips(ClipReader(index), ClipReader(tiny_shards), 0)
    assert web.asked[name] == 1 + sum(f != "slow" for f in faults)


def test_silence_is_a_fault(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    monkeypatch.setattr(store, "_systems", {})
    real = aiohttp.ClientTimeout
    monkeypatch.setattr(
        aiohttp, "ClientTimeout", lambda **_: real(total=None, sock_connect=0.2, sock_read=0.2)
    )
    web.faults["fold1-00000.tar"] = ["hang"]
    index = remote(web, tmp_path)
    assert ClipReader(index).read(0, 0, every).frames.any()
    assert web.asked["fold1-00000.tar"] == 2


@pytest.mark.parametrize(
    ("faults", "asked", "words"),
    [
        ([404], 1, "no such file there"),
        ([403], 1, "answers 403"),
        ([500] * 6, 6, "answers 500"),
        (["alter"] * 2, 2, "sha256"),
    ],
)
def test_a_shard_that_cannot_be_had_is_lost_with_its_url_and_not_asked_for_again(
    web: Web, tmp_path: Path, faults: list[object], asked: int, words: str
) -> None:
    web.faults["fold2-00001.tar"] = list(faults)
    index = remote(web, tmp_path)
    shard = next(i for i, s in enumerate(index.shards) if s.file == "fold2-00001.tar")
    reader = ClipReader(index)
    for row in range(2):
        with pytest.raises(DamagedClip, match=words) as caught:
            reader.read(shard, row, every)
        assert f"{web.url}/fold2-00001.tar" in str(caught.value) and reader.key(shard, row) in str(
            caught.value
        )
    assert web.asked["fold2-00001.tar"] == asked
    assert not list(tmp_path.glob(f"*{index.shards[shard].sha256}*"))
    store._failed.clear()  # minutes later
    assert reader.read(shard, 0, every).frames.any()


def test_a_set_that_is_not_there_or_was_altered_is_one_line(web: Web, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/other/index\.json: no such file there"):
        open_index(DataConfig(f"{web.url}/other", cache=str(tmp_path)))
    web.faults["index.json"] = ["alter"]
    with pytest.raises(
        UserError, match=r"index\.json (was changed|cannot be read|is not an index)"
    ):
        open_index(DataConfig(web.url, cache=str(tmp_path)))
    web.faults["fold1-00000.parquet"] = [404]
    with pytest.raises(UserError, match=r"/fold1-00000\.parquet: no such file there"):
        open_index(DataConfig(web.url, cache=str(tmp_path))).sidecar(0)
    web.close()
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*Connect"):
        open_index(DataConfig(web.url, cache=str(tmp_path)))


def readers(
    web: Web, folder: Path, limit: int, times: int = 1, count: int = 2
) -> list[subprocess.Popen[str]]:
    """Processes that wait for each other and then read the whole set at once."""
    command = [sys.executable, "-c", READER, web.url, str(folder), str(limit), str(times)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    return started


def test_of_processes_that_share_a_cache_one_fetches(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    for name in ("fold1-00000.tar", "fold1-00001.tar", "fold2-00000.tar"):
        web.faults[name] = ["slow"]  # so that the other one surely comes while it is fetched
    for process in readers(web, tmp_path, 10**9):
        assert process.communicate(timeout=60)[0] == "done\n"
    del web.asked["index.json"]
    assert set(web.asked.values()) == {1} and len(web.asked) == 30
    assert (
        sorted(f.suffix for f in tmp_path.iterdir() if f.name != ".lock")
        == [".parquet"] * 15 + [".tar"] * 15
    )


def test_the_bound_of_the_cache_holds_while_others_read_what_is_evicted(
    web: Web, tmp_path: Path
) -> None:
    total = sum(f.stat().st_size for f in web.folder.iterdir())
    limit = total // 3
    processes, most = readers(web, tmp_path, limit, times=2), 0
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


def named(letter: str) -> str:
    """A name as files of the cache have them."""
    return f"{letter * 64}.tar"


def held(folder: Path) -> list[str]:
    """Names of files in a folder that this process has open."""
    links = [os.readlink(f.path) for f in os.scandir("/proc/self/fd") if os.path.islink(f.path)]
    return [Path(name).name for name in links if name.startswith(str(folder))]


def test_an_evicted_shard_stays_readable_and_its_space_comes_back(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    index = remote(web, tmp_path)
    reader, good = ClipReader(index), ClipReader(tiny_shards)
    reader.read(0, 0, every)
    index.root.cache.drop(f"{index.shards[0].sha256}.tar")
    assert same_clips(reader, good, 0) and web.asked[index.shards[0].file] == 1
    assert held(tmp_path) == [f"{index.shards[0].sha256}.tar (deleted)"]
    reader.read(1, 0, every)
    assert held(tmp_path) == [f"{index.shards[1].sha256}.tar"]
    assert same_clips(reader, good, 0) and web.asked[index.shards[0].file] == 2


def test_the_least_recently_opened_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 300)

    def fill(path: Path) -> None:
        path.write_bytes(bytes(100))

    for name in map(named, "abc"):
        os.close(cache.open(name, 100, fill))
        time.sleep(0.02)
    os.close(cache.open(named("a"), 100, fill))
    os.close(cache.open(named("d"), 100, fill))
    assert {f.name for f in tmp_path.iterdir()} == {*map(named, "acd"), ".lock"}


def test_what_else_lies_in_the_folder_is_left_alone_and_not_counted(tmp_path: Path) -> None:
    mine = (
        "thesis.tar",
        "data.parquet",
        "film.mp4.part",
        f".{'a' * 64}.tar.part",
        f"{'A' * 64}.tar",
        named("a") + ".old",
    )
    (tmp_path / "folder").mkdir()
    for name in mine:
        (tmp_path / name).write_bytes(bytes(500))
    cache = Cache(tmp_path, 150)
    for letter in "ab":
        os.close(cache.open(named(letter), 100, lambda path: path.write_bytes(bytes(100))))
    assert {f.name for f in tmp_path.iterdir()} == {*mine, "folder", named("b"), ".lock"}


def test_room_is_kept_for_what_is_on_its_way(tmp_path: Path) -> None:
    cache, started, go = Cache(tmp_path, 150), [], threading.Event()

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
    time.sleep(0.3)
    assert len(started) == 1
    go.set()
    for thread in threads:
        thread.join(20)
    assert len(started) == 2 and len(list(tmp_path.glob("[ab]*.tar"))) == 1


def test_two_never_fetch_the_same_even_where_fetching_fails(tmp_path: Path) -> None:
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


def test_a_killed_download_leaves_nothing_that_counts(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    web.faults["fold1-00000.tar"] = ["hang"]
    size = tiny_shards.shards[0].bytes
    limit = size + store._ROOM  # for one shard
    (process,) = readers(web, tmp_path, limit, count=1)
    wait_for(lambda: [f for f in tmp_path.glob(".*.tar.*.part") if f.stat().st_size == size // 2])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.glob(".*.part")
    assert left.stat().st_size == size // 2
    index = remote(web, tmp_path, limit)
    assert (
        ClipReader(index).read(1, 0, every).frames.any()
    )  # another shard: the dead one takes no room
    assert not list(tmp_path.glob(".*.part"))
    assert same_clips(ClipReader(index), ClipReader(tiny_shards), 0)


def test_whoever_waits_for_a_killed_download_takes_over(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    web.faults["fold1-00000.tar"] = ["hang"]
    (process,) = readers(web, tmp_path, 10**9, count=1)
    # of the tar, not of the sidecar before it: else we may be the first to ask for the tar, and hang
    wait_for(lambda: [f for f in tmp_path.glob(".*.tar.*.part") if f.stat().st_size])
    index, got = remote(web, tmp_path), []
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


def test_bytes_that_rot_in_the_cache_are_told_and_fetched_anew(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    index = remote(web, tmp_path)
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


def test_a_cache_that_cannot_do_is_refused(web: Web, tiny_shards: Index, tmp_path: Path) -> None:
    whole = sum(s.bytes for s in tiny_shards.shards)
    plan = EpochPlan(all_clips(tiny_shards, range(15)), 0, 0, 10, 2)
    small = remote(web, tmp_path, whole // 2)
    with pytest.raises(
        UserError, match=r"data\.cache_gb=.*10 lanes of this machine read .* GB of shards at a time"
    ):
        check_cache(small, plan, range(2), 2)
    check_cache(small, plan, range(1), 10)
    check_cache(tiny_shards, plan, range(2), 2)
    check_cache(remote(web, tmp_path, whole), plan, range(2), 2)
    with pytest.raises(UserError, match=r"a single shard has"):
        ClipReader(remote(web, tmp_path / "tiny", 2 * store._ROOM // 40)).read(0, 0, every)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache=.*file"):
        remote(web, tmp_path / "file").sidecar(0)


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat x",
        "PIPE:cat x",
        "ftp://h/x",
        "file://x",
        "file://host/x",
        "file:///",
        "gs://b/x",
        "https://me:hunter2@h/x",
        "http://h/x?sig=1",
    ],
)
def test_other_urls_are_refused_without_their_secrets(location: str) -> None:
    with pytest.raises(UserError, match=r"data\.shards") as caught:
        open_store(location, None, 1)
    assert "hunter2" not in str(caught.value)


def test_a_location_is_a_folder_or_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settle("a/../dfew:v2") == str(tmp_path / "dfew:v2")
    assert settle("https://host/sets/dfew/") == "https://host/sets/dfew"
    assert (
        not is_remote("C")
        and is_remote("S3://bucket/x")
        and settle("file:///a/b/") == "file:///a/b"
    )
    assert open_store("x", None, 1) == Path("x")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert open_store("http://h/x", None, 1.5).cache == Cache(
        tmp_path / "dfer-cache", 1_500_000_000
    )
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_folder() == tmp_path / f"dfer-cache-{os.getuid()}"


def test_s3_is_read_through_its_own_protocol(
    tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setattr(store, "_systems", {})
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    try:
        bucket = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket.mkdir("faces")
        bucket.put([str(f) for f in sorted(tiny_shards.root.iterdir())], "faces/tiny/")
        bucket.rm("faces/tiny/fold3-00001.tar")
        index = open_index(DataConfig("s3://faces/tiny", cache=str(tmp_path)))
        assert index.hash == tiny_shards.hash
        reader, good = ClipReader(index), ClipReader(tiny_shards)
        for shard, entry in enumerate(index.shards):
            if entry.file == "fold3-00001.tar":
                with pytest.raises(
                    DamagedClip, match=r"s3://faces/tiny/fold3-00001\.tar: no such file there"
                ):
                    reader.read(shard, 0, every)
            else:
                assert same_clips(reader, good, shard)
    finally:
        server.stop()


def test_reading_does_not_need_the_package_of_s3_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setattr(store, "_systems", {})
    with pytest.raises(UserError, match=r"pip install 'dfer_dist\[s3\]'"):
        open_store("s3://faces/tiny", str(tmp_path), 1)
