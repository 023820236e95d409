"""The order of clips as a pure function of (seed, epoch, index, global batch).

The global batch of B clips is B lanes. An epoch permutes the shards, lays them end to end as one ring, turns the ring by a
random amount, cuts it into B equal lanes, and shuffles within blocks of each lane; step k takes place k of every lane.
Nothing here knows of ranks, workers or restarts, so none of them can change the order. At most B - 1 clips sit out an
epoch, other ones each time. Planning costs O(shards) memory and time; a lane's block is shuffled only when it is reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

import numpy as np

from dfer_dist.data.shards.index import Index
from dfer_dist.utils.errors import UserError


class SampleRef(NamedTuple):
    """A clip by shard (position in the index) and row (position in the shard), with the epoch that asks for it."""

    shard: int
    row: int
    epoch: int


@dataclass(frozen=True)
class ClipSet:
    """Clips that one pass reads: shards of the index, whole or only some of their rows.

    ``rows[i]`` holds the rows of ``shards[i]`` in rising order, or is None for all of them.
    """

    shards: tuple[int, ...]
    counts: tuple[int, ...]
    rows: tuple[np.ndarray | None, ...]

    def __len__(self) -> int:
        return self._total

    @cached_property
    def _total(self) -> int:  # asked for with every place
        return sum(self.counts)

    def place(self, position: int, row: int, epoch: int) -> SampleRef:
        chosen = self.rows[position]
        return SampleRef(self.shards[position], row if chosen is None else int(chosen[row]), epoch)


def all_clips(index: Index, shards: Sequence[int]) -> ClipSet:
    """Every clip of the given shards."""
    return ClipSet(
        tuple(shards), tuple(index.shards[i].clips for i in shards), (None,) * len(shards)
    )


def train_val_split(
    index: Index, shards: Sequence[int], fraction: float, seed: int
) -> tuple[ClipSet, ClipSet]:
    """Split shards into a training part and a stratified validation part.

    Of every class, ``fraction`` of the clips (at least one, never all of them) go to validation: those whose keys have the
    smallest keyed hash, so that the choice depends on the seed and the keys alone, not on how shards were cut.

    Returns
    -------
    train, val : ClipSet

    Raises
    ------
    UserError
        If a class has a single clip, which cannot be in both parts.
    """
    by_label: dict[int, list[tuple[bytes, int, int]]] = {}
    for i in shards:
        table = index.sidecar(i).select(["key", "label"]).to_pydict()
        for row, (key, label) in enumerate(zip(table["key"], table["label"], strict=True)):
            digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
            by_label.setdefault(label, []).append((digest, i, row))
    held: dict[int, list[int]] = {i: [] for i in shards}
    for label, clips in by_label.items():
        if len(clips) < 2:
            raise UserError(
                f"class {index.classes[label]} has one training clip: selection=best_val needs two of each class"
            )
        for _, i, row in sorted(clips)[: min(max(1, round(fraction * len(clips))), len(clips) - 1)]:
            held[i].append(row)
    val = [np.array(sorted(held[i]), dtype=np.int64) for i in shards]
    train = [
        np.setdiff1d(np.arange(index.shards[i].clips), v) for i, v in zip(shards, val, strict=True)
    ]
    train_set, val_set = (
        ClipSet(tuple(shards), tuple(map(len, part)), tuple(part)) for part in (train, val)
    )
    return train_set, val_set


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of training over ``clips`` in global batches of ``global_batch`` clips.

    Raises
    ------
    UserError
        When built with fewer clips than one global batch.
    """

    clips: ClipSet
    seed: int
    epoch: int
    global_batch: int
    block: int

    def __post_init__(self) -> None:
        if len(self.clips) < self.global_batch:
            raise UserError(
                f"train.global_batch={self.global_batch}, but there are {len(self.clips)} training clips: choose a smaller one"
            )

    def at(self, epoch: int) -> Self:
        """The plan of another epoch."""
        return replace(self, epoch=epoch)

    @property
    def steps(self) -> int:
        """Steps of the epoch, which is the length of a lane."""
        return len(self.clips) // self.global_batch

    @property
    def num_dropped(self) -> int:
        """Clips that this epoch leaves out."""
        return len(self.clips) - self.steps * self.global_batch

    @cached_property
    def _ring(self) -> tuple[np.ndarray, np.ndarray, int]:
        rng = keyed_rng("ring", self.seed, self.epoch)
        order = rng.permutation(len(self.clips.shards))
        ends = np.cumsum(np.asarray(self.clips.counts, dtype=np.int64)[order])
        return order, ends, int(rng.integers(len(self.clips)))

    def place(self, step: int, lane: int) -> SampleRef:
        """The clip in lane ``lane`` (0 to B - 1) of step ``step`` (0 to steps - 1)."""
        if not (0 <= step < self.steps and 0 <= lane < self.global_batch):
            raise IndexError(
                f"step {step}, lane {lane} of {self.steps} steps, {self.global_batch} lanes"
            )
        block, inside = divmod(step, self.block)
        size = min(self.block, self.steps - block * self.block)
        shuffled = _block_order(self.seed, self.epoch, lane, block, size)[inside]
        order, ends, turn = self._ring
        at = (lane * self.steps + block * self.block + int(shuffled) + turn) % len(self.clips)
        position, row = _locate(ends, at)
        return self.clips.place(int(order[position]), row, self.epoch)

    def block_shards(self, step: int, lanes: range) -> list[int]:
        """Shards that ``lanes`` read from ``step`` to the end of its block, in the order in which they are first needed."""
        block, inside = divmod(step, self.block)
        size = min(self.block, self.steps - block * self.block)
        order, ends, turn = self._ring
        orders = (_block_order(self.seed, self.epoch, lane, block, size)[inside:] for lane in lanes)
        starts = (lane * self.steps + block * self.block + turn for lane in lanes)
        places = np.stack(
            [start + order.astype(np.int64) for start, order in zip(starts, orders, strict=True)],
            axis=1,
        )
        return [self.clips.shards[order[i]] for i in _stretches(ends, places % len(self.clips))]


@dataclass(frozen=True)
class BalancedPlan(EpochPlan):
    """An epoch as long as the plain one in which every class comes equally often: rarer classes repeat their clips.

    Each class is an endless stream, one random permutation of its clips after another, of which an epoch takes the next
    stretch; so no clip comes a third time before all of its class have come twice. A clip's pass through the stream takes
    the place of the epoch in keying its augmentation: a repeated clip is cropped anew. Costs O(clips).

    ``by_class`` has the places of each class that occurs among the set's clips, as :func:`clips_by_class` gives them.
    """

    by_class: tuple[np.ndarray, ...] = ()

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(np.asarray(self.clips.counts, dtype=np.int64))

    @cached_property
    def _order(self) -> np.ndarray:
        """Place among the set's clips and pass number, int64 [steps * B, 2], in the order of steps."""
        quota = -(-self.steps * self.global_batch // len(self.by_class))
        taken = []
        for c, members in enumerate(self.by_class):
            passes, inside = np.divmod(
                np.arange(self.epoch * quota, (self.epoch + 1) * quota), len(members)
            )
            orders = {
                p: keyed_rng("class", self.seed, c, p).permutation(members)
                for p in np.unique(passes)
            }
            taken.append(
                np.stack(
                    [np.array([orders[p][i] for p, i in zip(passes, inside, strict=True)]), passes],
                    axis=1,
                )
            )
        mixed = keyed_rng("balanced", self.seed, self.epoch).permutation(np.concatenate(taken))
        return mixed[: self.steps * self.global_batch]

    def place(self, step: int, lane: int) -> SampleRef:
        """The clip in lane ``lane`` of step ``step``; its ``epoch`` is its pass."""
        if not (0 <= step < self.steps and 0 <= lane < self.global_batch):
            raise IndexError(
                f"step {step}, lane {lane} of {self.steps} steps, {self.global_batch} lanes"
            )
        at, seen = (int(x) for x in self._order[step * self.global_batch + lane])
        return self.clips.place(*_locate(self._ends, at), seen)

    def block_shards(self, step: int, lanes: range) -> list[int]:
        """As for the plain plan; a class has its clips anywhere, so these are soon all shards."""
        end = min((step // self.block + 1) * self.block, self.steps)
        places = self._order[step * self.global_batch : end * self.global_batch, 0].reshape(
            -1, self.global_batch
        )
        return [self.clips.shards[i] for i in _stretches(self._ends, places[:, lanes])]


def _locate(ends: np.ndarray, at: int) -> tuple[int, int]:
    """Which of the stretches that end at ``ends`` place ``at`` lies in, and how far into it."""
    stretch = int(np.searchsorted(ends, at, side="right"))
    return stretch, at - (int(ends[stretch - 1]) if stretch else 0)


def _stretches(ends: np.ndarray, places: np.ndarray) -> list[int]:
    """The stretches that ``places`` [steps, lanes] lie in, each once, in the order of steps."""
    found, firsts = np.unique(
        np.searchsorted(ends, places.ravel(), side="right"), return_index=True
    )
    return found[np.argsort(firsts)].tolist()


def clips_by_class(index: Index, clips: ClipSet) -> tuple[np.ndarray, ...]:
    """Places among the set's clips, int64 arrays, for each class of the index in label order. Reads the label column."""
    labels = [index.sidecar(i)["label"].to_numpy() for i in clips.shards]
    chosen = [
        own if rows is None else own[rows] for own, rows in zip(labels, clips.rows, strict=True)
    ]
    every = np.concatenate(chosen)
    return tuple(np.flatnonzero(every == c) for c in range(len(index.classes)))


def evaluation_batches(clips: ClipSet, batch: int) -> list[list[SampleRef]]:
    """Every clip once, in the order of the index, cut into batches of ``batch`` clips (the last one may be shorter)."""
    places = [
        clips.place(p, row, 0) for p, count in enumerate(clips.counts) for row in range(count)
    ]
    return [places[i : i + batch] for i in range(0, len(places), batch)]


def keyed_rng(*words: object) -> np.random.Generator:
    """A generator whose stream depends on ``words`` alone; other words give an independent stream."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@lru_cache(maxsize=8192)
def _block_order(seed: int, epoch: int, lane: int, block: int, size: int) -> np.ndarray:
    return keyed_rng("block", seed, epoch, lane, block).permutation(size).astype(np.int32)
