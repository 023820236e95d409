"""An append-only file of JSON objects, one a line, that survives a kill at any time.

Each line has a ``sha256`` over the rest of it, so that a changed line is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOLCK, ENOSPC, ENOSYS, EOPNOTSUPP
from io import FileIO
from pathlib import Path
from typing import Any

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.locks import try_lock, unlock

_VERSION = 1
_NO_LOCKS = (ENOLCK, ENOSYS, EOPNOTSUPP)  # errors of a file system without locks

Row = dict[str, Any]


class Journal:
    """An open journal, from :func:`open_journal`. Threads may share it.

    Attributes
    ----------
    rows : list of dict
        Content of the file when it was opened.
    """

    def __init__(self, file: FileIO, rows: list[Row]) -> None:
        self.rows = rows
        self._file, self._lock = file, threading.Lock()

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows, durably.

        Raises
        ------
        OSError
            If the disk is full or fails; the file is then unchanged.
        """
        versioned = [{"version": _VERSION, **row} for row in rows]
        signed = [{**row, "sha256": digest(row)} for row in versioned]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in signed).encode()
        with self._lock:
            size = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                os.fsync(self._file)
            except BaseException:
                self._file.truncate(size)
                raise


@contextmanager
def open_journal(path: Path, command: str) -> Iterator[Journal]:
    """Open a journal to append to, for one process at a time; ``command`` writes it.

    A line that a killed process left unfinished is removed.

    Raises
    ------
    UserError
        If another process is writing, or a line was changed.
    """
    with path.open("ab+", buffering=0) as file:
        if not _lock_if_supported(file):
            raise UserError(f"{path} is being written by another {command}: wait for it")
        try:
            data = path.read_bytes()
            rows = parse_journal(data, str(path), command)
            file.truncate(data.rfind(b"\n") + 1)
            yield Journal(file, rows)
        finally:
            with suppress(OSError):
                unlock(file)


def parse_journal(data: bytes, file: str, command: str) -> list[Row]:
    """Return the rows in the bytes of a journal; an unterminated last line is ignored.

    Raises
    ------
    UserError
        If a line was changed.
    """
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            own = row.pop("sha256")
            if own != digest(row) or row["version"] != _VERSION:
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(
                f"{file}: line {number} was changed, or was written by another program: remove "
                f"that line, and {command} makes it again"
            ) from e
        rows.append(row)
    return rows


def digest(row: Row) -> str:
    """Return the hex sha256 of a JSON object."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _lock_if_supported(file: FileIO) -> bool:
    """Lock a file; return whether it was free. Without locks, the user has to run one at a time."""
    try:
        return try_lock(file)
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise
        return True
