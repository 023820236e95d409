"""The report of a packed set: what was packed, from what, and every fault of a clip."""

from __future__ import annotations

import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np

from dfer_dist.data.faces.crop import FaceOptions
from dfer_dist.data.faces.tracking import HOG
from dfer_dist.data.shards.index import Index, LeftOut, Shard
from dfer_dist.data.sources.names import printable
from dfer_dist.data.sources.records import NO_SPLIT, ClipRecord, Fault
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.records import Record

REPORT = "pack_report.json"

# Version of the rules by which frames are shown. Raise it when the same files become other frames.
# Earlier versions of this program, which recorded none, did not turn JPEGs by their metadata.
_RULES = 2

# Kind of the fault of a clip in which no face was found.
NO_FACE = "no face"

# Why earlier versions left out folders of frames with --faces.
ONLY_FRAMES = "it has only frames: faces are detected in videos"


@dataclass(frozen=True)
class PackSettings:
    """Settings that change the bytes of a packed set.

    Attributes
    ----------
    clips_per_shard : int
        Maximum number of clips in a shard.
    resize : int or None
        Width and height of all frames, pixels.
    faces : bool
        Whether frames are crops of the face, with landmarks.
    max_bad_frames : float or None
        Percentage of a clip's frames that may be damaged; None for all of a folder's but one, and
        none of a video's.
    keep_uncropped : bool
        Whether clips without a face are kept as whole frames.
    detector : str
        One of :data:`~dfer_dist.data.faces.tracking.DETECTORS`.
    """

    clips_per_shard: int
    resize: int | None = None
    faces: bool = False
    max_bad_frames: float | None = None
    keep_uncropped: bool = False
    detector: str = HOG

    @classmethod
    def of(
        cls,
        clips_per_shard: int,
        resize: int | None,
        faces: bool | FaceOptions,
        max_bad_frames: float | None,
    ) -> PackSettings:
        """Return settings with the options for faces in fields of their own."""
        options = faces if isinstance(faces, FaceOptions) else FaceOptions()
        common = (clips_per_shard, resize, bool(faces), max_bad_frames)
        return cls(*common, **vars(options))

    @property
    def face_options(self) -> FaceOptions | None:
        """How faces are cropped, None for whole frames."""
        return FaceOptions(self.keep_uncropped, self.detector) if self.faces else None

    def __str__(self) -> str:
        """Return the settings as arguments of ``dfer pack``."""
        text = f"--clips-per-shard {self.clips_per_shard}"
        if self.resize:
            text += f" --resize {self.resize}"
        if self.faces:
            text += " --faces"
        if self.detector != HOG:
            text += f" --detector {self.detector}"
        if self.keep_uncropped:
            text += " --keep-uncropped"
        if self.max_bad_frames is not None:
            text += f" --max-bad-frames {self.max_bad_frames:g}"
        return text


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
    dropped_frames : int
        Damaged frames of packed clips that were left out.
    decoders : dict of str
        See :func:`decoder_versions`.
    unread : dict of int
        What looks like data and was not read, by kind, such as ``.wav files``.
    notes : list of str
        What was chosen among several possibilities, such as folders of frames.
    uncropped_clips : int
        Packed clips without a face: whole frames.
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
    dropped_frames: int = 0
    decoders: dict[str, str] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    uncropped_clips: int = 0


@dataclass(frozen=True)
class ShardResult(Record):
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
    problems : tuple of Problem
    dropped : int
        Damaged frames of packed clips that were left out.
    decoders : dict of str
        See :func:`decoder_versions`.
    unread : dict of int
        What is in the folders of its clips and was not read, by kind.
    """

    digest: str
    shard: Shard | None
    frames: int
    encoded: int
    problems: tuple[Problem, ...]
    dropped: int = 0
    decoders: dict[str, str] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)


@cache
def decoder_versions() -> dict[str, str]:
    """Return the version of each package that decodes images or videos, and of our own rules."""
    packages = ("av", "pillow", "simplejpeg")
    return {**{name: importlib.metadata.version(name) for name in packages}, "rules": str(_RULES)}


def make_report(
    index: Index,
    records: Sequence[ClipRecord],
    results: Sequence[ShardResult],
    settings: PackSettings,
    sources: str,
    unread: Mapping[str, int],
    notes: Sequence[str],
) -> PackReport:
    """Return the report of a set that was packed from records, with the results of its shards.

    What the folders of clips hold is added to ``unread``.
    """
    in_clips = sum((Counter(result.unread) for result in results), Counter(unread))
    problems = _all_problems(records, results)
    splits = {}
    for split in sorted({record.split for record in records}):
        histograms = [shard.histogram for shard in index.shards if shard.split == split]
        counts = np.sum(histograms or [(0,) * len(index.classes)], axis=0).tolist()
        splits[split] = SplitReport(
            listed=sum(record.split == split for record in records),
            clips=sum(counts),
            frames=sum(r.frames for r in results if r.shard and r.shard.split == split),
            problems=sum(problem.split == split for problem in problems),
            classes=dict(zip(index.classes, counts, strict=True)),
        )
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
        dropped_frames=sum(result.dropped for result in results),
        decoders=decoder_versions(),
        unread=dict(sorted(in_clips.items())),
        notes=list(notes),
        uncropped_clips=sum(p.kind == NO_FACE and not p.left_out for p in problems),
    )


def _all_problems(records: Sequence[ClipRecord], results: Sequence[ShardResult]) -> list[Problem]:
    """Return the problems of lists and clips in the order of the records."""
    found: dict[str, list[Problem]] = defaultdict(list)
    for problem in (problem for result in results for problem in result.problems):
        found[problem.clip].append(problem)
    return [p for r in records for p in (*list_problems(r, r.faults), *found[r.source])]


def list_left_out(
    records: Sequence[ClipRecord], results: Sequence[ShardResult]
) -> tuple[LeftOut, ...]:
    """Return the clips of a split that are not packed, with the first fault that is the reason."""
    lost: dict[str, LeftOut] = {}
    for p in _all_problems(records, results):
        if p.left_out and p.split != NO_SPLIT:
            lost.setdefault(p.clip, LeftOut(p.clip, p.split, p.kind))
    return tuple(lost.values())


def list_problems(record: ClipRecord, faults: Iterable[Fault]) -> list[Problem]:
    """Return the faults of a clip as they are reported."""
    return [
        Problem(record.source, record.split, fault.kind, printable(fault.reason), fault.left_out)
        for fault in faults
    ]


def check_strict(problems: Sequence[Problem]) -> None:
    """Check that there is no problem.

    Raises
    ------
    UserError
        With the first problem.
    """
    if problems:
        clip, reason = problems[0].clip, problems[0].reason
        raise UserError(f"clip {clip}: {reason} (omit --strict to report such faults)")
