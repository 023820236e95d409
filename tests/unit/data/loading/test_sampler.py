"""The order of clips: exact, even, and pinned."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.loading import sampler as plan_module
from dfer_dist.data.loading.prefetch import training_requests
from dfer_dist.data.loading.sampler import (
    ClipSet,
    EpochPlan,
    QuotaPlan,
    SampleRef,
    all_clips,
    clips_by_class,
    evaluation_batches,
    keyed_rng,
    mixture_plan,
    train_val_split,
)
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.utils.errors import UserError

# 103 clips in 9 shards; one shard is read in part and one not at all, as after train_val_split
UNEVEN = ClipSet(
    (4, 7, 8, 10, 11, 12, 20, 21, 22),
    (16, 1, 20, 12, 0, 17, 16, 5, 16),
    (None,) * 3 + (np.arange(12) * 2,) + (None,) * 5,
)


EVERY = {
    (s, r if s != 10 else 2 * r)
    for s, n in zip(UNEVEN.shards, UNEVEN.counts, strict=True)
    for r in range(n)
}


def epoch(
    seed: int = 0, number: int = 0, batch: int = 10, block: int = 4
) -> list[list[tuple[int, int]]]:
    """Clips by step and lane."""
    plan = EpochPlan(UNEVEN, seed, number, batch, block)
    places = [[plan.sample_ref(step, lane) for lane in range(batch)] for step in range(plan.steps)]
    assert all(p.epoch == number for step in places for p in step)
    return [[(p.shard, p.row) for p in step] for step in places]


@pytest.mark.parametrize("batch", [1, 2, 7, 10, 51, 52, 102, 103])
@pytest.mark.parametrize("block", [1, 3, 512])
def test_epoch_reads_clips_at_most_once_and_counts_dropped(batch: int, block: int) -> None:
    plan = EpochPlan(UNEVEN, 3, 2, batch, block)
    seen = [clip for step in epoch(3, 2, batch, block) for clip in step]
    assert len(seen) == len(set(seen)) == len(UNEVEN) - 103 % batch
    assert set(seen) <= EVERY and len(EVERY) == 103
    assert plan.steps == 103 // batch


def test_plan_is_a_pure_function_of_seed_and_epoch() -> None:
    first = epoch(seed=5, number=1)
    plan_module._shuffled_steps.cache_clear()
    backwards = EpochPlan(UNEVEN, 5, 1, 10, 4)
    for step in range(9, -1, -1):
        for lane in range(9, -1, -1):
            assert backwards.sample_ref(step, lane) == SampleRef(*first[step][lane], 1)
    flat = [
        [clip for step in epoch(*key) for clip in step] for key in ((5, 1), (5, 2), (6, 1), (1, 5))
    ]
    assert len({tuple(f) for f in flat}) == 4
    agreements = sum(a == b for a, b in zip(flat[0], flat[1], strict=True))
    assert agreements < 10  # of 100, where chance gives about one


def test_plan_order_is_pinned() -> None:
    """Finished runs must be repeatable with later versions: a change breaks all of them."""
    assert epoch(seed=0, number=0)[0][:6] == [(22, 1), (22, 14), (12, 1), (12, 12), (4, 5), (4, 15)]


def test_plan_drops_every_clip_about_equally_often() -> None:
    epochs = 600
    out: Counter[tuple[int, int]] = Counter()
    for number in range(epochs):
        missing = EVERY - {clip for step in epoch(0, number) for clip in step}
        assert len(missing) == 3
        out.update(missing)
    share = 3 / 103
    spread = (epochs * share * (1 - share)) ** 0.5
    assert max(abs(out[clip] - epochs * share) for clip in EVERY) < 4.5 * spread
    assert (
        0.6 < np.var([out[clip] for clip in EVERY]) / spread**2 < 1.6
    )  # as even as chance, no more and no less


def test_plan_mixes_clips_and_steps_over_epochs() -> None:
    steps: dict[tuple[int, int], list[int]] = {clip: [] for clip in EVERY}
    mates: dict[tuple[int, int], set[tuple[int, int]]] = {clip: set() for clip in EVERY}
    for number in range(200):
        for k, batch in enumerate(epoch(0, number)):
            for clip in batch:
                steps[clip].append(k)
                mates[clip] |= set(batch)
    assert (
        min(len(m) for m in mates.values()) > 85
    )  # adjacent clips of a shard meet at the seams of lanes only
    means = np.array([np.mean(s) for s in steps.values()])
    assert np.abs(means - 4.5).max() < 4.5 * (99 / 12) ** 0.5 / 190**0.5


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_training_requests_of_ranks_share_the_global_batch(world: int, micro: int) -> None:
    plan = EpochPlan(UNEVEN, 0, 0, 12, 5)
    expected = [
        [EpochPlan(UNEVEN, 0, e, 12, 5).sample_ref(s, lane) for lane in range(12)]
        for e in (1, 2)
        for s in range(8)
    ][3:]
    ranks = [
        list(training_requests(plan, plan.lanes(range(rank, rank + 1), world), micro, (1, 3), 3))
        for rank in range(world)
    ]
    each = -(-12 // world // micro)  # micro batches in a step; the last one may be short
    steps = [
        [p for rank in ranks for part in rank[k * each : (k + 1) * each] for p in part]
        for k in range(len(expected))
    ]
    assert steps == expected
    assert {len(rank) for rank in ranks} == {13 * each}


def test_lanes_refuse_ranks_that_do_not_divide_the_batch() -> None:
    plan = EpochPlan(UNEVEN, 0, 0, 12, 5)
    assert [plan.lanes(range(r, r + 1), 3) for r in (0, 2)] == [range(4), range(8, 12)]
    with pytest.raises(ValueError, match="12 lanes for 5 ranks: 2 would be lost"):
        plan.lanes(range(1), 5)


def test_plan_of_a_million_clips_is_fast_and_small() -> None:
    clips = ClipSet(tuple(range(10_000)), (100,) * 10_000, (None,) * 10_000)

    def first_steps() -> list[SampleRef]:
        plan_module._shuffled_steps.cache_clear()
        plan = EpochPlan(clips, 0, 0, 4096, 512)
        return [plan.sample_ref(step, lane) for step in range(2) for lane in range(4096)]

    start = time.process_time()
    assert len(set(first_steps())) == 8192
    assert time.process_time() - start < 1
    tracemalloc.start()
    kept = first_steps()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == 8192 and peak < 50e6


def test_plan_refuses_few_clips() -> None:
    with pytest.raises(UserError, match=r"train\.global_batch=104, but there are 103"):
        EpochPlan(UNEVEN, 0, 0, 104, 4)


def test_keyed_rng_depends_on_every_part_of_its_key() -> None:
    keys = [
        ("clip", 0, 1, "a"),
        ("clip", 1, 0, "a"),
        ("clip", 0, 1, "b"),
        ("ring", 0, 1, "a"),
        ("clip", 0, 1),
    ]
    drawn = [keyed_rng(*key).integers(2**62) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert keyed_rng(*keys[0]).integers(2**62) == drawn[0]


@pytest.mark.parametrize("batch", [1, 5, 48, 103, 200])
def test_evaluation_batches_have_each_clip_once_in_order(batch: int) -> None:
    batches = evaluation_batches(UNEVEN, batch)
    flat = [(p.shard, p.row) for b in batches for p in b]
    assert flat == sorted(EVERY)
    assert [len(b) for b in batches] == [batch] * (103 // batch) + [103 % batch] * (103 % batch > 0)


@pytest.fixture(scope="module")
def recut(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The clips of ``tiny_shards`` cut into one shard a fold."""
    records = read_lists("dfew", tiny_source / "frames", tiny_source / "lists")
    return pack(records, "dfew", tmp_path_factory.mktemp("recut"), 256, workers=1)


def chosen(index: Index, clips: ClipSet) -> dict[str, int]:
    """Labels by key."""
    tables = {i: index.sidecar(i).to_pydict() for i in clips.shards}
    places = [p for b in evaluation_batches(clips, 7) for p in b]
    rows = {tables[p.shard]["key"][p.row]: tables[p.shard]["label"][p.row] for p in places}
    assert len(rows) == len(places) == len(clips)
    return rows


def test_train_val_split_is_stratified_and_complete(tiny_shards: Index) -> None:
    shards = tiny_shards.train_shards(2)
    everything = chosen(tiny_shards, all_clips(tiny_shards, shards))
    assert len(everything) == 48
    totals = Counter(everything.values())
    for fraction in (0.01, 0.25, 0.99):
        train, val = (
            chosen(tiny_shards, part)
            for part in train_val_split(
                tiny_shards, all_clips(tiny_shards, shards), fraction, seed=0
            )
        )
        assert not train.keys() & val.keys() and train | val == everything
        wanted = {label: min(max(1, round(fraction * n)), n - 1) for label, n in totals.items()}
        assert Counter(val.values()) == wanted


def test_train_val_split_depends_on_seed_and_keys_only(tiny_shards: Index, recut: Index) -> None:
    assert len(recut.shards) == 5 < len(tiny_shards.shards)
    parts = [
        train_val_split(index, fold_clips(index, 1).train, 0.25, seed=1)[1]
        for index in (tiny_shards, recut, tiny_shards)
    ]
    first, other_cut, again = (
        chosen(i, p) for i, p in zip((tiny_shards, recut, tiny_shards), parts, strict=True)
    )
    assert first == other_cut == again
    assert first != chosen(
        tiny_shards, train_val_split(tiny_shards, fold_clips(tiny_shards, 1).train, 0.25, seed=2)[1]
    )
    backwards = all_clips(tiny_shards, tiny_shards.train_shards(1)[::-1])
    assert chosen(tiny_shards, train_val_split(tiny_shards, backwards, 0.25, seed=1)[1]) == first


def test_train_val_split_refuses_class_of_one_clip(recut: Index) -> None:
    with pytest.raises(UserError, match="class disgust has one training clip"):
        train_val_split(recut, all_clips(recut, [0]), 0.5, seed=0)


class TestBalanced:
    """Balanced sampling: seven classes of unequal size."""

    @pytest.fixture(scope="class")
    def plan(self, tiny_shards):
        clips = all_clips(tiny_shards, tiny_shards.train_shards(1))
        by_class = clips_by_class(tiny_shards, clips)
        # make it uneven: keep two clips of class 0
        return QuotaPlan(clips, 3, 0, 8, 512, (by_class[0][:2], *by_class[1:]))

    def test_clips_by_class_covers_all_clips(self, tiny_shards, plan):
        clips = plan.clips
        every = np.concatenate(clips_by_class(tiny_shards, clips))
        assert sorted(every) == list(range(len(clips)))

    def test_plan_reads_classes_equally_often(self, tiny_shards, plan):
        seen = Counter()
        for step in range(plan.steps):
            for lane in range(8):
                place = plan.sample_ref(step, lane)
                seen[tiny_shards.sidecar(place.shard)["label"][place.row].as_py()] += 1
        assert sum(seen.values()) == plan.steps * 8
        assert len(seen) == 7
        assert max(seen.values()) - min(seen.values()) <= 7

    def test_plan_repeats_no_clip_before_all_of_its_class(self, plan):
        members = len(plan.groups[2])
        chosen = []
        for epoch in range(6):
            order = plan.at(epoch)._order
            chosen += [tuple(row) for row in order if row[0] in plan.groups[2]]
        assert len(chosen) == len(set(chosen)), "a clip twice in one pass"
        times = Counter(at for at, _ in chosen)
        assert max(times.values()) - min(times.values()) <= 1 + 6 * 7 // members

    def test_plan_is_a_pure_function_of_seed_and_epoch(self, plan):
        again = QuotaPlan(plan.clips, 3, 0, 8, 512, plan.groups)
        assert [plan.sample_ref(1, i) for i in range(8)] == [
            again.sample_ref(1, i) for i in range(8)
        ]
        assert [plan.sample_ref(1, i) for i in range(8)] != [
            plan.at(1).sample_ref(1, i) for i in range(8)
        ]


class TestMixture:
    """Two sets: the first four shards of ``UNEVEN``, 49 clips, and the others, 54 clips."""

    BY_SET = (np.arange(49), np.arange(49, 103))
    FIRST = frozenset(UNEVEN.shards[:4])

    def mix(self, *weights: float) -> EpochPlan:
        return mixture_plan(EpochPlan(UNEVEN, 3, 0, 10, 4), self.BY_SET, weights)

    def read(self, plan: EpochPlan) -> list[SampleRef]:
        return [plan.sample_ref(step, lane) for step in range(plan.steps) for lane in range(10)]

    def test_weights_of_one_leave_the_plan(self) -> None:
        plan = EpochPlan(UNEVEN, 3, 0, 10, 4)
        assert mixture_plan(plan, self.BY_SET, (1.0, 1.0)) is plan

    @pytest.mark.parametrize(
        ("weights", "quotas"), [((1, 0.5), (49, 27)), ((0.25, 1), (12, 54)), ((2, 1), (98, 54))]
    )
    def test_epoch_takes_the_share_of_each_set(self, weights, quotas) -> None:
        plan = self.mix(*weights)
        assert (plan.num_clips, plan.steps) == (sum(quotas), sum(quotas) // 10)
        refs = self.read(plan)
        of_first = sum(ref.shard in self.FIRST for ref in refs)
        dropped = sum(quotas) % 10
        assert quotas[0] - dropped <= of_first <= quotas[0]
        assert quotas[1] - dropped <= len(refs) - of_first <= quotas[1]

    def test_clips_of_a_set_come_equally_often_over_epochs(self) -> None:
        # 51 and 49 clips an epoch: nothing is dropped
        plan = mixture_plan(EpochPlan(UNEVEN, 3, 0, 10, 4), self.BY_SET, (51 / 49, 49 / 54))
        assert plan.num_clips == 100
        refs = [ref for number in range(54) for ref in self.read(plan.at(number))]
        assert len(refs) == len(set(refs)), "a clip twice with the same augmentation"
        times = Counter((ref.shard, ref.row) for ref in refs)
        assert set(times) == EVERY
        for is_first in (True, False):
            counts = [n for (shard, _), n in times.items() if (shard in self.FIRST) == is_first]
            assert max(counts) - min(counts) <= 1

    def test_mixture_is_a_pure_function_of_seed_and_epoch(self) -> None:
        assert self.read(self.mix(1, 0.5)) == self.read(self.mix(1, 0.5))
        assert self.read(self.mix(1, 0.5).at(2)) == self.read(self.mix(1, 0.5).at(2))
        assert self.read(self.mix(1, 0.5)) != self.read(self.mix(1, 0.5).at(1))
        assert sorted(self.read(self.mix(1, 0.5)))[:9] != sorted(self.read(self.mix(1, 0.4)))[:9]

    def test_mixture_smaller_than_a_batch_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"train\.global_batch=10, but there are 8 training"):
            self.mix(0.1, 0.05)
