"""Shards at a real server that fails as real ones do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.captions.store import (
    descriptions,
)
from dfer_dist.data.loading.loader import evaluation_loader, train_loader
from dfer_dist.data.loading.prefetch import Prefetcher
from dfer_dist.data.loading.sampler import (
    EpochPlan,
    all_clips,
)
from dfer_dist.data.shards import store
from dfer_dist.data.shards.cache import Cache
from dfer_dist.data.shards.index import Index, load_index, open_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.store import Remote, open_store
from dfer_dist.utils.errors import UserError
from tests.helpers.data.descriptions import fill_descriptions, train_keys
from tests.helpers.data.remote import (
    batches,
    every,
    open_remote,
    retry_quickly,
    same_clips,
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


def test_signed_url_is_read_and_not_shown(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFER_SIGNED_URL", "")
    # quoted once more, the signature would be another
    web.query = "sig=a%2Bb%2F%3D&se=2030-01-01T00%3A00"
    index = open_index(DataConfig(f"{web.url}?{web.query}", cache=str(tmp_path)))
    assert str(index.root) == web.url
    ClipReader(index).read(0, 0, every)
    with pytest.raises(UserError, match="403") as e:
        open_index(DataConfig(f"{web.url}?sig=other", cache=str(tmp_path)))
    assert "sig" not in str(e.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_loaders_match_local_and_fetch_each_file_once(
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
        for index in (tiny_shards, open_remote(web, tmp_path))
    )
    assert len(here) == 12 + 3 and here == there
    assert set(web.asked.values()) == {1} and len(web.asked) == 2 * 15 + 1


def test_resumed_loader_fetches_only_remaining_shards(
    web: Web, tiny_shards: Index, tmp_path: Path
) -> None:
    plan = EpochPlan(all_clips(tiny_shards, tiny_shards.train_shards(1)), 3, 1, 8, 3)
    last = [plan.sample_ref(plan.steps - 1, lane) for lane in range(8)]
    data = DataConfig("-", num_frames=4, image_size=24, workers=0)
    stream = train_loader(
        open_remote(web, tmp_path), data, plan, epochs=2, start=(1, plan.steps - 1), micro_batch=8
    )
    assert len(list(stream)) == 1
    files = {tiny_shards.shards[p.shard].file for p in last}
    assert len(files) < 12
    assert {name for name in web.asked if name.endswith(".tar")} == files


def test_prefetcher_fetches_what_fits_before_it_is_read(web: Web, tmp_path: Path) -> None:
    index = open_remote(web, tmp_path)
    prefetcher = Prefetcher(index)
    prefetcher.prefetch([3, 1, 2])
    wait_until(lambda: len(list(tmp_path.glob("*.parquet"))) == 3)
    before = web.asked.total()
    reader = ClipReader(index)
    assert [reader.read(i, 0, every).key for i in (1, 2, 3)] and web.asked.total() == before
    few = replace(
        index, root=Remote(web.url, Cache(tmp_path / "few", 2 * max(s.bytes for s in index.shards)))
    )
    prefetcher = Prefetcher(few)
    prefetcher.prefetch(range(10))
    wait_until(lambda: not prefetcher._running)
    assert len(list((tmp_path / "few").glob("*.tar"))) >= 2
    assert web.asked[index.shards[9].file] == 0  # more than the cache holds is not fetched ahead


FAULTS = [[500, 503], ["cut"], ["slow"], [429, "cut", 500], ["alter"]]


FILES = ["fold1-00000.tar", "fold1-00000.parquet", "index.json"]


@pytest.mark.parametrize(
    ("name", "faults"), [(n, f) for n in FILES for f in FAULTS if (n, f) != (FILES[2], FAULTS[4])]
)
def test_fetch_retries_temporary_faults(
    web: Web, tiny_shards: Index, tmp_path: Path, faults: list[object], name: str
) -> None:
    web.faults[name] = list(faults)
    index = open_remote(web, tmp_path)
    assert same_clips(ClipReader(index), ClipReader(tiny_shards), 0)
    assert web.asked[name] == 1 + sum(f != "slow" for f in faults)


def test_fetch_retries_after_silence(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aiohttp

    monkeypatch.setattr(store, "_systems", {})
    real = aiohttp.ClientTimeout
    monkeypatch.setattr(
        aiohttp, "ClientTimeout", lambda **_: real(total=None, sock_connect=0.2, sock_read=0.2)
    )
    web.faults["fold1-00000.tar"] = ["hang"]
    index = open_remote(web, tmp_path)
    assert ClipReader(index).read(0, 0, every).frames.any()
    assert web.asked["fold1-00000.tar"] == 2


@pytest.mark.parametrize(
    ("faults", "asked", "message"),
    [
        ([404], 1, "no such file there"),
        ([403], 1, "answers 403"),
        ([500] * 6, 6, "answers 500"),
        (["alter"] * 2, 2, "sha256"),
    ],
)
def test_shard_that_cannot_be_fetched_is_lost_with_its_url(
    web: Web, tmp_path: Path, faults: list[object], asked: int, message: str
) -> None:
    web.faults["fold2-00001.tar"] = list(faults)
    index = open_remote(web, tmp_path)
    shard = next(i for i, s in enumerate(index.shards) if s.file == "fold2-00001.tar")
    reader = ClipReader(index)
    for row in range(2):
        with pytest.raises(DamagedClip, match=message) as caught:
            reader.read(shard, row, every)
        assert f"{web.url}/fold2-00001.tar" in str(caught.value) and reader.key(shard, row) in str(
            caught.value
        )
    assert web.asked["fold2-00001.tar"] == asked
    left = tmp_path.glob(f"*{index.shards[shard].sha256}*")
    assert all(f.suffix == ".lock" for f in left)
    store._failed.clear()  # minutes later
    assert reader.read(shard, 0, every).frames.any()


def test_open_index_names_missing_or_altered_set(web: Web, tmp_path: Path) -> None:
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


def test_reader_reads_s3(
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


def test_descriptions_at_a_server_are_read(tiny_shards: Index, tmp_path: Path) -> None:
    index = load_index(Path(shutil.copytree(tiny_shards.root, tmp_path / "shards")))
    fill_descriptions(index)
    web = Web(index.root)
    there = load_index(open_store(web.url, str(tmp_path / "cache"), 1))
    keys = train_keys(there, 1)
    assert descriptions(there, keys, 1) == descriptions(index, keys, 1)
    web.close()
