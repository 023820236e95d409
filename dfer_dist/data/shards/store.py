"""Where a set of shards is stored: a local folder, or a server that is read through a cache.

A folder may be read through the cache too, as ``file://``: one on a shared file system, whose
shards are copied once to each node's disk.

Remote bytes come through fsspec, not through webdataset's openers: those run ``curl`` for http, do
not support s3, and pass on bytes unchecked. Files are fetched whole: training enters a shard at
many offsets, and one request for each would wait for the network each time.
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

from dfer_dist.data.shards.cache import DISK_FULL, Cache, default_folder
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

T = TypeVar("T")

_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each retry
_FAILED_FOR_S = 300.0  # a file that could not be fetched is not requested again so soon
_MAX_SIDECAR = 1 << 20  # bytes reserved for a sidecar, whose size the index does not hold
_TEMPORARY = (408, 425, 429)  # statuses below 500 that ask to retry

# what to install for fsspec's file system of a scheme; nothing for those that come with it
_PACKAGES = {
    **dict.fromkeys(("http", "https", "file", "ftp"), ""),
    "s3": "'dfer_dist[s3]'",
    "hf": "huggingface_hub",
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    "oss": "ossfs",
    "sftp": "paramiko",
}

# The variable with signed URLs, separated by spaces. Jobs and ranks inherit it, and no file records
# it.
_SIGNED_URL = "DFER_SIGNED_URL"

# when a URL failed last, and why
_failed: dict[str, tuple[float, str]] = {}
# fsspec's file systems by URL, whether it is signed, and process id: those of a parent process stay
# referenced, since closing them in a forked one would break the parent's
_systems: dict[tuple[str, bool, int], tuple[Any, str]] = {}


class FetchError(OSError, UserError):
    """A file that cannot be fetched, or whose bytes differ from the index; names its URL."""


class _Altered(OSError):
    """A file whose sha256 is not that of the index."""


@dataclass(frozen=True)
class Remote:
    """Shards below ``url``, whose scheme fsspec knows; complete files of them are cached."""

    url: str
    cache: Cache

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path | None:
        """The folder of a ``file://`` URL; None for a server."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme.lower() == "file" else None

    def get(self, name: str) -> bytes:
        """Return a file's current bytes at the server, unchecked.

        Raises
        ------
        FetchError
            If it cannot be fetched, after retries.
        """
        return self._retry(name, lambda system, path: system.cat_file(path))

    def save(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Write a file's current bytes at the server to ``target``.

        Raises
        ------
        FetchError
            If it cannot be fetched, or has another sha256 than one that is given.
        """

        def fetch(system: Any, path: str) -> None:
            system.get_file(path, str(target))
            if sha256 and sha256_file(target) != sha256:
                raise _Altered(
                    f"differs from the index (sha256, {target.stat().st_size} bytes): copy it "
                    "there again"
                )

        self._retry(name, fetch)

    def open(self, name: str, sha256: str, size: int) -> int:
        """Open a shard in the cache and return its descriptor; fetch and check it if needed.

        Raises
        ------
        FetchError
            If it cannot be fetched, or has another sha256.
        """
        return self.cache.open(f"{sha256}.tar", size, partial(self.save, name, sha256=sha256))

    def read(self, name: str, sha256: str) -> bytes:
        """Return the checked bytes of a sidecar; fetch it into the cache if needed.

        Raises
        ------
        FetchError
            As for :meth:`open`.
        """
        cached, fetch = f"{sha256}.parquet", partial(self.save, name, sha256=sha256)
        while True:
            file = self.cache.open(cached, _MAX_SIDECAR, fetch, exact=False)
            with os.fdopen(file, "rb") as stream:
                data = stream.read()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            # it was checked when it was fetched: an error of the local disk
            self.cache.drop(cached)

    def _retry(self, name: str, attempt: Callable[[Any, str], T]) -> T:
        """Return what ``attempt`` returns, given fsspec's file system and the file's name there.

        It is retried after temporary errors of the network or server.
        A file that differs from the index is fetched once more: a second difference is the
        server's, not one of the transfer.
        """
        url = f"{self.url}/{name}"
        since, reason = _failed.get(url, (-_FAILED_FOR_S, ""))
        if time.monotonic() - since < _FAILED_FOR_S:
            raise FetchError(reason)
        query = _query_of(self.url)
        for retries, wait in enumerate((*_WAITS_S, None)):
            try:
                system, root = _system(self.url, is_signed=bool(query))
                # fsspec's local file system does not unquote URLs
                root = str(self.folder or root)
                return attempt(system, f"{root}/{name}{query}")
            except Exception as e:  # each kind of server has its own
                if isinstance(e, OSError) and e.errno in DISK_FULL:
                    raise
                altered_again = isinstance(e, _Altered) and retries
                if wait is None or altered_again or _is_permanent(e):
                    reason = " ".join(f"{url}: {_explain(e)}".split())
                    reason = reason.replace(query, "") if query else reason
                    _failed[url] = (time.monotonic(), reason)
                    raise FetchError(reason) from e
                # jitter, so that many nodes do not retry at once
                time.sleep(wait * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable")


def is_remote(location: str) -> bool:
    """Return whether ``location`` is a URL, which is read through the cache, or a folder.

    Raises
    ------
    UserError
        For a scheme that is not supported, a ``file://`` without an absolute path, and a URL with a
        password, which would be written to every record of the run. A signature is allowed for a
        web server: see :func:`resolve_location`.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|(?i:(pipe)):", location)
    if not scheme:
        return False
    if (scheme[1] or scheme[2]).lower() not in _PACKAGES:
        known = ", ".join(f"{name}://…" for name in _PACKAGES)
        raise UserError(f"data.shards={location}: give a folder, or a URL: {known}")
    parts = urlsplit(location)
    if parts.scheme.lower() == "file" and (parts.netloc or not parts.path.strip("/")):
        raise UserError(
            f"data.shards={location}: a file URL has three slashes and an absolute path, such as "
            "file:///shared/dfew"
        )
    is_web = parts.scheme.lower() in ("http", "https")
    # container@account, or user@host
    has_name = parts.scheme.lower() in ("abfs", "abfss", "sftp")
    is_secret = parts.password or (parts.username and not has_name)
    if is_secret or parts.fragment or (parts.query and not is_web):
        raise UserError(
            "data.shards: give a URL without user, password and #; credentials belong in "
            "~/.netrc or in the variables of the storage, such as AWS_*"
        )
    return True


def resolve_location(location: str) -> str:
    """Return ``location`` independent of the working directory, without a signature.

    A shell leaves ``~`` in ``data.shards=~/dfew`` as it is.

    The signature of a URL is kept in the environment, which ranks and jobs inherit, since it is a
    password for some time. It is sent with the URL of each file.
    """
    if not is_remote(location):
        return str(Path(os.path.expanduser(location)).resolve())
    base, question_mark, _ = location.partition("?")
    base = base.rstrip("/")
    signed = os.environ.get(_SIGNED_URL, "").split()
    if question_mark and location not in signed:
        # that of several sets; of one URL the first counts
        os.environ[_SIGNED_URL] = " ".join([location, *signed])
    return base


def resolve_locations(shards: str | list[str]) -> str | list[str]:
    """Return ``data.shards``, one location or several, with :func:`resolve_location` of each."""
    if isinstance(shards, str):
        return resolve_location(shards)
    return [resolve_location(location) for location in shards]


def _query_of(url: str) -> str:
    """Return the signature of a URL, from ``?`` on; empty without one."""
    for signed in os.environ.get(_SIGNED_URL, "").split():
        base, question_mark, query = signed.partition("?")
        if base.rstrip("/") == url:
            return question_mark + query
    return ""


def resolve_cache(cache: str | None) -> str | None:
    """Return ``data.cache`` independent of the working directory.

    Variables in it are left for the machines that read the shards.
    """
    if cache is None or cache.startswith("$"):
        return cache
    folder = Path(os.path.expanduser(cache))
    return str(folder.absolute()) if "$" in cache else str(folder.resolve())


def open_store(location: str, cache: str | None, cache_gb: float) -> Path | Remote:
    """Open a set of shards.

    Parameters
    ----------
    location : str
        Folder or URL.
    cache : str, optional
        Folder of the cache of a URL; by default
        :func:`~dfer_dist.data.shards.cache.default_folder`. Variables in it, such as
        ``$SLURM_TMPDIR``, are expanded at its first use: where a run is opened they may not be set.
    cache_gb : float
        Most bytes of the cache, in 1e9.

    Raises
    ------
    UserError
        For URLs that are not supported, and without the package that a scheme needs.
    """
    if not is_remote(location):
        return Path(location)
    folder = Path(cache) if cache else default_folder()
    remote = Remote(resolve_location(location), Cache(folder, int(cache_gb * 1e9)))
    scheme = urlsplit(remote.url).scheme.lower()
    import fsspec  # as in _system

    try:
        # not the system itself, which may connect to its server at once
        fsspec.get_filesystem_class(scheme)
    except ImportError as e:
        raise UserError(
            f"{scheme}:// needs another package: pip install {_PACKAGES[scheme]}"
        ) from e
    return remote


def _system(url: str, is_signed: bool = False) -> tuple[Any, str]:
    """Return fsspec's file system for a URL in this process, and the path of the URL in it."""
    import fsspec  # takes a third of a second, which a local folder does not need

    protocol = urlsplit(url).scheme.lower()
    key = (url, is_signed, os.getpid())
    if key not in _systems:
        options: dict[str, Any] = {}
        if protocol.startswith("http"):
            import aiohttp

            # no limit on a whole shard, but on silence; proxies and ~/.netrc are honoured
            limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
            # to quote a signature again could change it
            options["encoded"] = is_signed
        _systems[key] = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
    return _systems[key]


def _is_permanent(e: Exception) -> bool:
    status = _http_status(e)
    refused = status is not None and 400 <= status < 500 and status not in _TEMPORARY
    return refused or isinstance(e, (FileNotFoundError, NotADirectoryError, PermissionError))


def _http_status(e: Exception) -> int | None:
    """Return the status that a server answered, from an exception of aiohttp, gcsfs or requests."""
    response = getattr(e, "response", None)
    found = (getattr(e, "status", None), getattr(e, "code", None))
    for status in (*found, getattr(response, "status_code", None)):
        if isinstance(status, int) and status >= 100:
            return status
    return None


def _explain(e: Exception) -> str:
    status = _http_status(e)
    if isinstance(e, (FileNotFoundError, NotADirectoryError)):
        return "no such file there"
    if status is not None:
        return f"the server answers {status} {getattr(e, 'message', '')}"
    return str(e) if isinstance(e, _Altered) else f"{type(e).__name__} {e}"
