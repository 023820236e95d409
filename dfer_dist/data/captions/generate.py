"""Generation of descriptions of clips by a vision model, stored next to the shards."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.data.captions.endpoint import (
    DEFAULT_FIELDS,
    SYSTEM,
    USER,
    Endpoint,
    NoAnswer,
    Stopped,
)
from dfer_dist.data.captions.store import FILE, Source, Writer, clip_hashes, parse
from dfer_dist.data.loading.frame_sampling import sample_segments
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.store import is_remote
from dfer_dist.utils.errors import UserError

_MAX_FAILED_IN_A_ROW = 20  # clips, after which no more requests are sent

# why a clip has no description
_Error = NoAnswer | Stopped | DamagedClip


@dataclass(frozen=True)
class PendingClip:
    """A clip without a description: its position, key and hash, and the frames to be sent."""

    shard: int
    row: int
    key: str
    hash: str
    frames: tuple[int, ...]


@dataclass
class Outcome:
    """Counts of clips.

    Attributes
    ----------
    answered, cached, not_sent : int
        Answered now; answered before; left out after :attr:`Endpoint.stop` was set.
    failed : Counter
        By reason.
    examples : dict
        A key and a detail by reason.
    """

    answered: int = 0
    cached: int = 0
    not_sent: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    failed_in_a_row: int = 0

    def count(self, key: str, error: _Error | None) -> None:
        """Count a clip; ``error`` is why it has no description."""
        if error is None:
            self.answered += 1
            self.failed_in_a_row = 0
        elif isinstance(error, Stopped):
            self.not_sent += 1
        elif isinstance(error, DamagedClip):
            self._count_failure(key, "damaged clip", error.reason)
        else:
            self._count_failure(key, error.reason, error.detail)
            self.failed_in_a_row += 1

    def _count_failure(self, key: str, reason: str, detail: str) -> None:
        self.failed[reason] += 1
        self.examples.setdefault(reason, f"{key}: {detail}" if detail else key)


class _LocalReader(ClipReader):
    """Reader of a local folder without webdataset's opener, which imports torch."""

    def _open(self, shard: int) -> int:
        return os.open(self.index.path(shard), os.O_RDONLY)


def open_folder(location: str) -> Index:
    """Open the set in a local folder.

    Raises
    ------
    UserError
        For a URL, and as :func:`~dfer_dist.data.shards.index.load_index`.
    """
    if is_remote(location):
        raise UserError(
            f"{location}: descriptions are written next to the shards: give a local folder"
        )
    return load_index(Path(location))


def make_source(model: str, frames: int, fields: dict[str, Any]) -> Source:
    """Return what tells descriptions apart: everything in a request but the clip's frames.

    The bound on an answer's length does not count, since truncated answers are not stored.
    """
    bounds = ("max_tokens", "max_completion_tokens")
    body = {name: value for name, value in fields.items() if name not in bounds}
    prompt = {"frames": frames, "system": SYSTEM, "user": USER, "body": body}
    return Source({"kind": "endpoint", "name": model, "language": "en", **prompt})


def make_fields(more: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request except its messages; None in ``more`` removes a field."""
    return {name: value for name, value in {**DEFAULT_FIELDS, **more}.items() if value is not None}


def choose_clips(
    index: Index, source: Source, split: str | None, limit: int | None
) -> tuple[list[PendingClip], int]:
    """Return the clips without a description from ``source``, and the number of those with one.

    Clips are in the order of the index, at most ``limit``.

    Raises
    ------
    UserError
        For a split that the set does not have.
    """
    if split is not None and split not in index.splits:
        raise UserError(f"--split {split}: {index.root} has {', '.join(index.splits)}")
    assert isinstance(index.root, Path)
    file, hashes = index.root / FILE, clip_hashes(index)
    stored = parse(file.read_bytes(), str(file)).of(source) if file.is_file() else {}
    pending, cached = [], 0
    for i, entry in enumerate(index.shards):
        if split not in (None, entry.split):
            continue
        table = index.sidecar(i).select(["key", "frames"]).to_pydict()
        for row, (key, count) in enumerate(zip(table["key"], table["frames"], strict=True)):
            if hashes[key] in stored:
                cached += 1
                continue
            # each frame of a short clip once
            frames = dict.fromkeys(sample_segments(count, source.about["frames"]).tolist())
            pending.append(PendingClip(i, row, key, hashes[key], tuple(frames)))
    return pending[:limit], cached


def describe(
    index: Index,
    source: Source,
    endpoint: Endpoint,
    *,
    concurrency: int,
    split: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Generate the missing descriptions, several clips at a time.

    Each answer is on the disk before its clip counts. No more requests are sent after an error that
    every clip would meet (such as 401), or 20 failed clips in a row.

    Parameters
    ----------
    index : Index
        In a local folder.
    source : Source
    endpoint : Endpoint
    concurrency : int
        Clips at a time.
    split, limit
        As of :func:`choose_clips`.
    progress : callable, optional
        Called with the number of clips done and of all.

    Raises
    ------
    UserError
        If another process writes the descriptions of this set, or they were changed.
    OSError
        If an answer cannot be written.
    """
    assert isinstance(index.root, Path)
    with Writer(index.root) as writer:
        # under the writer's lock: no other process requests these
        clips, cached = choose_clips(index, source, split, limit)
        outcome = Outcome(cached=cached)
        worker = _Worker(index, source, endpoint, writer)
        # closed before the writer, also on an interrupt: pending answers are kept
        with closing(worker.describe_all(clips, concurrency)) as done:
            for number, (clip, error) in enumerate(done, 1):
                outcome.count(clip.key, error)
                if outcome.failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
                    endpoint.stop.set()
                if progress:
                    progress(number, len(clips))
    return outcome


class _Worker:
    """Describes clips in threads."""

    def __init__(self, index: Index, source: Source, endpoint: Endpoint, writer: Writer) -> None:
        self._source, self._endpoint, self._writer = source, endpoint, writer
        # a reader is not thread-safe
        self._reader, self._reader_lock = _LocalReader(index), threading.Lock()

    def describe_all(
        self, clips: list[PendingClip], concurrency: int
    ) -> Generator[tuple[PendingClip, _Error | None], None, None]:
        """Describe clips in threads; yield each with its error once it is done."""
        pool = ThreadPoolExecutor(concurrency)
        try:
            jobs = {pool.submit(self._describe, clip): clip for clip in clips}
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            self._endpoint.stop.set()
            # waits for requests that were sent, whose answers are kept
            pool.shutdown(cancel_futures=True)

    def _describe(self, clip: PendingClip) -> _Error | None:
        """Describe one clip; return why that failed."""
        if self._endpoint.stop.is_set():
            return Stopped()
        try:
            with self._reader_lock:
                jpegs = self._reader.jpegs(clip.shard, clip.row, lambda *_: np.array(clip.frames))
            text = self._endpoint.describe(jpegs)
        except (DamagedClip, Stopped) as e:
            return e
        except NoAnswer as e:
            if e.for_all:
                self._endpoint.stop.set()
            return e
        self._writer.add(self._source, [(clip.key, clip.hash, text)])
        return None
