"""The tiny set with votes of ten annotators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.sources.records import ClipRecord


def votes_of(clip: int, label: int) -> tuple[int, ...]:
    """Return six votes for the label and four for others.

    Every tenth clip has two classes of five votes each, every thirteenth no votes.
    """
    if clip % 13 == 0:
        return ()
    votes = np.zeros(7, dtype=int)
    if clip % 10 == 9:
        votes[[label, (label + 2) % 7]] = 5
    else:
        votes[[label, (label + 1) % 7, (label + 2) % 7]] = 6, 3, 1
    return tuple(votes.tolist())


def voted_records(source: Path) -> list[ClipRecord]:
    """Return the clips of ``tiny_source`` with votes; those without a majority are ambiguous."""
    records = []
    for record in read_lists("dfew", source / "frames", source / "lists"):
        votes = votes_of(int(record.key), record.label)
        voted = replace(record, votes=votes)
        if votes and sorted(votes)[-1] == sorted(votes)[-2]:
            voted = replace(voted, split="ambiguous", label=int(np.argmax(votes)))
        records.append(voted)
    return records


def pack_with_votes(source: Path, out: Path) -> Index:
    """Pack these clips, at most five in a shard."""
    return pack(voted_records(source), "dfew", out, clips_per_shard=5, workers=1)
