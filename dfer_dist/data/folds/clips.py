"""The clips that a fold is trained, validated and tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.loading.sampler import ClipSet, all_clips
from dfer_dist.data.shards.index import Index


@dataclass(frozen=True)
class FoldClips:
    """The clips of a fold.

    Attributes
    ----------
    train : ClipSet
    val : ClipSet or None
        The set's own validation clips, if it has a split of them.
    test : ClipSet
    left_out : tuple of str
        Test clips that were lost when the set was packed.
    """

    train: ClipSet
    val: ClipSet | None
    test: ClipSet
    left_out: tuple[str, ...] = ()


def fold_numbers(index: Index, folds: FoldOverlay | None = None) -> list[int]:
    """Return the numbers of the folds: the set's own ones, or those of an overlay."""
    return index.folds if folds is None else folds.numbers


def fold_clips(
    index: Index, fold: int, folds: FoldOverlay | None = None, *, ambiguous: bool = False
) -> FoldClips:
    """Return the clips of a fold.

    Parameters
    ----------
    index : Index
    fold : int
        Counted from 1.
    folds : FoldOverlay, optional
        Folds to use instead of the set's own. All other clips are then trained on, whatever their
        split; which clips were lost when the set was packed is not known by fold.
    ambiguous : bool
        Train on the clips of split ``ambiguous`` too; they are never tested.
    """
    if folds is None:
        train = index.train_shards(fold) + (index.ambiguous_shards if ambiguous else [])
        return FoldClips(
            train=all_clips(index, sorted(train)),
            val=all_clips(index, index.val_shards) if index.val_shards else None,
            test=all_clips(index, index.test_shards(fold)),
            left_out=tuple(index.lost_test_clips(fold)),
        )
    train_rows, test_rows = {}, {}
    never_tested = set(index.ambiguous_shards)
    for i in range(len(index.shards)):
        keys = index.sidecar(i)["key"].to_pylist()
        is_test = np.array([folds.fold_of[key] == fold for key in keys], bool)
        if i not in never_tested:
            test_rows[i] = np.flatnonzero(is_test)
        if i not in never_tested or ambiguous:
            train_rows[i] = np.flatnonzero(~is_test)
    return FoldClips(_some_rows(index, train_rows), None, _some_rows(index, test_rows))


def _some_rows(index: Index, rows: dict[int, np.ndarray]) -> ClipSet:
    """Return some rows of shards, without the shards of which there are none."""
    used = {i: own for i, own in rows.items() if len(own)}
    counts = tuple(map(len, used.values()))
    whole = [index.shards[i].clips for i in used]
    # None for a full shard: an overlay like the set's own folds gives the stream that they do
    parts = (
        None if count == clips else own
        for own, count, clips in zip(used.values(), counts, whole, strict=True)
    )
    return ClipSet(tuple(used), counts, tuple(parts))
