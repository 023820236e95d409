"""Atomic writes, JSON, CSV and hashes of files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfer_dist.utils.errors import UserError

# Of every JSON file in a run folder.
VERSION = 1


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends without an exception.

    It is in the same folder and has the same suffix. After an exception it is removed. An error of
    the disk, such as a full one, names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        fsync(temporary)
        # safetensors puts another file, which only its owner may read, in its place.
        temporary.chmod(mode)
        temporary.replace(path)
        fsync(path.parent)
    except OSError as e:
        # a write to an open file does not say to which
        e.filename = e.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Make the content of a file durable, or the renames inside a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, obj: dict[str, Any]) -> None:
    """Write a JSON object atomically, with its ``version`` first."""
    versioned = {"version": VERSION, **obj}
    text = json.dumps(versioned, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, f"{text}\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object written by :func:`write_json`.

    Raises
    ------
    UserError
        If the file is missing, damaged, or of another version.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e}") from e
    return parse_json(text, str(path))


def parse_json(text: bytes, source: str) -> dict[str, Any]:
    """Return the JSON object in ``text``; ``source`` names it in errors.

    Raises
    ------
    UserError
        If it is damaged or of another version.
    """
    try:
        obj = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{source} cannot be read: {e}") from e
    if not isinstance(obj, dict) or obj.get("version") != VERSION:
        raise UserError(f"{source} is not of version {VERSION}, which this program reads")
    return obj


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as comma-separated values."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
