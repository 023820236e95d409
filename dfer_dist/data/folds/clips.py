"""The clips that a fold is trained, validated and tested on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np

from dfer_dist.data.folds.overlay import NO_FOLD, FoldOverlay
from dfer_dist.data.loading.sampler import ClipSet, all_clips, join_clips
from dfer_dist.data.shards.index import Index, to_numpy
from dfer_dist.data.shards.joint import LEFT_OUT, JointIndex, own_fold


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

    Of several sets, the training clips are those of all sets in this fold of each; validation and
    test clips are those of the first one, and :func:`set_clips` gives the others. Clips whose class
    is not among those of a joint index are left out.

    Parameters
    ----------
    index : Index
    fold : int
        Counted from 1.
    folds : FoldOverlay, optional
        Folds to use instead of the set's own. All other clips are then trained on, whatever their
        split, but those of :data:`~dfer_dist.data.folds.overlay.NO_FOLD`; which clips were lost
        when the set was packed is not known by fold.
    ambiguous : bool
        Train on the clips of split ``ambiguous`` too; they are never tested.
    """
    if isinstance(index, JointIndex):
        return _joint_clips(index, fold, folds, ambiguous)
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
        own = np.array([folds.fold_of[key] for key in keys])
        if i not in never_tested:
            test_rows[i] = np.flatnonzero(own == fold)
        if i not in never_tested or ambiguous:
            train_rows[i] = np.flatnonzero((own != fold) & (own != NO_FOLD))
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


def set_clips(
    index: JointIndex,
    number: int,
    fold: int,
    folds: FoldOverlay | None = None,
    *,
    ambiguous: bool = False,
) -> FoldClips:
    """Return the clips of a fold of one of several sets; a set with one fold has it in every fold.

    Parameters
    ----------
    index : JointIndex
    number : int
        Position in ``index.sets``.
    fold, folds, ambiguous
        As for :func:`fold_clips`; an overlay is of the first set.

    Returns
    -------
    FoldClips
        With positions of shards in that set, as of ``index.one_set(number)``.

    Raises
    ------
    UserError
        If the set has several folds, and not this one.
    """
    own, own_folds = index.sets[number], None if number else folds
    number_of_fold = own_fold(own.name, fold_numbers(own, own_folds), fold)
    clips = fold_clips(own, number_of_fold, own_folds, ambiguous=ambiguous)
    train, test = (known_clips(index, number, part) for part in (clips.train, clips.test))
    val = clips.val and known_clips(index, number, clips.val)
    return FoldClips(train, val, test, clips.left_out)


def clips_of_set(index: JointIndex, clips: ClipSet, number: int) -> ClipSet:
    """Return the clips of one of several sets, with positions of shards in that set.

    Parameters
    ----------
    index : JointIndex
    clips : ClipSet
        Of all sets, in the order of the shards.
    number : int
        Position in ``index.sets``.
    """
    start = index.starts[number]
    end = start + len(index.sets[number].shards)
    own = clips[bisect_left(clips.shards, start) : bisect_left(clips.shards, end)]
    return replace(own, shards=tuple(shard - start for shard in own.shards))


def clips_with_keys(index: Index, clips: ClipSet, keys: Container[str]) -> ClipSet:
    """Return the clips of a set of clips that have one of some keys."""
    rows = {}
    for shard, chosen in zip(clips.shards, clips.rows, strict=True):
        is_wanted = np.array([key in keys for key in index.sidecar(shard)["key"].to_pylist()])
        used = np.arange(len(is_wanted)) if chosen is None else chosen
        rows[shard] = used[is_wanted[used]]
    return _some_rows(index, rows)


def known_clips(index: JointIndex, number: int, clips: ClipSet) -> ClipSet:
    """Return those clips of one of several sets whose class is among the joint ones.

    Parameters
    ----------
    index : JointIndex
    number : int
        Position in ``index.sets``.
    clips : ClipSet
        With positions of shards in that set.
    """
    own, labels = index.sets[number], np.array(index.labels[number])
    if min(labels) > LEFT_OUT:
        return clips
    rows = {}
    for shard, chosen in zip(clips.shards, clips.rows, strict=True):
        stored = to_numpy(own.sidecar(shard)["label"].combine_chunks())
        used = np.arange(len(stored)) if chosen is None else chosen
        rows[shard] = used[labels[stored[used]] != LEFT_OUT]
    return _some_rows(own, rows)


def _joint_clips(
    index: JointIndex, fold: int, folds: FoldOverlay | None, ambiguous: bool
) -> FoldClips:
    parts = [
        set_clips(index, number, fold, folds, ambiguous=ambiguous)
        for number in range(len(index.sets))
    ]
    train = join_clips(
        replace(part.train, shards=tuple(start + shard for shard in part.train.shards))
        for part, start in zip(parts, index.starts, strict=True)
    )
    return FoldClips(train, parts[0].val, parts[0].test, parts[0].left_out)
