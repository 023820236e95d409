"""Fetching shards of a remote set into the cache before they are needed.

The plan of an epoch knows which shards the next steps read. A batch's request carries them
(:class:`BatchRequest`), and the loader worker that gets it fetches them in threads of its own. The
order of clips never depends on what is in the cache.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate

from dfer_dist.data.loading.augmentation import SpatialView
from dfer_dist.data.loading.sampler import EpochPlan, SampleRef
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.store import Remote
from dfer_dist.utils.errors import UserError

_THREADS = 4  # downloads at a time
_AHEAD = 4  # shards that an evaluation, which reads them in order, fetches ahead


class BatchRequest(list[SampleRef]):
    """The clips of one batch.

    Parameters
    ----------
    refs : iterable of SampleRef
    ahead : iterable of int
        Shards that this batch and later ones need, soonest first.

    Attributes
    ----------
    view : SpatialView
        What a test sees of the clips.
    """

    view = SpatialView()

    def __init__(self, refs: Iterable[SampleRef], ahead: Iterable[int] = ()) -> None:
        super().__init__(refs)
        self.ahead = tuple(ahead)


def training_requests(
    plan: EpochPlan, lanes: range, micro_batch: int, start: tuple[int, int], epochs: int
) -> Iterator[BatchRequest]:
    """Yield a request for each micro batch of some lanes, from (epoch, step) to the end.

    One that enters a block carries the shards of it and of the next block.
    """
    first_epoch, first_step = start
    for epoch in range(first_epoch, epochs):
        plan = plan.at(epoch)
        for step in range(first_step, plan.steps):
            ahead = list[int]()
            if step == first_step or step % plan.block == 0:
                ahead = plan.block_shards(step, lanes)
                ahead += _next_block_shards(plan, step, lanes, epochs)
            for i in range(0, len(lanes), micro_batch):
                refs = (plan.sample_ref(step, lane) for lane in lanes[i : i + micro_batch])
                yield BatchRequest(refs, () if i else dict.fromkeys(ahead))
        first_step = 0


def _next_block_shards(plan: EpochPlan, step: int, lanes: range, epochs: int) -> list[int]:
    after = (step // plan.block + 1) * plan.block
    if after < plan.steps:
        return plan.block_shards(after, lanes)
    if plan.epoch + 1 < epochs:
        return plan.at(plan.epoch + 1).block_shards(0, lanes)
    return []


def evaluation_requests(
    batches: Sequence[list[SampleRef]], views: Sequence[SpatialView] = (SpatialView(),)
) -> Iterator[BatchRequest]:
    """Yield a request for each view of each batch, first all views of the first one.

    The first that enters a shard carries the shards ahead.
    """
    order = list(dict.fromkeys(ref.shard for refs in batches for ref in refs))
    entered = 0
    for refs in batches:
        ends = (order.index(ref.shard, max(entered - 1, 0)) + 1 for ref in refs)
        end = max(ends, default=entered)
        ahead = order[entered : end + _AHEAD] if end > entered else ()
        for i, view in enumerate(views):
            request = BatchRequest(refs, () if i else ahead)
            request.view = view
            yield request
        entered = end


def check_cache(index: Index, plan: EpochPlan, local_ranks: range, world_size: int) -> None:
    """Check that the cache holds what the ranks of this machine read at a time.

    Otherwise shards would be fetched over and over.

    Raises
    ------
    UserError
        If it does not, or if its folder is named by a variable that is not set here.
    """
    is_remote = [isinstance(index.store(i), Remote) for i in range(len(index.shards))]
    if not any(is_remote):
        return
    # all sets of a training share one folder and its limit
    store = index.store(is_remote.index(True))
    assert isinstance(store, Remote)
    cache = store.cache
    # looks up the variables in its name
    _ = cache.folder
    lanes = plan.lanes(local_ranks, world_size)
    blocks = (plan.block_shards(step, lanes) for step in range(0, plan.steps, plan.block))
    needed = max(sum(index.shards[i].bytes for i in own if is_remote[i]) for own in blocks)
    if needed > cache.limit:
        raise UserError(
            f"data.cache_gb={cache.limit / 1e9:g}: the {len(lanes)} lanes of this machine read "
            f"{needed / 1e9:.3g} GB of shards at a time; choose a larger cache, a smaller "
            "data.block, or more machines"
        )


class Prefetcher:
    """Fetches shards of a remote set in threads of this process; does nothing for a local set.

    Errors are left to whoever reads the shard, who has a clip to name.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._pending: deque[tuple[int, Remote]] = deque()
        self._lock = threading.Lock()
        self._running = 0

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these shards instead of those that are still pending.

        Of many, the first that fit into this rank's share of the cache.
        """
        remote = [(s, store) for s in shards if isinstance(store := self.index.store(s), Remote)]
        if not remote:
            return
        share = remote[0][1].cache.limit // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        totals = accumulate(self.index.shards[shard].bytes for shard, _ in remote)
        chosen = [own for own, total in zip(remote, totals, strict=True) if total <= share]
        with self._lock:
            self._pending = deque(chosen)
            new_threads = max(0, min(_THREADS, len(chosen)) - self._running)
            self._running += new_threads
        for _ in range(new_threads):
            # daemons: a worker that ends does not wait for a download
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._running -= 1
                    return
                shard, store = self._pending.popleft()
            entry = self.index.shards[shard]
            with suppress(OSError, UserError):
                os.close(store.open(entry.file, entry.sha256, entry.bytes))
                self.index.sidecar(shard)
