"""Reading shards at a server, in this process and in others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.shards import store
from dfer_dist.data.shards.cache import Cache
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.store import Remote
from tests.helpers.data.web_server import Web


def retry_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits before retries, and forget what failed before."""
    monkeypatch.setattr(store, "_WAITS_S", (0.01, 0.02, 0.04, 0.08, 0.16))
    monkeypatch.setattr(store, "_failed", {})


def open_remote(web: Web, folder: Path, limit: int = 10**9) -> Index:
    """Open the set of a server with a cache in ``folder``."""
    return read_index(Remote(web.url, Cache(folder, limit)))


def every(_: str, frames: int) -> np.ndarray:
    """Choose all frames."""
    return np.arange(frames)


def same_clips(a: ClipReader, b: ClipReader, shard: int) -> bool:
    """Return whether two readers give the same clips of a shard."""
    pairs = [
        (r.read(shard, row, every) for r in (a, b)) for row in range(a.index.shards[shard].clips)
    ]
    return all(
        x.key == y.key and x.label == y.label and all(map(np.array_equal, x.frames, y.frames))
        for x, y in (tuple(p) for p in pairs)
    )


def batches(stream: Iterator[Batch]) -> list[tuple[list[str], bytes, list[int]]]:
    """Return keys, frames and labels of batches, none of which may have lost a clip."""
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
store._MAX_SIDECAR = 20_000  # of the size that sidecars have here
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


def start_readers(
    url: str, folder: Path, limit: int, times: int = 1, count: int = 2
) -> list[subprocess.Popen[str]]:
    """Start processes that wait for each other and then read the whole set at once."""
    command = [sys.executable, "-c", READER, url, str(folder), str(limit), str(times)]
    return release([start_reader(command) for _ in range(count)])


def start_reader(command: list[str]) -> subprocess.Popen[str]:
    """Start a process that runs ``READER``, which waits for :func:`release`."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def release(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Let processes read, once all of them are ready."""
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until a condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
