"""Locations of shards: folders and URLs, without a server."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from dfer_dist.data.shards import store
from dfer_dist.data.shards.cache import Cache, default_folder
from dfer_dist.data.shards.store import (
    Remote,
    is_remote,
    open_store,
    resolve_cache,
    resolve_location,
    resolve_locations,
)
from dfer_dist.utils.errors import UserError


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat x",
        "PIPE:cat x",
        "git://h/x",
        "memory://x",
        "zip://x.zip",
        "file://x",
        "file://host/x",
        "file:///",
        "gs://b/x?sig=hunter2",
        "https://me:hunter2@h/x",
        "https://h/x#hunter2",
        "sftp://me:hunter2@h/x",
        "abfs://faces:hunter2@lab/x",
        "s3://hunter2@bucket/x",
    ],
)
def test_open_store_refuses_other_urls_without_secrets(location: str) -> None:
    with pytest.raises(UserError, match=r"data\.shards") as caught:
        open_store(location, None, 1)
    assert "hunter2" not in str(caught.value)


def test_locations_are_folders_or_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_location("a/../dfew:v2") == str(tmp_path / "dfew:v2")
    assert resolve_location("https://host/sets/dfew/") == "https://host/sets/dfew"
    assert (
        not is_remote("C")
        and is_remote("S3://bucket/x")
        and resolve_location("file:///a/b/") == "file:///a/b"
    )
    assert open_store("x", None, 1) == Path("x")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert open_store("http://h/x", None, 1.5).cache == Cache(
        tmp_path / "dfer-cache", 1_500_000_000
    )
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_folder() == tmp_path / f"dfer-cache-{os.getuid()}"


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [
        ("s3", "s3fs", "'dfer_dist[s3]'"),
        ("gs", "gcsfs", "gcsfs"),
        ("az", "adlfs", "adlfs"),
        ("hf", "huggingface_hub", "huggingface_hub"),
    ],
)
def test_open_store_names_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    monkeypatch.setattr(store, "_systems", {})
    with pytest.raises(UserError, match=re.escape(f"{scheme}:// needs another package: pip")) as e:
        open_store(f"{scheme}://faces/tiny", str(tmp_path), 1)
    assert str(e.value).endswith(package)


def test_file_systems_of_fsspec_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_systems", {})
    remote = open_store("hf://datasets/me/dfew/", str(tmp_path), 1)
    assert isinstance(remote, Remote) and remote.url == "hf://datasets/me/dfew"
    system, root = store._system(remote.url)
    assert (type(system).__name__, root) == ("HfFileSystem", "datasets/me/dfew")


def test_server_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_WAITS_S", ())
    # fsspec's system of this scheme connects when it is made
    remote = open_store("ftp://127.0.0.1:1/dfew", str(tmp_path), 1)
    assert isinstance(remote, Remote)
    with pytest.raises(UserError, match=r"^ftp://127\.0\.0\.1:1/dfew/index\.json: Connection"):
        remote.get("index.json")


@pytest.mark.parametrize(
    "location", ["abfs://faces@lab.dfs.core.windows.net/dfew", "sftp://me@host/dfew", "HF://d/me/x"]
)
def test_name_before_the_host_is_no_secret(location: str) -> None:
    assert is_remote(location) and resolve_location(location) == location


def test_signature_is_kept_out_of_the_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFER_SIGNED_URL", "")
    assert resolve_location("https://h/x/?sig=a%2Bb&se=1") == "https://h/x"
    assert store._query_of("https://h/x") == "?sig=a%2Bb&se=1"
    assert store._query_of("https://h/other") == "" == store._query_of("https://elsewhere/x")


def test_signatures_of_several_sets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFER_SIGNED_URL", "")
    for _ in range(2):
        locations = ["https://h/x?a=1", "s3://b/y", "https://h/z/?b=2"]
        assert resolve_locations(locations) == ["https://h/x", "s3://b/y", "https://h/z"]
    assert (store._query_of("https://h/x"), store._query_of("https://h/z")) == ("?a=1", "?b=2")
    assert os.environ["DFER_SIGNED_URL"].count("?") == 2


def test_resolve_cache_makes_folders_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_cache(None) is None
    assert resolve_cache("a/../b") == str(tmp_path / "b")
    assert resolve_cache("b/$USER") == str(tmp_path / "b/$USER")
    assert resolve_cache("$A/b") == "$A/b"
    monkeypatch.setenv("HOME", "/home/ada")
    assert (resolve_cache("~/b"), resolve_cache("~/$A")) == ("/home/ada/b", "/home/ada/$A")
    assert resolve_location("~/dfew") == "/home/ada/dfew"
    with pytest.raises(UserError, match="written as"):
        _ = Cache(Path("/x/$/y"), 1).folder
