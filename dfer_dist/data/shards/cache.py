"""A folder on this machine's disk that holds whole files fetched from elsewhere, shared by ranks, loader workers and jobs.

Files are named by their sha256, so that two sets, or two versions of one, never mix. A file takes its name by a rename once
it is whole and checked; what a killed process left of one has another name, counts for nothing and is swept away. The least
recently opened files make room for new ones. One that somebody reads may be among them: its name goes, an open file stays
readable, and the disk has its space back when the last reader closes it. What else lies in the folder is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template

from dfer_dist.utils.errors import UserError

_POLL = 0.2  # seconds between looks for room while others download
_NAME = re.compile(r"[0-9a-f]{64}\.(tar|parquet)")
_PART = re.compile(rf"\.({_NAME.pattern})\.([0-9]+)\.part")
FULL = (errno.ENOSPC, errno.EDQUOT)
_MINE = (
    *FULL,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)  # faults of the folder, not of the net


def default_folder() -> Path:
    """``dfer-cache`` in the job's own scratch folder ($SLURM_TMPDIR), else one of this user in $TMPDIR or /tmp.

    Raises
    ------
    UserError
        If another user has made that folder, and so could put other frames there.
    """
    scratch = os.environ.get("SLURM_TMPDIR")
    folder = (
        Path(scratch) / "dfer-cache"
        if scratch
        else Path(tempfile.gettempdir()) / f"dfer-cache-{os.getuid()}"
    )
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: choose a folder with data.cache=FOLDER")
    return folder


def expand(folder: str) -> str:
    """``folder`` with this process's values of the variables in it (``$NAME`` or ``${NAME}``).

    Raises
    ------
    UserError
        If one is not set or empty.
    """
    try:
        return Template(folder).substitute(
            {name: value for name, value in os.environ.items() if value}
        )
    except KeyError as e:
        raise UserError(
            f"data.cache={folder}: ${e.args[0]} is not set here; choose another folder, or set it"
        ) from e
    except ValueError as e:
        raise UserError(f"data.cache={folder}: a variable is written as $NAME") from e


@dataclass(frozen=True)
class Cache:
    """``place`` with at most ``limit`` bytes, counting what is being downloaded at its full size. Variables in it are those of the reader."""

    place: Path
    limit: int

    @cached_property
    def folder(self) -> Path:
        """``place`` with its variables looked up; see :func:`expand`."""
        return Path(expand(str(self.place))).resolve()

    def open(self, name: str, size: int, fetch: Callable[[Path], None], exact: bool = True) -> int:
        """A file descriptor of ``name``, fetched first unless it is here. Of all who ask at once, one fetches.

        Parameters
        ----------
        name : str
            The file's name here: its sha256, and ``.tar`` or ``.parquet``.
        size : int
            Its bytes; if not ``exact``, the room to keep for it.
        fetch : callable
            Writes the file to the given path (into the file that is there: it may not be replaced) and checks it.

        Raises
        ------
        UserError
            If the folder cannot be used, or the file is larger than the whole cache.
        OSError
            What ``fetch`` raises.
        """
        with self._own_faults():
            while (file := self._enter(name, size, exact)) is None:
                self._bring(self.folder / name, size, fetch)
            with suppress(PermissionError):  # another user's file
                os.utime(
                    file
                )  # eviction goes by this time: reading alone does not move it on most mounts
            return file

    def _enter(self, name: str, size: int, exact: bool) -> int | None:
        with suppress(FileNotFoundError):
            file = os.open(self.folder / name, os.O_RDONLY)
            if not exact or os.fstat(file).st_size == size:
                return file
            os.close(file)  # the machine went down: a rename does not wait for the disk
            self.drop(name)
        return None

    def drop(self, name: str) -> None:
        """Forget a file, so that it is fetched again."""
        (self.folder / name).unlink(missing_ok=True)

    def _bring(self, path: Path, size: int, fetch: Callable[[Path], None]) -> None:
        if size > self.limit:
            raise UserError(
                f"data.cache_gb={self.limit / 1e9:g}: a single shard has {size / 1e9:.3g} GB, choose a larger cache"
            )
        part = self.folder / f".{path.name}.{size}.part"
        lock = self.folder / f".{path.name}.lock"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(lock):
            try:
                if not path.exists():  # else another process fetched it while we waited
                    self._make_room(part, size)
                    fetch(part)
                    part.rename(path)
            finally:
                part.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)

    @contextmanager
    def _own_faults(self) -> Iterator[None]:
        """A full disk or a folder that may not be written is no fault of the data."""
        try:
            yield
        except OSError as e:
            if e.errno not in _MINE:
                raise
            raise UserError(
                f"data.cache={self.folder}: {e.strerror} (choose another folder, or a smaller data.cache_gb)"
            ) from e

    def _make_room(self, part: Path, size: int) -> None:
        """Evict until ``size`` bytes fit, and make the empty ``part`` that stands for them. Waits while downloads of others fill the cache."""
        while True:
            with _locked(self.folder / ".lock"):
                part.unlink(missing_ok=True)  # of a killed process: the lock of its name is ours
                files, promised = self._survey()
                taken = promised + sum(bytes_ for _, bytes_, _ in files)
                for _, bytes_, name in sorted(files):
                    if taken + size <= self.limit:
                        break
                    self.drop(name)
                    taken -= bytes_
                if taken + size <= self.limit:
                    part.touch()
                    return
            time.sleep(_POLL)

    def _survey(self) -> tuple[list[tuple[int, int, str]], int]:
        """Files as (time of last use, bytes, name), and the bytes promised to downloads; sweeps away dead ones. Under the cache's lock."""
        files, promised = [], 0
        for entry in os.scandir(self.folder):
            name = entry.name
            if part := _PART.fullmatch(name):
                if _is_locked(self.folder / f".{part[1]}.lock"):
                    promised += int(part[3])
                else:  # no new one can take its place now: parts are made under the cache's lock
                    Path(entry.path).unlink(missing_ok=True)
            elif _NAME.fullmatch(name):
                with suppress(FileNotFoundError):  # dropped by a reader
                    found = entry.stat()
                    files.append((found.st_mtime_ns, found.st_size, name))
        return files, promised


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path``; whoever holds it may remove it. The kernel lets go when the process ends, however it ends."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _names(path, file):  # else its holder removed it while we waited
                yield
                return
        finally:
            os.close(file)


def _names(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
