"""Descriptions written for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

from dfer_dist.data.captions.store import (
    Source,
    Writer,
    clip_hashes,
)
from dfer_dist.data.shards.index import Index, load_index

MODEL = Source({"kind": "endpoint", "name": "m", "language": "en", "frames": 8})


def described_copy(shards: Index, folder: Path) -> Index:
    """Return a copy of ``shards`` in ``folder`` in which three of four clips have a description."""
    index = load_index(Path(shutil.copytree(shards.root, folder)))  # type: ignore[arg-type]
    texts = [(key, clip, f"The brows of {key} rise.") for key, clip in clip_hashes(index).items()]
    with Writer(index.root) as writer:  # type: ignore[arg-type]
        writer.add(MODEL, [text for i, text in enumerate(texts) if i % 4])
    return index
