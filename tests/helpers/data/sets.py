"""A second set of clips next to ``tiny_shards``, with the same keys and partly other classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists

#: Those of the second set: four of dfew's seven under names or in places of their own, and another.
OTHER_CLASSES = ("Angry", "contempt", "fear", "Happy", "sadness")


def pack_other(tiny_source: Path, out: Path, name: str = "other", one_fold: bool = False) -> Index:
    """Pack the clips of two fifths of each fold: ten of each class, keys as in ``tiny_shards``."""
    records = [
        replace(r, label=i % 5, split=("test" if r.split == "fold1" else "train"))
        if one_fold
        else replace(r, label=i % 5)
        for i, r in enumerate(read_lists("dfew", tiny_source / "frames", tiny_source / "lists"))
        if int(r.key) < 50
    ]
    return pack(records, name, out, clips_per_shard=4, workers=1, classes=OTHER_CLASSES)
