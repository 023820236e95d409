"""A folder on a local disk that caches whole files of a server, shared by ranks, workers and jobs.

Files are named by their sha256, so that two sets, or two versions of one, never mix. A file gets
its name by a rename once it is complete and checked; the partial file of a killed process has
another name, is never read and is removed. The least recently opened files are evicted for new
ones. A file may be evicted while it is read: its name goes, the open file stays readable, and its
space is freed when the last reader closes it. Other files in the folder are not touched.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.locks import file_lock, is_locked

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_S = 0.2  # between checks for space while other downloads fill the cache
_NAME = re.compile(r"[0-9a-f]{64}\.(tar|parquet)")
_PART = re.compile(rf"\.(?P<name>{_NAME.pattern})\.(?P<size>[0-9]+)\.part")


def default_folder() -> Path:
    """Return ``dfer-cache`` in the job's scratch folder ($SLURM_TMPDIR), $TMPDIR or /tmp.

    In the latter two it is named after the user.

    Raises
    ------
    UserError
        If another user made that folder, and so could put other frames there.
    """
    folder = Path(tempfile.gettempdir()) / f"dfer-cache-{os.getuid()}"
    if scratch := os.environ.get("SLURM_TMPDIR"):
        folder = Path(scratch) / "dfer-cache"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: choose a folder with data.cache=FOLDER")
    return folder


def expand_variables(folder: str) -> str:
    """Return ``folder`` with the values of variables in it (``$NAME`` or ``${NAME}``).

    Raises
    ------
    UserError
        If one is not set or empty.
    """
    values = {name: value for name, value in os.environ.items() if value}
    try:
        return Template(folder).substitute(values)
    except KeyError as e:
        raise UserError(
            f"data.cache={folder}: ${e.args[0]} is not set here; choose another folder, or set it"
        ) from e
    except ValueError as e:
        raise UserError(f"data.cache={folder}: a variable is written as $NAME") from e


@dataclass(frozen=True)
class Cache:
    """A cache in one folder.

    Parameters
    ----------
    location : Path
        The folder; variables in its name are expanded by the process that reads.
    limit : int
        Most bytes, downloads counted at their full size.
    """

    location: Path
    limit: int

    @cached_property
    def folder(self) -> Path:
        """The folder with variables expanded; see :func:`expand_variables`."""
        return Path(expand_variables(str(self.location))).resolve()

    def open(self, name: str, size: int, fetch: Callable[[Path], None], exact: bool = True) -> int:
        """Open a cached file and return its descriptor; fetch it first if it is not cached.

        Of several threads and processes that open it at the same time, one fetches.

        Parameters
        ----------
        name : str
            The file's name in the cache: its sha256, and ``.tar`` or ``.parquet``.
        size : int
            Its bytes; an upper bound if not ``exact``.
        fetch : callable
            Writes the file to the given path (into the existing file, which may not be replaced)
            and checks it.

        Raises
        ------
        UserError
            If the folder cannot be used, or the file is larger than the whole cache.
        OSError
            What ``fetch`` raises.
        """
        try:
            while (file := self._open_cached(name, size, exact)) is None:
                self._fetch(self.folder / name, size, fetch)
            # Eviction uses this time, which most mounts do not update on reads. The file may be
            # another user's.
            with suppress(PermissionError):
                os.utime(file)
        except OSError as e:
            refused = isinstance(e, (PermissionError, NotADirectoryError, FileExistsError))
            if not refused and e.errno not in (*DISK_FULL, errno.EROFS):
                # an error of the network
                raise
            raise UserError(
                f"data.cache={self.folder}: {e.strerror} (choose another folder, or a smaller "
                "data.cache_gb)"
            ) from e
        return file

    def drop(self, name: str) -> None:
        """Remove a file, so that it is fetched again."""
        (self.folder / name).unlink(missing_ok=True)

    def _open_cached(self, name: str, size: int, exact: bool) -> int | None:
        with suppress(FileNotFoundError):
            file = os.open(self.folder / name, os.O_RDONLY)
            if not exact or os.fstat(file).st_size == size:
                return file
            # truncated by a crash of the machine: a rename does not wait for the disk
            os.close(file)
            self.drop(name)
        return None

    def _fetch(self, path: Path, size: int, fetch: Callable[[Path], None]) -> None:
        if size > self.limit:
            raise UserError(
                f"data.cache_gb={self.limit / 1e9:g}: a single shard has {size / 1e9:.3g} GB, "
                "choose a larger cache"
            )
        part = self.folder / f".{path.name}.{size}.part"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(self._lock_of(path.name)):
            try:
                # another process may have fetched it while this one waited
                if not path.exists():
                    self._reserve(part, size)
                    fetch(part)
                    part.rename(path)
            finally:
                part.unlink(missing_ok=True)

    def _lock_of(self, name: str) -> Path:
        return self.folder / f".{name}.lock"

    def _reserve(self, part: Path, size: int) -> None:
        """Evict files until ``size`` bytes fit; create the empty ``part`` that reserves them.

        Waits while other downloads fill the cache.
        """
        while True:
            with file_lock(self.folder / ".lock"):
                # left by a killed process: this one holds the lock of its name
                part.unlink(missing_ok=True)
                if self._evict(size):
                    part.touch()
                    return
            time.sleep(_POLL_S)

    def _evict(self, size: int) -> bool:
        """Evict files until ``size`` bytes fit; return whether they do.

        Downloads count at their full size; files of dead ones are removed. The caller holds the
        cache's lock, under which partial files are created.
        """
        used, cached = 0, []
        for file in os.scandir(self.folder):
            if part := _PART.fullmatch(file.name):
                if is_locked(self._lock_of(part["name"])):
                    used += int(part["size"])
                else:
                    Path(file.path).unlink(missing_ok=True)
            elif _NAME.fullmatch(file.name):
                # a reader may drop it in between
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    used += stat.st_size
                    cached.append((stat.st_mtime_ns, stat.st_size, file.name))
        for _, freed, name in sorted(cached):
            if used + size <= self.limit:
                break
            self.drop(name)
            used -= freed
        return used + size <= self.limit
