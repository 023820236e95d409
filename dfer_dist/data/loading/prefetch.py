"""Shards of a server come into the cache before they are needed: the plan knows which the next steps read.

A batch's places carry the shards to have soon (:class:`BatchRequest`); the loader worker that gets them fetches those in threads of
its own. The order of clips never depends on what is in the cache.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from dfer_dist.data.loading.sampler import EpochPlan, SampleRef
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.store import Remote
from dfer_dist.utils.errors import UserError

_THREADS = 4  # downloads at a time
_AHEAD = 4  # shards that an evaluation, which reads one after the other, has fetched ahead


class BatchRequest(list[SampleRef]):
    """Places of one batch; ``ahead`` names the shards that this batch and later ones need, soonest first."""

    def __init__(self, places: Sequence[SampleRef], ahead: Sequence[int] = ()) -> None:
        super().__init__(places)
        self.ahead = tuple(ahead)


def training_ahead(plan: EpochPlan, step: int, lanes: range, epochs: int) -> list[int]:
    """Shards of the block that ``step`` lies in, then those of the block after it."""
    after = (step // plan.block + 1) * plan.block
    shards = plan.block_shards(step, lanes)
    if after < plan.steps:
        shards += plan.block_shards(after, lanes)
    elif plan.epoch + 1 < epochs:
        shards += plan.at(plan.epoch + 1).block_shards(0, lanes)
    return list(dict.fromkeys(shards))


def evaluation_asks(batches: Sequence[list[SampleRef]]) -> list[BatchRequest]:
    """Batches with the shards ahead, wherever one enters a shard."""
    order = list(dict.fromkeys(p.shard for places in batches for p in places))
    asks, entered = [], 0
    for places in batches:
        reach = max(
            (order.index(p.shard, max(entered - 1, 0)) + 1 for p in places), default=entered
        )
        asks.append(
            BatchRequest(places, order[entered : reach + _AHEAD] if reach > entered else ())
        )
        entered = reach
    return asks


def check_cache(index: Index, plan: EpochPlan, ranks_here: range, world: int) -> None:
    """Whether the cache holds what the ranks of this machine read at a time; otherwise shards would be fetched over and over.

    Raises
    ------
    UserError
        If it does not, or if its folder is named by a variable that is not set here.
    """
    if not isinstance(index.root, Remote):
        return
    _ = index.root.cache.folder
    own = plan.global_batch // world
    lanes = range(ranks_here.start * own, ranks_here.stop * own)
    blocks = (plan.block_shards(step, lanes) for step in range(0, plan.steps, plan.block))
    needed = max(sum(index.shards[i].bytes for i in shards) for shards in blocks)
    if needed > index.root.cache.limit:
        raise UserError(
            f"data.cache_gb={index.root.cache.limit / 1e9:g}: the {len(lanes)} lanes of this machine read {needed / 1e9:.3g} GB of shards "
            "at a time; choose a larger cache, a smaller data.block, or more machines"
        )


class Prefetcher:
    """Fetches shards of a remote set in threads of this process; of a local set it does nothing.

    Faults are left to whoever reads the shard: there they have a clip to name.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._todo: deque[int] = deque()
        self._lock = threading.Lock()
        self._running = 0

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these, as many of the first as this rank's share of the cache holds, instead of what is still to be fetched."""
        root = self.index.root
        if not shards or not isinstance(root, Remote):
            return
        buffer, chosen = root.cache.limit // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), []
        for shard in shards:
            buffer -= self.index.shards[shard].bytes
            if buffer < 0:
                break
            chosen.append(shard)
        with self._lock:
            self._todo = deque(chosen)
            fresh = max(0, min(_THREADS, len(chosen)) - self._running)
            self._running += fresh
        for _ in range(fresh):
            # daemons: a worker that is told to leave does not wait for a download
            threading.Thread(target=self._work, args=(root,), daemon=True).start()

    def _work(self, root: Remote) -> None:
        while True:
            with self._lock:
                if not self._todo:
                    self._running -= 1
                    return
                shard = self._todo.popleft()
            entry = self.index.shards[shard]
            with suppress(OSError, UserError):
                os.close(root.open(entry.file, entry.sha256, entry.bytes))
                self.index.sidecar(shard)

    def __reduce__(self) -> tuple[type, tuple[Index]]:
        return type(self), (self.index,)
