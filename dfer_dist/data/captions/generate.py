"""Asks a vision model for descriptions of a packed set's clips, and keeps every answer beside the shards."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.data.captions.endpoint import BODY, SYSTEM, USER, Endpoint, NoAnswer, Stopped
from dfer_dist.data.captions.store import FILE, Source, Writer, clip_hashes, parse
from dfer_dist.data.loading.frame_sampling import sample_segments
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.store import is_remote
from dfer_dist.utils.errors import UserError

_IN_A_ROW = 20  # clips without an answer, after which the rest is not asked


@dataclass(frozen=True)
class Wanted:
    """A clip to be described: its place, key and hash, and the frames that are to be sent."""

    shard: int
    row: int
    key: str
    clip: str
    frames: tuple[int, ...]


@dataclass
class Outcome:
    """Counts of clips: answered now, answered before, not asked; and those that failed, by reason, with a key and a detail as an example."""

    answered: int = 0
    cached: int = 0
    unasked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


class _LocalReader(ClipReader):
    """Of a local folder, without webdataset's opener, which imports torch."""

    def _open(self, shard: int) -> int:
        return os.open(self.index.path(shard), os.O_RDONLY)


def open_folder(location: str) -> Index:
    """The set in a local folder.

    Raises
    ------
    UserError
        For a URL, and as :func:`~dfer_dist.data.shards.index.load_index`.
    """
    if is_remote(location):
        raise UserError(
            f"{location}: descriptions are written beside the shards: give a local folder"
        )
    return load_index(Path(location))


def make_source(model: str, frames: int, body: dict[str, Any]) -> Source:
    """What tells answers apart: all that a request has but the clip's frames, and but the bound on its length, since cut answers do not count."""
    fields = {
        name: value
        for name, value in body.items()
        if name not in ("max_tokens", "max_completion_tokens")
    }
    prompt = {"frames": frames, "system": SYSTEM, "user": USER, "body": fields}
    return Source({"kind": "endpoint", "name": model, "language": "en", **prompt})


def make_body(more: dict[str, Any]) -> dict[str, Any]:
    """Fields of each request beside the messages; what ``more`` has as None is left out."""
    return {name: value for name, value in {**BODY, **more}.items() if value is not None}


def choose_clips(
    index: Index, source: Source, split: str | None, limit: int | None
) -> tuple[list[Wanted], int]:
    """Clips without a description from ``source``, in the order of the index, at most ``limit``; and how many have one.

    Raises
    ------
    UserError
        For a split that the set does not have.
    """
    if split is not None and split not in index.splits:
        raise UserError(f"--split {split}: {index.root} has {', '.join(index.splits)}")
    assert isinstance(index.root, Path)
    file, hashes = index.root / FILE, clip_hashes(index)
    held = parse(file.read_bytes(), str(file)).of(source) if file.is_file() else {}
    wanted, cached = [], 0
    for i, entry in enumerate(index.shards):
        if split in (None, entry.split):
            table = index.sidecar(i).select(["key", "frames"]).to_pydict()
            for row, (key, frames) in enumerate(zip(table["key"], table["frames"], strict=True)):
                if hashes[key] in held:
                    cached += 1
                else:
                    chosen = dict.fromkeys(
                        sample_segments(frames, source.about["frames"]).tolist()
                    )  # a short clip's once each
                    wanted.append(Wanted(i, row, key, hashes[key], tuple(chosen)))
    return wanted[:limit], cached


def describe(
    index: Index,
    source: Source,
    endpoint: Endpoint,
    concurrency: int,
    split: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Ask for what is missing, several clips at a time; each answer is on the disk before its clip counts.

    After a fault that would meet every clip (such as 401), or 20 clips without an answer in a row, the rest is not asked.

    Raises
    ------
    UserError
        If another process writes the descriptions of this set, or they were changed.
    OSError
        If an answer cannot be written.
    """
    assert isinstance(index.root, Path)
    with Writer(index.root) as writer:
        clips, cached = choose_clips(
            index, source, split, limit
        )  # after the lock: nobody else asks for them now
        outcome, in_a_row = Outcome(cached=cached), 0
        work = _Work(index, source, endpoint, writer)
        pool = ThreadPoolExecutor(concurrency)
        try:
            jobs = {pool.submit(work.one, clip): clip for clip in clips}
            for number, job in enumerate(as_completed(jobs), 1):
                in_a_row = _count(outcome, jobs[job].key, job.result(), in_a_row)
                if in_a_row >= _IN_A_ROW:
                    endpoint.stop.set()
                if progress:
                    progress(number, len(jobs))
        finally:
            endpoint.stop.set()
            pool.shutdown(cancel_futures=True)  # answers that are on their way are kept
    return outcome


def _count(
    outcome: Outcome, key: str, fault: NoAnswer | Stopped | DamagedClip | None, in_a_row: int
) -> int:
    """Count a clip; returns how many in a row had no answer from the endpoint."""
    if fault is None:
        outcome.answered += 1
        return 0
    if isinstance(fault, Stopped):
        outcome.unasked += 1
        return in_a_row
    damaged = isinstance(fault, DamagedClip)
    reason, detail = (
        ("damaged clip", fault.reason)
        if isinstance(fault, DamagedClip)
        else (fault.reason, fault.detail)
    )
    outcome.failed[reason] += 1
    outcome.examples.setdefault(reason, f"{key}: {detail}" if detail else key)
    return in_a_row if damaged else in_a_row + 1


class _Work:
    """What each thread does."""

    def __init__(self, index: Index, source: Source, endpoint: Endpoint, writer: Writer) -> None:
        self._source, self._endpoint, self._writer = source, endpoint, writer
        self._reader, self._reading = (
            _LocalReader(index),
            threading.Lock(),
        )  # a reader is for one thread

    def one(self, clip: Wanted) -> NoAnswer | Stopped | DamagedClip | None:
        """Have one clip described; returns why it was not."""
        if self._endpoint.stop.is_set():
            return Stopped()
        try:
            with self._reading:
                jpegs = self._reader.jpegs(clip.shard, clip.row, lambda *_: np.array(clip.frames))
            text = self._endpoint.ask(jpegs)
        except (DamagedClip, Stopped) as e:
            return e
        except NoAnswer as e:
            if e.for_all:
                self._endpoint.stop.set()
            return e
        self._writer.add(self._source, [(clip.key, clip.clip, text)])
        return None
