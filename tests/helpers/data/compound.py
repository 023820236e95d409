"""MAFW's compound form, made of tiny clips."""

from __future__ import annotations

from pathlib import Path

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.datasets import read_dataset
from tests.helpers.data.official_layouts import Clip, link_clips, write_mafw_lists, write_pool

COMPOUND_CLIPS = [
    Clip(f"{20_000 + i}", i % 43, f"fold{i // 43 % 5 + 1}", 1 + i % 3) for i in range(300)
]


def pack_compound(folder: Path) -> Index:
    """Write 300 clips of the 43 classes in five folds as MAFW's owner does, and pack them."""
    root = folder / "MAFW"
    write_mafw_lists(root, COMPOUND_CLIPS, "compound/no_caption")
    pool = write_pool(folder / "pool", 3, width=32, height=32)
    link_clips(root / "data" / "frames", COMPOUND_CLIPS, pool)
    listing = read_dataset("mafw-compound", root)
    return pack(listing.records, listing.name, folder / "shards", classes=listing.classes)
