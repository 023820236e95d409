"""Several sets of shards as one index, with one list of classes.

Training on several sets reads a :class:`JointIndex` of them. A test is of one set alone, with the
classes of the model: :meth:`JointIndex.one_set`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from dfer_dist.config.schema import DataConfig, ExtraClasses
from dfer_dist.data.shards.index import (
    EXTRAS,
    Index,
    check_sizes,
    load_index,
    open_index,
    sidecar_schema,
    to_numpy,
)
from dfer_dist.data.shards.store import Remote, open_store
from dfer_dist.data.sources.records import canonical_class
from dfer_dist.utils.errors import UserError

N = TypeVar("N", int, float)

#: Label of a clip whose class is not among those of the joint index: it is not read.
LEFT_OUT = -1


def map_classes(own: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the position in ``classes`` of each class of a set; :data:`LEFT_OUT` if it is missing.

    Classes are the same if their names differ in case only, or are the noun and the adjective of
    an emotion (``Happy``, ``happiness``).
    """
    positions = {_plain(name): i for i, name in reversed([*enumerate(classes)])}
    return tuple(positions.get(_plain(name), LEFT_OUT) for name in own)


def _plain(name: str) -> str:
    return canonical_class(name) or name.strip().casefold()


@dataclass(frozen=True)
class JointIndex(Index):
    """One or several sets with one list of classes; shards are counted through all of them.

    Labels are those of the joint classes, also in ``shards`` and :meth:`sidecar`. Splits are those
    of each set: folds of several sets are read by set, with :meth:`one_set`.

    Attributes
    ----------
    sets : tuple of Index
        As they were packed.
    labels : tuple of tuple of int
        For each set the joint label of each of its own, or :data:`LEFT_OUT`.
    """

    sets: tuple[Index, ...] = ()
    labels: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @cached_property
    def starts(self) -> list[int]:
        """Position of the first shard of each set."""
        return [*accumulate((len(own.shards) for own in self.sets[:-1]), initial=0)]

    def set_of(self, shard: int) -> int:
        """Return which of ``sets`` a shard is of."""
        return bisect(self.starts, shard) - 1

    def one_set(self, number: int) -> Index:
        """Return one of ``sets`` with the joint classes: itself if its classes are the same."""
        if self.sets[number].classes == self.classes:
            return self.sets[number]
        return with_classes(self.sets[number], self.classes)

    @property
    def folds(self) -> list[int]:
        """Folds of the first set."""
        return self.sets[0].folds

    def store(self, shard: int) -> Path | Remote:
        """Return the folder or the server of a shard's set."""
        return self.sets[self.set_of(shard)].root

    def path(self, shard: int) -> Path:
        """Return a shard's file; only for a set in a local folder."""
        return self.sets[(own := self.set_of(shard))].path(shard - self.starts[own])

    def sidecar(self, shard: int) -> pa.Table:
        """Read a shard's parquet table as :meth:`Index.sidecar`, with joint labels."""
        own = self.set_of(shard)
        table, labels = self.sets[own].sidecar(shard - self.starts[own]), self.labels[own]
        mapped = np.array(labels, np.int32)[to_numpy(table["label"].combine_chunks())]
        columns = {name: table[name] for name in table.column_names} | {"label": mapped}
        for name in self.extras:
            columns[name] = _extra(table, name, labels, len(self.classes))
        return pa.table(columns, sidecar_schema(self.extras))

    def label(self, shard: int, stored: int) -> int:
        """Return the joint label of a label that is stored in a shard."""
        return self.labels[self.set_of(shard)][stored]

    def clip_name(self, shard: int, key: str) -> str:
        """Return ``SET/KEY`` for a clip of several sets, whose keys may be the same."""
        return f"{self._prefix(shard)}{key}"

    def shard_name(self, shard: int) -> str:
        """Return ``SET/FILE`` for a shard of several sets."""
        return f"{self._prefix(shard)}{self.shards[shard].file}"

    def _prefix(self, shard: int) -> str:
        if len(self.sets) == 1:
            return ""
        return f"{self.sets[self.set_of(shard)].name}/"

    def lost_classes(self, number: int) -> dict[str, int]:
        """Return the clips of each class of a set that has no joint label, of all splits."""
        own = self.sets[number]
        clips = [sum(column) for column in zip(*(s.histogram for s in own.shards), strict=True)]
        return {
            name: count
            for name, label, count in zip(own.classes, self.labels[number], clips, strict=True)
            if label == LEFT_OUT and count
        }


def _extra(table: pa.Table, name: str, labels: Sequence[int], count: int) -> list[Any]:
    """Return a column of a set's sidecar in joint classes; of a set without it, what it means."""
    rows: list[Any] = [None] * len(table)
    if name in table.column_names:
        rows = table[name].to_pylist()
    if name == "votes":
        return [_histogram(own, labels, count) if own else [] for own in rows]
    if name == "labels":
        rows = [own or [label] for own, label in zip(rows, table["label"].to_pylist(), strict=True)]
        return [sorted({labels[i] for i in own} - {LEFT_OUT}) for own in rows]
    return [own or "" for own in rows]


def with_classes(index: Index, classes: Sequence[str]) -> JointIndex:
    """Return a set with other classes, by name; clips of classes that are not among them are left.

    Raises
    ------
    UserError
        If they have no class in common.
    """
    return _join((index,), tuple(classes))


def join(sets: Sequence[Index], extra: ExtraClasses) -> JointIndex:
    """Return several sets as one.

    The first one's classes come first. Those of others that it lacks follow, or are left out.

    Raises
    ------
    UserError
        If two sets have the same name, a set has no class in common with the first one, or lacks
        a fold of it.
    """
    first, *others = sets
    classes = list(first.classes)
    for i, own in enumerate(others, 1):
        if own.name in (known := [s.name for s in sets[:i]]):
            raise UserError(
                f"data.shards: {own.root} and {sets[known.index(own.name)].root} are both named "
                f"{own.name}: give each set once, or pack one under another name"
            )
        for fold in first.folds:
            own_fold(own.name, own.folds, fold)
        _check_common(own, first.classes, first.name)
        if extra is ExtraClasses.keep:
            labels = map_classes(own.classes, classes)
            classes += [c for c, label in zip(own.classes, labels, strict=True) if label < 0]
    return _join(tuple(sets), tuple(classes))


def own_fold(name: str, folds: Sequence[int], fold: int) -> int:
    """Return the fold of one of several sets in fold ``fold`` of a run: its only one, or the same.

    Raises
    ------
    UserError
        If it has several others.
    """
    if fold in folds:
        return fold
    if len(folds) > 1:
        raise UserError(
            f"data.shards: {name} has {len(folds)} folds, and there is a fold {fold}: give sets "
            "with as many folds as the first one, or with one"
        )
    return folds[0]


def _check_common(index: Index, classes: Sequence[str], of: str) -> None:
    if set(map_classes(index.classes, classes)) == {LEFT_OUT}:
        raise UserError(
            f"{index.name} ({', '.join(index.classes)}) has no class in common with {of} "
            f"({', '.join(classes)}): classes are matched by name"
        )


def _join(sets: tuple[Index, ...], classes: tuple[str, ...]) -> JointIndex:
    for own in sets:
        _check_common(own, classes, "the model")
    labels = tuple(map_classes(own.classes, classes) for own in sets)
    shards = tuple(
        replace(shard, histogram=_histogram(shard.histogram, of_set, len(classes)))
        for own, of_set in zip(sets, labels, strict=True)
        for shard in own.shards
    )
    joint_hash, left_out = sets[0].hash, sets[0].left_out
    if len(sets) > 1:
        body = json.dumps([classes, [own.hash for own in sets]])
        joint_hash, left_out = hashlib.sha256(body.encode()).hexdigest(), ()
    name = "+".join(own.name for own in sets)
    extras = tuple(e for e in EXTRAS if any(e in own.extras for own in sets))
    return JointIndex(
        sets[0].root, name, classes, shards, joint_hash, left_out, extras, sets=sets, labels=labels
    )


def _histogram(own: Sequence[N], labels: Sequence[int], count: int) -> tuple[N, ...]:
    """Return numbers by own label as numbers by joint label."""
    sums: list[Any] = [0] * count
    for label, number in zip(labels, own, strict=True):
        if label != LEFT_OUT:
            sums[label] += number
    return tuple(sums)


def open_sets(data: DataConfig, loss_budget: int = 0) -> Index:
    """Open all sets that ``data.shards`` names: a :class:`JointIndex` if they are several.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.data.shards.index.open_index` and :func:`join`, and if ``data.mixture``
        names a set that is not there.
    """
    if len(data.locations) == 1:
        index = open_index(data, loss_budget)
        check_mixture(data.mixture, [index])
        return index
    stores = [open_store(location, data.cache, data.cache_gb) for location in data.locations]
    sets = [load_index(store) for store in stores]
    check_mixture(data.mixture, sets)
    joint = join(sets, data.extra_classes)
    check_sizes(joint, range(len(joint.shards)), loss_budget)
    return joint


def check_mixture(mixture: Mapping[str, float] | None, sets: Sequence[Index]) -> None:
    """Refuse weights of sets that are not there, and a weight of the only set.

    Raises
    ------
    UserError
    """
    names = [own.name for own in sets]
    for name, weight in (mixture or {}).items():
        if name not in names:
            raise UserError(
                f"data.mixture={{{name}: {weight:g}}}: the sets are {', '.join(names)}, weigh these"
            )
        if len(sets) == 1:
            raise UserError(
                f"data.mixture={{{name}: {weight:g}}} weighs several sets, and data.shards is one: "
                "leave it out, or give data.shards=[A,B]"
            )


def sets_of(index: Index) -> tuple[Index, ...]:
    """Return the sets of a joint index, or the index itself."""
    if isinstance(index, JointIndex):
        return index.sets
    return (index,)
