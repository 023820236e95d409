"""Descriptions of clips in words, one file beside the shards: ``descriptions.jsonl``, which is only ever added to.

A line is a JSON object with a ``sha256`` over the rest of it. There are two kinds: ``{"source", "about"}`` says what a source is (a model
with its prompt, or an import); ``{"source", "key", "clip", "text"}`` is an answer as it came. ``source`` is the hash of ``about``, ``clip`` the
hash of the clip's frames: an answer counts only for that source and those frames, and of several the last. Label words are taken out when
a description is read (:mod:`dfer_dist.data.captions.label_leakage`): what is read is never older than the list of words.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from errno import ENOLCK, ENOSPC, ENOSYS, EOPNOTSUPP
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dfer_dist.data.captions.label_leakage import clean
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.store import FetchError, Remote
from dfer_dist.utils.errors import UserError

FILE = "descriptions.jsonl"
_VERSION = 1
_SHORT = 8  # hex digits that are enough to name a source


@dataclass(frozen=True)
class Source:
    """Where descriptions come from. ``about`` has at least ``name`` and ``language`` (en or zh); its hash tells sources apart."""

    about: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hex sha256."""
        return _digest(self.about)

    def __str__(self) -> str:
        return f"{self.hash[:_SHORT]} ({self.about['name']}, {self.about['language']})"


@dataclass
class CaptionSet:
    """What a file of descriptions holds: its sources by hash, and the texts of each, as they came, by the hash of the clip."""

    sources: dict[str, Source] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, source: Source) -> dict[str, str]:
        return self.texts.get(source.hash, {})


def descriptions(
    index: Index,
    keys: Iterable[str],
    fold: int,
    *,
    source: str | None = None,
    language: str = "en",
    testing: bool = False,
) -> dict[str, str]:
    """Descriptions of the clips ``keys``, by key, without label words; clips without one, or of whose nothing is left, are absent.

    Parameters
    ----------
    index : Index
        A set in a folder or at a server; the file lies beside its shards.
    keys : iterable of str
        Clips whose descriptions are wanted, such as :func:`clip_keys` of what is trained on.
    fold : int
        The fold that is tested, counted from 1.
    source : str, optional
        A source's name, or the first eight or more digits of its hash; needed where the file has several of the language.
    language : str
        en or zh.
    testing : bool
        Allow descriptions of the fold's test clips: for a test that says it uses them, never for training.

    Raises
    ------
    ValueError
        If ``keys`` has a test clip of the fold and ``testing`` is off, or a clip that the set does not have.
    UserError
        If there is no such file or source, or a line was changed.
    """
    wanted, hashes = set(keys), clip_hashes(index)
    if unexpected := wanted - hashes.keys():
        raise ValueError(f"{index.root} has no clip {min(unexpected)}")
    tested = wanted & {
        key for i in index.test_shards(fold) for key in index.sidecar(i)["key"].to_pylist()
    }
    if tested and not testing:
        raise ValueError(
            f"{len(tested)} clips, such as {min(tested)}, are tested in fold {fold}: their descriptions are not for training"
        )
    held = read(index)
    texts = held.of(_choose(held, f"{index.root}/{FILE}", source, language))
    found = {
        key: clean(texts[hashes[key]], index.classes)
        for key in sorted(wanted)
        if hashes[key] in texts
    }
    return {key: text for key, text in found.items() if text}


def find_source(index: Index, source: str | None = None, language: str = "en") -> Source:
    """The source that :func:`descriptions` would read.

    Raises
    ------
    UserError
        If there is no such file or source, or a line was changed.
    """
    return _choose(read(index), f"{index.root}/{FILE}", source, language)


def clip_keys(index: Index, clips: ClipSet) -> list[str]:
    """Keys of a set of clips, in the order of the index."""
    columns = [
        (index.sidecar(shard)["key"], rows)
        for shard, rows in zip(clips.shards, clips.rows, strict=True)
    ]
    return [
        key
        for column, rows in columns
        for key in (column if rows is None else column.take(pa.array(rows))).to_pylist()
    ]


def clip_hashes(index: Index) -> dict[str, str]:
    """For each clip's key the hex sha256 over the key and the CRC32 of each of its frames: with one changed frame it is another."""
    found = {}
    for i in range(len(index.shards)):
        table = index.sidecar(i)
        for key, crc32 in zip(table["key"].to_pylist(), table["crc32"].to_pylist(), strict=True):
            found[key] = hashlib.sha256(
                key.encode() + b"\0" + np.array(crc32, "<u4").tobytes()
            ).hexdigest()
    return found


def read(index: Index) -> CaptionSet:
    """All that is held for a set.

    Raises
    ------
    UserError
        If there is no file, or a line was changed.
    """
    try:
        data = (
            index.root.get(FILE)
            if isinstance(index.root, Remote)
            else (index.root / FILE).read_bytes()
        )
    except (FileNotFoundError, FetchError) as e:
        raise UserError(f"{index.root} has no {FILE}: dfer describe makes it ({e})") from e
    return parse(data, f"{index.root}/{FILE}")


def parse(data: bytes, file: str) -> CaptionSet:
    """What the bytes of a file of descriptions hold; a last line without its end is none.

    Raises
    ------
    UserError
        If a line was changed.
    """
    held = CaptionSet()
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            own = row.pop("sha256")
            if own != _digest(row) or row["version"] != _VERSION:
                raise ValueError
            if "about" in row:
                held.sources[row["source"]] = Source(row["about"])
            else:
                held.texts.setdefault(row["source"], {})[row["clip"]] = row["text"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            words = "was changed, or is of another program: remove that line, and dfer describe makes it again"
            raise UserError(f"{file}: line {number} {words}") from e
    return held


class Writer:
    """The file of descriptions of a set in a folder, open to be added to; of several processes by one at a time.

    ``held`` is what it had when it was opened. A line that a killed process left unfinished is cut off. Threads may share a writer.

    Raises
    ------
    UserError
        If another process is writing, or a line was changed.
    """

    def __init__(self, root: Path) -> None:
        path = root / FILE
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _lock(self._file)
            data = path.read_bytes()
            self.held = parse(data, str(path))
            os.ftruncate(self._file, data.rfind(b"\n") + 1)
        except BlockingIOError as e:
            os.close(self._file)
            raise UserError(f"{path} is being written by another dfer describe: wait for it") from e
        except BaseException:
            os.close(self._file)
            raise
        self._known = set(self.held.sources)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.close(self._file)
            self._file = (
                -1
            )  # a thread that comes late must not write to a file that got this number since

    def add(self, source: Source, rows: Iterable[tuple[str, str, str]]) -> None:
        """Add descriptions: keys, hashes of clips, texts. They are on the disk when this returns.

        Raises
        ------
        OSError
            If the disk is full or fails; the file is then as before.
        """
        with self._lock:
            about = (
                []
                if source.hash in self._known
                else [{"source": source.hash, "about": source.about}]
            )
            texts: list[dict[str, Any]] = [
                {"source": source.hash, "key": key, "clip": clip, "text": text}
                for key, clip, text in rows
            ]
            self._append([{"version": _VERSION, **row} for row in (*about, *texts)])
            self._known.add(source.hash)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        lines = "".join(
            json.dumps({**row, "sha256": _digest(row)}, ensure_ascii=False) + "\n" for row in rows
        ).encode()
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, lines) != len(lines):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, size)
            raise


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in (
            ENOLCK,
            ENOSYS,
            EOPNOTSUPP,
        ):  # a file system without locks: the person has to see to it
            raise


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _choose(held: CaptionSet, file: str, wanted: str | None, language: str) -> Source:
    fitting = [
        s for s in held.sources.values() if s.about["language"] == language and _is_meant(s, wanted)
    ]
    if len(fitting) != 1:
        have = "; ".join(map(str, held.sources.values())) or "none"
        which = f" named {wanted}" if wanted else ""
        raise UserError(
            f"{file} has {len(fitting)} sources{which} in '{language}', and one is wanted: choose with data.descriptions of {have}"
        )
    return fitting[0]


def _is_meant(source: Source, wanted: str | None) -> bool:
    by_hash = wanted is not None and len(wanted) >= _SHORT and source.hash.startswith(wanted)
    return wanted is None or by_hash or source.about["name"] == wanted
