"""Where a set of shards lies: a local folder, or a server that is read through a cache on this machine's disk.

A folder may be read through the cache too, as ``file://``: one that all nodes see, whose shards are copied once to each node's disk.

Remote bytes come through fsspec, not through webdataset's openers: those run ``curl`` for http, know no s3, and hand on what
comes without a check. Files come whole: training enters a shard at many places, and one request for each would wait for the
network each time.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from dfer_dist.data.shards.cache import FULL, Cache, default_folder
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

T = TypeVar("T")

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try
_REMEMBER = 300.0  # seconds for which a file that could not be had is not asked for again
_ROOM = 1 << 20  # bytes kept free for a sidecar, whose size the index does not tell
_TEMPORARY = (408, 425, 429)  # statuses below 500 that ask to come again

_failed: dict[str, tuple[float, str]] = {}  # by URL: when, and why
_systems: dict[
    tuple[str, int], Any
] = {}  # of fsspec, by protocol and process; kept, since closing one in a fork hurts its parent's


class FetchError(OSError):
    """A file that cannot be had, or whose bytes are not what the index says; names its URL."""


class _Altered(OSError):
    pass


@dataclass(frozen=True)
class Remote:
    """Shards below ``url`` (http, https, s3 or file), whole ones kept in ``cache``."""

    url: str
    cache: Cache

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path | None:
        """The folder behind a ``file://`` URL; None for a server."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme.lower() == "file" else None

    def _place(self, name: str) -> tuple[str, str]:
        """A file's URL, and what fsspec takes for it: its local file system leaves ``%20`` in URLs alone."""
        url = f"{self.url}/{name}"
        return url, str(self.folder / name) if self.folder else url

    def get(self, name: str) -> bytes:
        """A file's bytes as they are now at the server, unchecked.

        Raises
        ------
        FetchError
            If it cannot be had, faults that pass by waited for.
        """
        url, place = self._place(name)
        return _patiently(url, lambda: _system(url).cat_file(place))

    def save(self, name: str, path: Path) -> None:
        """Write a file as it is now at the server to ``path``, unchecked.

        Raises
        ------
        FetchError
            As for :meth:`get`.
        """
        url, place = self._place(name)
        _patiently(url, lambda: _system(url).get_file(place, str(path)))

    def open(self, name: str, sha256: str, size: int) -> int:
        """A file descriptor of a shard in the cache, fetched and checked if it was not there.

        Raises
        ------
        FetchError
            If it cannot be had, or has another sha256.
        """
        return self.cache.open(f"{sha256}.tar", size, partial(self._fetch, name, sha256))

    def read(self, name: str, sha256: str) -> bytes:
        """The bytes of a sidecar, checked; from the cache, or fetched into it.

        Raises
        ------
        FetchError
            As for :meth:`open`.
        """
        while True:
            file = self.cache.open(
                f"{sha256}.parquet", _ROOM, partial(self._fetch, name, sha256), exact=False
            )
            with os.fdopen(file, "rb") as stream:
                data = stream.read()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            self.cache.drop(
                f"{sha256}.parquet"
            )  # this disk's own fault: it was checked when it came

    def _fetch(self, name: str, sha256: str, path: Path) -> None:
        url, place = self._place(name)

        def once() -> None:
            _system(url).get_file(place, str(path))
            if sha256_file(path) != sha256:
                raise _Altered(
                    f"differs from the index (sha256, {path.stat().st_size} bytes): copy it there again"
                )

        _patiently(url, once)


def is_remote(location: str) -> bool:
    """Whether ``location`` is a URL, whose shards come through the cache, rather than a folder.

    Raises
    ------
    UserError
        For a scheme that is not read, for a ``file://`` without an absolute path, and for a URL with a password, which would stand
        in every record of the run.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|(?i:(pipe)):", location)
    if not scheme:
        return False
    if (scheme[1] or scheme[2]).lower() not in ("http", "https", "s3", "file"):
        raise UserError(
            f"data.shards={location}: give a folder, http://…, https://…, s3://… or file:///…"
        )
    parts = urlsplit(location)
    if parts.scheme.lower() == "file" and (parts.netloc or not parts.path.strip("/")):
        raise UserError(
            f"data.shards={location}: a file URL has three slashes and a whole path, such as file:///shared/dfew"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "data.shards: a URL without user, password, ? and #; secrets belong in ~/.netrc or in the variables of AWS"
        )
    return True


def settle(location: str) -> str:
    """``location`` as it is understood from every folder."""
    return location.rstrip("/") if is_remote(location) else str(Path(location).resolve())


def resolve_cache(cache: str | None) -> str | None:
    """``data.cache`` as it is understood from every folder; variables in it are left to the machines that read."""
    if cache is None or cache.startswith("$"):
        return cache
    return str(Path(cache).absolute()) if "$" in cache else str(Path(cache).resolve())


def open_store(location: str, cache: str | None, cache_gb: float) -> Path | Remote:
    """A folder, or what is behind a URL with its cache in ``cache`` (null: :func:`~dfer_dist.data.shards.cache.default_folder`).

    Variables in ``cache``, such as ``$SLURM_TMPDIR``, are looked up when it is first used: where a run is opened they may not be set.

    Raises
    ------
    UserError
        For URLs that are not read, and for s3 without the package that reads it.
    """
    if not is_remote(location):
        return Path(location)
    remote = Remote(
        settle(location), Cache(Path(cache) if cache else default_folder(), int(cache_gb * 1e9))
    )
    try:
        _system(remote.url)
    except ImportError as e:
        raise UserError("s3:// needs a package more: pip install 'dfer_dist[s3]'") from e
    return remote


def _system(url: str) -> Any:
    """fsspec's file system for a URL in this process."""
    import fsspec  # with what it imports it takes a third of a second, which a local folder need not wait for

    protocol = urlsplit(url).scheme.lower()
    key = (protocol, os.getpid())
    if key not in _systems:
        options: dict[str, Any] = {}
        if protocol.startswith("http"):
            import aiohttp

            # whole shards may take long, silence may not; proxies and ~/.netrc as everywhere else
            limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
        _systems[key] = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    return _systems[key]


def _patiently(url: str, attempt: Callable[[], T]) -> T:
    """The value of ``attempt``, tried again after faults that may pass: silence, a cut connection, a server in trouble."""
    since, reason = _failed.get(url, (-_REMEMBER, ""))
    if time.monotonic() - since < _REMEMBER:
        raise FetchError(reason)
    for tries, wait in enumerate((*_WAITS, None)):
        try:
            return attempt()
        except Exception as e:  # each kind of server has its own
            if isinstance(e, OSError) and e.errno in FULL:
                raise
            if (
                wait is None or _is_final(e) or (isinstance(e, _Altered) and tries)
            ):  # altered again: there, not on the way
                reason = " ".join(f"{url}: {_words(e)}".split())
                _failed[url] = (time.monotonic(), reason)
                raise FetchError(reason) from e
            time.sleep(
                wait * random.uniform(0.75, 1.25)
            )  # so that many nodes do not come back at once
    raise AssertionError("unreachable")


def _is_final(e: Exception) -> bool:
    status = getattr(e, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _TEMPORARY
    return refused or isinstance(e, (FileNotFoundError, NotADirectoryError, PermissionError))


def _words(e: Exception) -> str:
    if isinstance(e, (FileNotFoundError, NotADirectoryError)):
        return "no such file there"
    if isinstance(status := getattr(e, "status", None), int):
        return f"the server answers {status} {getattr(e, 'message', '')}"
    return str(e) if isinstance(e, _Altered) else f"{type(e).__name__} {e}"
