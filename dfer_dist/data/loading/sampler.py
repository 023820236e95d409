"""The order of training clips: a pure function of (seed, epoch, index, global batch, weights).

The order is elastically deterministic, as MosaicML Streaming calls it: it does not depend on the
number of ranks, nodes, workers or restarts. An epoch shuffles the shards, concatenates them,
rotates the result by a random offset and cuts it into as many equal lanes as the global batch has
clips. Step k takes the k-th clip of every lane, and clips are shuffled within blocks of a lane.
Each rank reads a contiguous range of lanes, so 1, 2 and 4 ranks see the same global batches, and
resuming needs (epoch, step) and nothing else. At most (global batch - 1) clips are dropped in an
epoch, other ones each time. Planning takes memory and time proportional to the number of shards; a
block of a lane is shuffled only when it is reached. Epochs that take shares of classes or of sets
(:class:`QuotaPlan`) take memory and time proportional to the number of clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from dfer_dist.data.shards.index import Index, to_numpy
from dfer_dist.utils.errors import UserError


class SampleRef(NamedTuple):
    """A clip by ``shard`` (position in the index) and ``row`` (position in the shard).

    ``epoch`` keys the clip's augmentation.
    """

    shard: int
    row: int
    epoch: int


@dataclass(frozen=True)
class ClipSet:
    """The clips of a data set: shards of the index, all or only some of their rows.

    ``counts[i]`` is the number of clips of ``shards[i]``; ``rows[i]`` holds their rows in ascending
    order, or is None for all rows.
    """

    shards: tuple[int, ...]
    counts: tuple[int, ...]
    rows: tuple[np.ndarray | None, ...]

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, part: slice) -> ClipSet:
        """Return the clips of some of ``shards``."""
        return ClipSet(self.shards[part], self.counts[part], self.rows[part])

    @cached_property
    def _total(self) -> int:
        return sum(self.counts)

    def count_in(self, shards: Sequence[int]) -> int:
        """Return the number of clips in ``shards``."""
        return sum(n for shard, n in zip(self.shards, self.counts, strict=True) if shard in shards)

    def sample_ref(self, position: int, row: int, epoch: int) -> SampleRef:
        """Return the ``row``-th clip that is used of the shard at ``position`` in ``shards``."""
        chosen = self.rows[position]
        return SampleRef(self.shards[position], row if chosen is None else int(chosen[row]), epoch)


def join_clips(parts: Iterable[ClipSet]) -> ClipSet:
    """Return the clips of several sets of clips of one index, in their order."""
    shards, counts, rows = zip(*((c.shards, c.counts, c.rows) for c in parts), strict=True)
    return ClipSet(tuple(chain(*shards)), tuple(chain(*counts)), tuple(chain(*rows)))


def all_clips(index: Index, shards: Sequence[int]) -> ClipSet:
    """Return every clip of the given shards."""
    return ClipSet(
        tuple(shards), tuple(index.shards[i].clips for i in shards), (None,) * len(shards)
    )


def clip_keys(index: Index, clips: ClipSet) -> list[str]:
    """Return the keys of a set of clips, in the order of the index."""
    keys: list[str] = []
    for shard, rows in zip(clips.shards, clips.rows, strict=True):
        column = index.sidecar(shard)["key"]
        keys += (column if rows is None else column.take(pa.array(rows))).to_pylist()
    return keys


def train_val_split(
    index: Index, clips: ClipSet, fraction: float, seed: int
) -> tuple[ClipSet, ClipSet]:
    """Split clips into a training part and a stratified validation part.

    Of each class, ``fraction`` of the clips (at least one, never all) go to validation: those whose
    keys have the smallest keyed hash, so that the choice depends on the seed and the keys alone,
    not on how clips are distributed over shards. Clips without a majority all stay in training.

    Returns
    -------
    train, val : ClipSet

    Raises
    ------
    UserError
        If a class has a single clip, which cannot be in both parts.
    """
    by_label: dict[int, list[tuple[bytes, int, int]]] = {}
    used = {
        i: np.arange(count) if rows is None else rows
        for i, count, rows in zip(clips.shards, clips.counts, clips.rows, strict=True)
    }
    for i, rows in used.items():
        if i in index.ambiguous_shards:
            continue
        table = index.sidecar(i).select(["key", "label"]).to_pydict()
        for row in rows.tolist():
            digest = hashlib.blake2b(f"{seed}/{table['key'][row]}".encode(), digest_size=8)
            by_label.setdefault(table["label"][row], []).append((digest.digest(), i, row))
    val_rows: dict[int, list[int]] = {i: [] for i in used}
    for label, members in by_label.items():
        if len(members) < 2:
            raise UserError(
                f"class {index.classes[label]} has one training clip: "
                "selection=best_val needs two of each class"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        for _, i, row in sorted(members)[:count]:
            val_rows[i].append(row)
    val = [np.array(sorted(val_rows[i]), dtype=np.int64) for i in used]
    train = [np.setdiff1d(own, v) for own, v in zip(used.values(), val, strict=True)]
    train_set, val_set = (
        ClipSet(clips.shards, tuple(map(len, part)), tuple(part)) for part in (train, val)
    )
    return train_set, val_set


class _ShardOrder(NamedTuple):
    """The concatenation of an epoch's shuffled shards."""

    positions: np.ndarray  # of the shards in the ClipSet, shuffled
    ends: np.ndarray  # of the shards in the concatenation, clips
    offset: int  # by which the concatenation is rotated, clips


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of training over ``clips``.

    Parameters
    ----------
    clips : ClipSet
    seed : int
    epoch : int
    global_batch : int
        Clips in a step over all ranks, which is the number of lanes.
    block : int
        Steps of a lane that are shuffled among themselves: a larger block mixes clips of more
        shards and reads more shards at a time.

    Raises
    ------
    UserError
        If there are fewer clips than one global batch.
    """

    clips: ClipSet
    seed: int
    epoch: int
    global_batch: int
    block: int

    def __post_init__(self) -> None:
        if self.num_clips < self.global_batch:
            raise UserError(
                f"train.global_batch={self.global_batch}, but there are {self.num_clips} "
                "training clips: choose a smaller one"
            )

    def at(self, epoch: int) -> Self:
        """Return the plan of another epoch."""
        return replace(self, epoch=epoch)

    def lanes(self, ranks: range, world_size: int) -> range:
        """Return the lanes of consecutive ranks.

        Raises
        ------
        ValueError
            If the global batch is not divisible by ``world_size``: clips would be lost.
        """
        per_rank, rest = divmod(self.global_batch, world_size)
        if rest:
            raise ValueError(
                f"{self.global_batch} lanes for {world_size} ranks: {rest} would be lost"
            )
        return range(ranks.start * per_rank, ranks.stop * per_rank)

    @property
    def num_clips(self) -> int:
        """Clips of an epoch, of which the last incomplete global batch is dropped."""
        return len(self.clips)

    @property
    def steps(self) -> int:
        """Number of steps of the epoch, which is the length of a lane."""
        return self.num_clips // self.global_batch

    def sample_ref(self, step: int, lane: int) -> SampleRef:
        """Return the clip of lane ``lane`` (0 to B - 1) at step ``step`` (0 to ``steps`` - 1)."""
        order, (at,) = self._shard_order, self._clips_of_block(step, lane, 1)
        position, row = _locate(order.ends, int(at))
        return self.clips.sample_ref(int(order.positions[position]), row, self.epoch)

    def block_shards(self, step: int, lanes: range) -> list[int]:
        """Return the shards that ``lanes`` read from ``step`` to the end of its block.

        They come in the order in which they are first needed.
        """
        order = self._shard_order
        at = np.stack([self._clips_of_block(step, lane) for lane in lanes], axis=1)
        return [self.clips.shards[order.positions[i]] for i in _first_uses(order.ends, at)]

    @cached_property
    def _shard_order(self) -> _ShardOrder:
        rng = keyed_rng("ring", self.seed, self.epoch)
        positions = rng.permutation(len(self.clips.shards))
        ends = np.cumsum(np.asarray(self.clips.counts, dtype=np.int64)[positions])
        return _ShardOrder(positions, ends, int(rng.integers(len(self.clips))))

    def _clips_of_block(self, step: int, lane: int, count: int | None = None) -> np.ndarray:
        """Return a lane's clips from ``step`` to the end of its block, or ``count`` of them.

        They are positions in the concatenation of shards, int64.
        """
        number, done = divmod(step, self.block)
        start = step - done
        size = min(self.block, self.steps - start)
        shuffled = _shuffled_steps(self.seed, self.epoch, lane, number, size)[done:][:count]
        offset = lane * self.steps + start + self._shard_order.offset
        return (offset + shuffled.astype(np.int64)) % len(self.clips)


@dataclass(frozen=True)
class QuotaPlan(EpochPlan):
    """An epoch that takes a given number of clips of each group: of a class, or of a set.

    Each group is an endless stream, one random permutation of its clips after another, of which an
    epoch takes the next stretch: no clip comes a third time before all of its group have come
    twice. The number of the permutation takes the place of the epoch in a clip's augmentation: a
    repeated clip is augmented anew. Takes memory and time proportional to the number of clips.

    Parameters
    ----------
    groups : tuple of ndarray of int64
        Positions of each group's clips in the set, as of :func:`clips_by_class`.
    quotas : tuple of int
        Clips of each group in an epoch; the same of each, in an epoch of the same length, if empty.
    """

    groups: tuple[np.ndarray, ...] = ()
    quotas: tuple[int, ...] = ()

    @property
    def num_clips(self) -> int:
        """Clips of an epoch."""
        return sum(self.quotas) or len(self.clips)

    def sample_ref(self, step: int, lane: int) -> SampleRef:
        """Return the clip of a lane at a step; its ``epoch`` is the number of its permutation."""
        at, permutation = map(int, self._order[step * self.global_batch + lane])
        return self.clips.sample_ref(*_locate(self._ends, at), permutation)

    def block_shards(self, step: int, lanes: range) -> list[int]:
        """Return the shards as for the plain plan; clips of a group may be in any shard."""
        at = self._order[:, 0].reshape(-1, self.global_batch)
        at = at[step : (step // self.block + 1) * self.block]
        return [self.clips.shards[i] for i in _first_uses(self._ends, at[:, lanes])]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(np.asarray(self.clips.counts, dtype=np.int64))

    @cached_property
    def _order(self) -> np.ndarray:
        """Position in the set and number of the permutation, int64 [steps * B, 2], by step."""
        equal = -(-self.steps * self.global_batch // len(self.groups))
        quotas = self.quotas or (equal,) * len(self.groups)
        taken = []
        for group, (members, quota) in enumerate(zip(self.groups, quotas, strict=True)):
            stretch = np.arange(self.epoch * quota, (self.epoch + 1) * quota)
            numbers, inside = np.divmod(stretch, len(members))
            permutations = {
                n: keyed_rng("class", self.seed, group, n).permutation(members)
                for n in np.unique(numbers)
            }
            clips = [permutations[n][i] for n, i in zip(numbers, inside, strict=True)]
            taken.append(np.stack([np.array(clips, np.int64), numbers], axis=1))
        mixed = keyed_rng("balanced", self.seed, self.epoch).permutation(np.concatenate(taken))
        return mixed[: self.steps * self.global_batch]


def balanced_plan(plan: EpochPlan, by_class: Sequence[np.ndarray]) -> QuotaPlan:
    """Return epochs of the same length in which every class that has clips comes equally often."""
    return QuotaPlan(**vars(plan), groups=tuple(c for c in by_class if len(c)))


def mixture_plan(
    plan: EpochPlan, by_set: Sequence[np.ndarray], weights: Sequence[float]
) -> EpochPlan:
    """Return epochs with ``weight`` times as many clips of each set as it has, in turns.

    Weights of 1 leave the plan as it is.

    Parameters
    ----------
    plan : EpochPlan
        Over the clips of all sets.
    by_set : sequence of ndarray of int64
        Positions of each set's clips in ``plan.clips``.
    weights : sequence of float
        Of each set, above 0.
    """
    if all(weight == 1 for weight in weights):
        return plan
    quotas = [max(1, round(w * len(own))) for w, own in zip(weights, by_set, strict=True)]
    return QuotaPlan(**vars(plan), groups=tuple(by_set), quotas=tuple(quotas))


def clips_by_class(index: Index, clips: ClipSet) -> tuple[np.ndarray, ...]:
    """Return the positions of each class's clips in the set, int64 arrays, in label order.

    Reads the label column of every shard.
    """
    labels = [to_numpy(index.sidecar(i)["label"].combine_chunks()) for i in clips.shards]
    chosen = [
        own if rows is None else own[rows] for own, rows in zip(labels, clips.rows, strict=True)
    ]
    every = np.concatenate(chosen)
    return tuple(np.flatnonzero(every == c) for c in range(len(index.classes)))


def evaluation_batches(clips: ClipSet, batch: int) -> list[list[SampleRef]]:
    """Cut all clips, in the order of the index, into batches of ``batch`` clips.

    The last one may be shorter.
    """
    refs = [
        clips.sample_ref(p, row, 0) for p, count in enumerate(clips.counts) for row in range(count)
    ]
    return [refs[i : i + batch] for i in range(0, len(refs), batch)]


def keyed_rng(*key: object) -> np.random.Generator:
    """Return a generator whose stream depends on ``key`` alone, independent of those of others."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _locate(ends: np.ndarray, at: int) -> tuple[int, int]:
    """Return which of the shards that end at ``ends`` holds clip ``at``, and its row there."""
    shard = int(np.searchsorted(ends, at, side="right"))
    return shard, at - (int(ends[shard - 1]) if shard else 0)


def _first_uses(ends: np.ndarray, at: np.ndarray) -> list[int]:
    """Return the shards that hold clips ``at`` [steps, lanes], each once, by first use."""
    found, first = np.unique(np.searchsorted(ends, at.ravel(), side="right"), return_index=True)
    return found[np.argsort(first)].tolist()


@lru_cache(maxsize=8192)
def _shuffled_steps(seed: int, epoch: int, lane: int, block: int, size: int) -> np.ndarray:
    return keyed_rng("block", seed, epoch, lane, block).permutation(size).astype(np.int32)
