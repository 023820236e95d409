"""Descriptions of clips, stored next to the shards in ``descriptions.jsonl``, a journal.

A line is a JSON object of two kinds: ``{"source", "about"}`` describes a source (a model with its
prompt, or an import); ``{"source", "key", "clip", "text"}`` is an answer as received. ``source`` is
the hash of ``about``, ``clip`` the hash of the clip's frames: an answer counts only for that source
and those frames, and of several the last one counts. Label words are removed when a description is
read (:mod:`dfer_dist.data.captions.label_leakage`), so that a change of the list of words takes
effect at once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.data.captions.label_leakage import clean
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.store import FetchError, Remote
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.journal import Journal, digest, open_journal, parse_journal

FILE = "descriptions.jsonl"
_COMMAND = "dfer describe"
_SHORT = 8  # hex digits that suffice to name a source


@dataclass(frozen=True)
class Source:
    """Where descriptions come from.

    ``about`` has at least ``name`` and ``language`` (en or zh); its hash identifies the source.
    """

    about: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hex sha256 of ``about``."""
        return digest(self.about)

    def is_named(self, name: str) -> bool:
        """Return whether ``name`` is its name, or the first eight or more digits of its hash."""
        by_hash = len(name) >= _SHORT and self.hash.startswith(name)
        return by_hash or self.about["name"] == name

    def __str__(self) -> str:
        return f"{self.hash[:_SHORT]} ({self.about['name']}, {self.about['language']})"


@dataclass
class CaptionSet:
    """The content of a file of descriptions.

    ``sources`` by their hash; ``texts``, as received, by source and the hash of the clip.
    """

    file: str
    sources: dict[str, Source] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, source: Source) -> dict[str, str]:
        """Return the texts of a source by the hash of the clip."""
        return self.texts.get(source.hash, {})

    def choose(self, name: str | None = None, language: str = "en") -> Source:
        """Return the only source of a language, or with a name or the beginning of a hash.

        Raises
        ------
        UserError
            If there is no such source, or more than one.
        """
        fitting = [
            source
            for source in self.sources.values()
            if source.about["language"] == language and (name is None or source.is_named(name))
        ]
        if len(fitting) != 1:
            have = "; ".join(map(str, self.sources.values())) or "none"
            which = f" named {name}" if name else ""
            raise UserError(
                f"{self.file} has {len(fitting)} sources{which} in '{language}', and one is "
                f"needed: choose with data.descriptions of {have}"
            )
        return fitting[0]


def descriptions(
    index: Index,
    keys: Iterable[str],
    fold: int,
    *,
    folds: FoldOverlay | None = None,
    source: str | None = None,
    language: str = "en",
    testing: bool = False,
) -> dict[str, str]:
    """Return the descriptions of clips by key, without label words.

    Clips without a description are left out, and those of whose description nothing is left.

    Parameters
    ----------
    index : Index
        In a folder or at a server.
    keys : iterable of str
        Clips, such as :func:`clip_keys` of the training clips.
    fold : int
        The test fold, counted from 1.
    folds : FoldOverlay, optional
        What the fold is one of, if not the set's own ones.
    source : str, optional
        A source's name, or the first eight or more digits of its hash; required where the file has
        several sources of the language.
    language : str
        en or zh.
    testing : bool
        Allow descriptions of the fold's test clips: never for training.

    Raises
    ------
    ValueError
        If ``keys`` has a test clip without ``testing``, or a clip that is not in the set.
    UserError
        If there is no such file or source, or a line was changed.
    """
    wanted, hashes = set(keys), clip_hashes(index)
    if unexpected := wanted - hashes.keys():
        raise ValueError(f"{index.root} has no clip {min(unexpected)}")
    tested = [] if testing else clip_keys(index, fold_clips(index, fold, folds).test)
    if leaked := wanted.intersection(tested):
        raise ValueError(f"{len(leaked)} clips, such as {min(leaked)}, are tested in fold {fold}")
    stored = read(index)
    texts = stored.of(stored.choose(source, language))
    found = [key for key in sorted(wanted) if hashes[key] in texts]
    cleaned = {key: clean(texts[hashes[key]], index.classes) for key in found}
    return {key: text for key, text in cleaned.items() if text}


def clip_hashes(index: Index) -> dict[str, str]:
    """Return the hash of each clip by key: hex sha256 over the key and the CRC32 of each frame."""
    hashes = {}
    for i in range(len(index.shards)):
        table = index.sidecar(i)
        for key, crc32 in zip(table["key"].to_pylist(), table["crc32"].to_pylist(), strict=True):
            content = key.encode() + b"\0" + np.array(crc32, "<u4").tobytes()
            hashes[key] = hashlib.sha256(content).hexdigest()
    return hashes


def read(index: Index) -> CaptionSet:
    """Read all descriptions of a set.

    Raises
    ------
    UserError
        If there is no file, or a line was changed.
    """
    try:
        if isinstance(index.root, Remote):
            data = index.root.get(FILE)
        else:
            data = (index.root / FILE).read_bytes()
    except (FileNotFoundError, FetchError) as e:
        raise UserError(f"{index.root} has no {FILE}: dfer describe makes it ({e})") from e
    return parse(data, f"{index.root}/{FILE}")


def parse(data: bytes, file: str) -> CaptionSet:
    """Parse the bytes of a file of descriptions; an unterminated last line is ignored.

    Raises
    ------
    UserError
        If a line was changed.
    """
    return _caption_set(parse_journal(data, file, _COMMAND), file)


def _caption_set(rows: Iterable[dict[str, Any]], file: str) -> CaptionSet:
    stored = CaptionSet(file)
    for row in rows:
        if "about" in row:
            stored.sources[row["source"]] = Source(row["about"])
        else:
            stored.texts.setdefault(row["source"], {})[row["clip"]] = row["text"]
    return stored


@contextmanager
def open_writer(index: Index) -> Iterator[Writer]:
    """Open the file of descriptions of a set in a folder, for one process at a time.

    A line that a killed process left unfinished is removed.

    Raises
    ------
    UserError
        If another process is writing, or a line was changed.
    """
    assert isinstance(index.root, Path)
    path = index.root / FILE
    with open_journal(path, _COMMAND) as journal:
        yield Writer(journal, _caption_set(journal.rows, str(path)))


class Writer:
    """The file of descriptions of a set, from :func:`open_writer`. Threads may share a writer.

    Attributes
    ----------
    stored : CaptionSet
        Content of the file when it was opened.
    """

    def __init__(self, journal: Journal, stored: CaptionSet) -> None:
        self.stored = stored
        self._journal, self._lock, self._known = journal, threading.Lock(), set(stored.sources)

    def add(self, source: Source, rows: Iterable[tuple[str, str, str]]) -> None:
        """Append descriptions, durably.

        Parameters
        ----------
        source : Source
        rows : iterable of (key, hash, text)
            Of each clip.

        Raises
        ------
        OSError
            If the disk is full or fails; the file is then unchanged.
        """
        lines: list[dict[str, Any]] = [
            {"source": source.hash, "key": key, "clip": clip, "text": text}
            for key, clip, text in rows
        ]
        with self._lock:
            if source.hash not in self._known:
                lines.insert(0, {"source": source.hash, "about": source.about})
            self._journal.append(lines)
            self._known.add(source.hash)
