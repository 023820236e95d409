"""Descriptions written for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

from dfer_dist.data.captions.store import Source, clip_hashes, open_writer
from dfer_dist.data.loading.sampler import all_clips, clip_keys
from dfer_dist.data.shards.index import Index, load_index

MODEL = Source({"kind": "endpoint", "name": "m", "language": "en", "frames": 8})
RAW = "The brows of {} rise. The face is surprised."


def fill_descriptions(index: Index, source: Source = MODEL, text: str = RAW) -> dict[str, str]:
    """Describe every clip of a set, ``{}`` being its key; return the hashes of clips by key."""
    hashes = clip_hashes(index)
    with open_writer(index) as writer:
        writer.add(source, [(key, clip, text.format(key)) for key, clip in hashes.items()])
    return hashes


def train_keys(index: Index, fold: int) -> list[str]:
    """Return the keys of a fold's training clips."""
    return clip_keys(index, all_clips(index, index.train_shards(fold)))


def captioned_copy(shards: Index, folder: Path) -> Index:
    """Return a copy of ``shards`` in ``folder`` in which three of four clips have a description."""
    index = load_index(Path(shutil.copytree(shards.root, folder)))  # type: ignore[arg-type]
    texts = [(key, clip, f"The brows of {key} rise.") for key, clip in clip_hashes(index).items()]
    with open_writer(index) as writer:
        writer.add(MODEL, [text for i, text in enumerate(texts) if i % 4])
    return index
