"""Generation of descriptions of clips by a vision model, stored next to the shards."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.data.captions import endpoint as api
from dfer_dist.data.captions.endpoint import Endpoint, NoAnswer, Stopped
from dfer_dist.data.captions.store import FILE, Source, clip_hashes, open_writer, parse
from dfer_dist.data.loading.frame_sampling import sample_segments
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.store import is_remote
from dfer_dist.utils.errors import UserError

_MAX_FAILED_IN_A_ROW = 20  # clips, after which no more requests are sent

# why a clip has no answer
_Error = NoAnswer | Stopped | DamagedClip


@dataclass(frozen=True)
class PendingClip:
    """A clip without an answer: its position, key and hash, and the frames to be sent."""

    shard: int
    row: int
    key: str
    hash: str
    frames: tuple[int, ...]


# Requests the answer for a clip, given as JPEGs, and stores it. It may raise NoAnswer or Stopped.
Request = Callable[[PendingClip, list[bytes]], None]


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
    no_answer : list of str
        Keys of clips that were sent in vain.
    stopped_by : str
        Why no more requests were sent; empty if all were.
    """

    answered: int = 0
    cached: int = 0
    not_sent: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    no_answer: list[str] = field(default_factory=list)
    stopped_by: str = ""
    failed_in_a_row: int = 0

    def count(self, key: str, error: _Error | None) -> None:
        """Count a clip; ``error`` is why it has no answer."""
        if error is None:
            self.answered += 1
            self.failed_in_a_row = 0
        elif isinstance(error, Stopped):
            self.not_sent += 1
        else:
            reason, detail = "damaged clip", error.reason
            if isinstance(error, NoAnswer):
                reason, detail = error.reason, error.detail
                self.no_answer.append(key)
                self.failed_in_a_row += 1
                if error.for_all or self.failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
                    self.stopped_by = self.stopped_by or api.printable_line(str(error))
            self.failed[reason] += 1
            self.examples.setdefault(reason, f"{key}: {detail}" if detail else key)


def open_folder(location: str) -> Index:
    """Open the set in a local folder.

    Raises
    ------
    UserError
        For a URL, and as :func:`~dfer_dist.data.shards.index.load_index`.
    """
    if is_remote(location):
        raise UserError(f"{location}: give a local folder: descriptions are written to it")
    return load_index(Path(location))


def make_source(model: str, frames: int, fields: dict[str, Any]) -> Source:
    """Return what tells descriptions apart: everything in a request but the clip's frames.

    The bound on an answer's length does not count, since truncated answers are not stored.
    """
    body = without_bounds(fields)
    prompt = {"frames": frames, "system": api.SYSTEM, "user": api.USER, "body": body}
    return Source({"kind": "endpoint", "name": model, "language": "en", **prompt})


def without_bounds(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request without those that bound the answer's length."""
    bounds = ("max_tokens", "max_completion_tokens")
    return {name: value for name, value in fields.items() if name not in bounds}


def make_fields(more: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request except its messages; None in ``more`` removes a field."""
    fields = {**api.DEFAULT_FIELDS, **more}
    return {name: value for name, value in fields.items() if value is not None}


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

    Each answer is on the disk before its clip counts. :func:`request_clips` says when no more
    requests are sent.

    Parameters
    ----------
    index : Index
        In a local folder.
    source, endpoint
        What descriptions are stored as, and who writes them.
    concurrency, split, limit
        Clips at a time; the others as of :func:`choose_clips`.
    progress : callable, optional
        Called with the number of clips done and of all.

    Raises
    ------
    UserError
        If another process writes the descriptions of this set, or they were changed.
    OSError
        If an answer cannot be written.
    """
    with open_writer(index) as writer:
        clips, cached = choose_clips(index, source, split, limit)  # nobody else requests them

        def request(clip: PendingClip, jpegs: list[bytes]) -> None:
            writer.add(source, [(clip.key, clip.hash, endpoint.describe(jpegs))])

        outcome = request_clips(index, clips, request, endpoint, concurrency, progress)
    return replace(outcome, cached=cached)


def request_clips(
    index: Index,
    clips: Sequence[PendingClip],
    request: Request,
    endpoint: Endpoint,
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Request for each clip, several at a time.

    No more requests are sent after an error that every clip would meet (such as 401), or 20 failed
    clips in a row.

    Parameters
    ----------
    index : Index
    clips : sequence of PendingClip
    request : function
        Called in threads with a clip and its frames.
    endpoint : Endpoint
    concurrency : int
        Clips at a time.
    progress : callable, optional
        Called with the number of clips that were sent and of all.

    Raises
    ------
    OSError
        If an answer cannot be written.
    """
    outcome, worker = Outcome(), _Worker(ClipReader(index), request, endpoint)
    # Its threads do not keep the process alive: an interrupt does not wait for a server that hangs.
    with ThreadPool(concurrency) as pool:
        try:
            for key, error in pool.imap_unordered(worker.try_request, clips):
                outcome.count(key, error)
                if outcome.stopped_by:
                    endpoint.stop.set()
                if progress:
                    progress(outcome.answered + outcome.failed.total(), len(clips))
        finally:
            endpoint.stop.set()
    return outcome


@dataclass
class _Worker:
    """Asks for clips in threads."""

    reader: ClipReader
    request: Request
    endpoint: Endpoint
    # a reader is not thread-safe
    lock: threading.Lock = field(default_factory=threading.Lock)

    def try_request(self, clip: PendingClip) -> tuple[str, _Error | None]:
        """Request for one clip; return its key and why that failed."""
        return clip.key, self._try(clip)

    def _try(self, clip: PendingClip) -> _Error | None:
        if self.endpoint.stop.is_set():
            return Stopped()
        try:
            with self.lock:
                jpegs = self.reader.jpegs(clip.shard, clip.row, lambda *_: np.array(clip.frames))
            self.request(clip, jpegs)
        except (DamagedClip, Stopped) as e:
            return e
        except NoAnswer as e:
            if e.for_all:
                self.endpoint.stop.set()
            return e
        return None
