"""The report of a packed set: what was packed, from what, and every fault of a clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from dfer_dist.data.shards.index import Index, Shard
from dfer_dist.data.sources.records import ClipRecord, Fault
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.records import Record

REPORT = "pack_report.json"


class ClipFault(NamedTuple):
    """A fault, with the name of its clip in the data set."""

    source: str
    fault: Fault


@dataclass(frozen=True)
class PackSettings:
    """Settings that change the bytes of a packed set.

    Attributes
    ----------
    clips_per_shard : int
    resize : int or None
        Size of all frames, pixels.
    faces : bool
        Whether frames are crops of the face.
    """

    clips_per_shard: int
    resize: int | None = None
    faces: bool = False

    def __str__(self) -> str:
        """Return the settings as arguments of ``dfer pack``."""
        text = f"--clips-per-shard {self.clips_per_shard}"
        if self.resize:
            text += f" --resize {self.resize}"
        return text + " --faces" if self.faces else text


@dataclass(frozen=True)
class SplitReport:
    """Counts of a split; ``classes`` counts packed clips by class."""

    listed: int
    clips: int
    frames: int
    problems: int
    classes: dict[str, int]


@dataclass(frozen=True)
class Problem:
    """A fault of a clip; ``left_out`` if the clip is not packed because of it."""

    clip: str
    split: str
    kind: str
    reason: str
    left_out: bool


@dataclass(frozen=True)
class PackReport(Record):
    """``pack_report.json``, next to the shards.

    Attributes
    ----------
    dataset : str
    index_hash : str
        Hash of the index of the set.
    listed, clips, frames : int
        Listed clips, packed clips, packed frames.
    encoded_frames : int
        Frames that were encoded instead of copied.
    splits : dict of SplitReport
        By name of the split.
    problems : list of Problem
        In the order of the lists.
    settings : PackSettings
    sources : str
        Hash of the lists and files that the set was packed from.
    """

    remedy: ClassVar[str] = "it is of another version or damaged: choose an empty --out"

    dataset: str
    index_hash: str
    listed: int
    clips: int
    frames: int
    encoded_frames: int
    splits: dict[str, SplitReport]
    problems: list[Problem]
    settings: PackSettings
    sources: str


@dataclass(frozen=True)
class ShardResult:
    """What became of the clips of a shard.

    Attributes
    ----------
    digest : str
        Hash of what the shard was packed from.
    shard : Shard or None
        None if no clip was left.
    frames : int
        Packed frames.
    encoded : int
        How many of these were encoded instead of copied.
    faults : tuple of ClipFault
    """

    digest: str
    shard: Shard | None
    frames: int
    encoded: int
    faults: tuple[ClipFault, ...]


def make_report(
    index: Index,
    records: Sequence[ClipRecord],
    results: Sequence[ShardResult],
    settings: PackSettings,
    sources: str,
) -> PackReport:
    """Return the report of a set that was packed from records, with the results of its shards."""
    problems = _list_problems(records, results)
    splits = {
        split: _report_split(split, index, records, results, problems)
        for split in sorted({record.split for record in records})
    }
    return PackReport(
        dataset=index.name,
        index_hash=index.hash,
        listed=len(records),
        clips=sum(split.clips for split in splits.values()),
        frames=sum(split.frames for split in splits.values()),
        encoded_frames=sum(result.encoded for result in results),
        splits=splits,
        problems=problems,
        settings=settings,
        sources=sources,
    )


def stop_at_fault(faults: Sequence[ClipFault]) -> None:
    """Raise the first fault, if any, as a UserError.

    Raises
    ------
    UserError
        If there is a fault.
    """
    if faults:
        source, fault = faults[0]
        raise UserError(f"clip {source}: {fault.reason} (omit --strict to report such faults)")


def _list_problems(records: Sequence[ClipRecord], results: Sequence[ShardResult]) -> list[Problem]:
    """Return the faults found in the lists and while packing, in the order of the records."""
    packing_faults: dict[str, list[Fault]] = defaultdict(list)
    for source, fault in (pair for result in results for pair in result.faults):
        packing_faults[source].append(fault)
    return [
        Problem(record.source, record.split, fault.kind, fault.reason, fault.left_out)
        for record in records
        for fault in (*record.faults, *packing_faults[record.source])
    ]


def _report_split(
    split: str,
    index: Index,
    records: Sequence[ClipRecord],
    results: Sequence[ShardResult],
    problems: Sequence[Problem],
) -> SplitReport:
    histograms = [shard.histogram for shard in index.shards if shard.split == split]
    counts = np.sum(histograms or [(0,) * len(index.classes)], axis=0).tolist()
    frames = [r.frames for r in results if r.shard is not None and r.shard.split == split]
    return SplitReport(
        listed=sum(record.split == split for record in records),
        clips=sum(counts),
        frames=sum(frames),
        problems=sum(problem.split == split for problem in problems),
        classes=dict(zip(index.classes, counts, strict=True)),
    )
