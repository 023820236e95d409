"""Which shards a batch's request carries."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.prefetch import (
    Prefetcher,
    check_cache,
    evaluation_requests,
    training_requests,
)
from dfer_dist.data.loading.sampler import EpochPlan, QuotaPlan, all_clips, clips_by_class
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import open_sets
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.utils.errors import UserError
from tests.helpers.data.sets import pack_other


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("batch", "block"), [(8, 2), (8, 512), (1, 7), (48, 1)])
def test_block_shards_are_in_order_of_first_use(
    tiny_shards: Index, balanced: bool, batch: int, block: int
) -> None:
    clips = all_clips(tiny_shards, tiny_shards.train_shards(2))
    plan = EpochPlan(clips, 3, 1, batch, block)
    if balanced:
        plan = QuotaPlan(clips, 3, 1, batch, block, clips_by_class(tiny_shards, clips))
    for lanes in (range(batch), range(batch // 2, batch)):
        for step in range(plan.steps):
            rest = range(step, min((step // block + 1) * block, plan.steps))
            needed = dict.fromkeys(plan.sample_ref(s, lane).shard for s in rest for lane in lanes)
            assert plan.block_shards(step, lanes) == list(needed)


def test_requests_carry_shards_of_this_and_the_next_block(tiny_shards: Index) -> None:
    plan = EpochPlan(all_clips(tiny_shards, tiny_shards.train_shards(2)), 3, 0, 8, 2)
    asks = list(training_requests(plan, plan.lanes(range(1, 2), 2), 2, (0, 1), 2))
    carried = [(i, set(a.ahead)) for i, a in enumerate(asks) if a.ahead]
    lanes, steps = range(4, 8), [(0, 1), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]
    shards = [set(plan.at(e).block_shards(s, lanes)) for e, s in steps]
    assert carried == [
        (2 * (e * 6 + s - 1), a | b)
        for (e, s), a, b in zip(steps, shards, [*shards[1:], set()], strict=True)
    ]
    walk = evaluation_requests(
        [[plan.sample_ref(0, 0)], [plan.sample_ref(0, 0)], [], [plan.sample_ref(0, 7)]]
    )
    first, last = plan.sample_ref(0, 0).shard, plan.sample_ref(0, 7).shard
    assert [a.ahead for a in walk] == [(first, last), (), (), (last,)]


def test_shards_of_each_set_come_from_its_own_place(
    tiny_shards: Index, tiny_source: Path, tmp_path: Path
) -> None:
    """Of a local set and one that is copied: the latter's are fetched, and count for the cache."""
    other = pack_other(tiny_source, tmp_path / "other")
    locations = [str(tiny_shards.root), other.root.as_uri()]
    data = DataConfig(shards=locations, cache=str(tmp_path / "cache"), cache_gb=0.05)
    joint = open_sets(data)
    start, cached = len(tiny_shards.shards), {f"{other.shards[2].sha256}.tar"}
    Prefetcher(joint).prefetch([0, 3, start + 2])
    deadline = time.monotonic() + 30
    while not cached <= {file.name for file in tmp_path.glob("cache/*.tar")}:
        assert time.monotonic() < deadline, "not fetched"
        time.sleep(0.01)
    assert {file.name for file in tmp_path.glob("cache/*.tar")} == cached
    plan = EpochPlan(all_clips(joint, range(len(joint.shards))), 0, 0, 8, 512)
    check_cache(joint, plan, range(1), 1)
    size = sum(shard.bytes for shard in other.shards) / 1e9
    small = open_sets(replace(data, cache_gb=size / 2))
    with pytest.raises(UserError, match="GB of shards at a time; choose a larger cache"):
        check_cache(small, plan, range(1), 1)
    assert ClipReader(small).read(start + 2, 0, lambda *_: np.zeros(1, int)).frames.shape[0] == 1
