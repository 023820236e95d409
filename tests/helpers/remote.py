"""Reading batches of shards at a server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dfer_dist.data.loading.loader import Batch
from dfer_dist.data.shards.reader import ClipReader


def every(_: str, frames: int) -> np.ndarray:
    return np.arange(frames)


def same_clips(a: ClipReader, b: ClipReader, shard: int) -> bool:
    pairs = [
        (r.read(shard, row, every) for r in (a, b)) for row in range(a.index.shards[shard].clips)
    ]
    return all(
        x.key == y.key and x.label == y.label and all(map(np.array_equal, x.frames, y.frames))
        for x, y in (tuple(p) for p in pairs)
    )


def batches(stream: Iterator[Batch]) -> list[tuple[list[str], bytes, list[int]]]:
    out = []
    for b in stream:
        assert b.lost == []
        out.append((b.keys, b.frames.numpy().tobytes(), b.labels.tolist()))
    return out


READER = """
import sys
from pathlib import Path
import numpy as np
from dfer_dist.data.shards import store
from dfer_dist.data.shards.cache import Cache
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.index import read_index
from dfer_dist.data.shards.store import Remote
store._ROOM = 20_000  # of the size that sidecars have here
url, folder, limit, times = sys.argv[1:]
index = read_index(Remote(url, Cache(Path(folder), int(limit))))
reader = ClipReader(index)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(times)):
    for shard, entry in enumerate(index.shards):
        for row in range(entry.clips):
            reader.read(shard, row, lambda _, n: np.arange(n))
print("done")
"""
