"""The clips that a checkpoint is tested on, and their labels in the classes of its model.

On the set of its training they are the test clips of its own fold, since it was trained on all
others. On another set they are the test clips of all folds. Classes are matched by their names;
clips of a class that the model lacks are left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import Ambiguous, Config
from dfer_dist.data.folds.clips import FoldClips, fold_clips, fold_numbers, known_clips
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.loading.sampler import ClipSet, all_clips, join_clips
from dfer_dist.data.shards.index import Index, to_numpy
from dfer_dist.data.shards.joint import LEFT_OUT, JointIndex, map_classes, own_fold, with_classes
from dfer_dist.runs.layout import parse_folds
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class EvalClips:
    """The clips of a test.

    Attributes
    ----------
    index : Index
        The set, with the classes of the model.
    fold : int or None
        The fold of the set whose test clips they are; None for all folds.
    part : FoldClips
        ``test`` are the clips, of classes that the model has.
    common : list of int
        Labels of those of the model's classes that the set has.
    left_out : dict of str to int
        Number of clips by class that the model lacks.
    """

    index: Index
    fold: int | None
    part: FoldClips
    common: list[int]
    left_out: dict[str, int]


def find_eval_clips(
    saved: Checkpoint, config: Config, index: Index, fold: int | None = None
) -> EvalClips:
    """Return the clips to test a checkpoint on.

    Parameters
    ----------
    saved : Checkpoint
    config : Config
        Of the test; it may name other folds than the set's own.
    index : Index
        The set that is tested on, as it was packed.
    fold : int, optional
        Test on this fold of the set alone.

    Raises
    ------
    UserError
        If the set has no clip of a class of the model, or the model was trained on the clips.
    """
    classes = tuple(saved.state.get("classes") or index.classes)
    folds = open_folds(config.data, index)
    number = fold_to_test(saved, index, fold, folds)
    known, left_out = index, dict[str, int]()
    if index.classes != classes:
        try:
            known = with_classes(index, classes)
        except UserError as e:
            raise UserError(f"{e} (--zero-shot reads their texts)") from e
        left_out = _unknown_classes(index, clips_to_test(index, number, folds).test, classes)
    part = clips_to_test(known, number, folds)
    if not len(part.test):
        raise UserError(
            f"{index.root}: no test clip is of a class that the model has ({', '.join(classes)})"
        )
    common = sorted({*map_classes(index.classes, classes)} - {LEFT_OUT})
    return EvalClips(known, number, part, common, left_out)


def trained_hashes(saved: Checkpoint) -> list[str | None]:
    """Return the hashes of the sets that a checkpoint was trained on, the first one first."""
    return [*saved.state.get("set_hashes", {}).values()] or [saved.state.get("index_hash")]


def was_trained_on(saved: Checkpoint, index: Index) -> bool:
    """Return whether a checkpoint was trained on this set, packed now or in another form.

    A set of the same name counts as the same clips. So does any set for a checkpoint that does not
    know its own.
    """
    names = {saved.state.get("dataset"), *saved.state.get("set_hashes", {})}
    return None in names or index.name in names or index.hash in trained_hashes(saved)


def fold_to_test(
    saved: Checkpoint, index: Index, fold: int | None, folds: FoldOverlay | None = None
) -> int | None:
    """Return the fold of a set to test a checkpoint on; None for all folds.

    It is ``fold``, if it is given, else the checkpoint's own on the set of its training.

    Raises
    ------
    UserError
        As :func:`unseen_fold`, and if the checkpoint does not know its fold.
    """
    if fold is None and not was_trained_on(saved, index):
        return None
    chosen = saved.state.get("fold") if fold is None else fold
    if chosen is None:
        raise UserError(f"{saved.path} does not say which fold it was trained for: give --fold")
    if fold is None:
        chosen = own_fold(index.name, fold_numbers(index, folds), chosen)
    return unseen_fold(saved, index, chosen, folds)


def unseen_fold(
    saved: Checkpoint, index: Index, fold: int, folds: FoldOverlay | None = None
) -> int:
    """Return ``fold``, if it is a fold of the data that the checkpoint was not trained on.

    Raises
    ------
    UserError
        Otherwise.
    """
    (number,) = parse_folds(str(fold), fold_numbers(index, folds))
    trained_for = saved.state.get("fold")
    if trained_for is None or not was_trained_on(saved, index):
        return number
    # the folds of a file are of the first of several sets
    is_other = index.name in [*saved.state.get("set_hashes", {})][1:]
    if not is_other and saved.config.data.folds_hash != (folds and folds.hash):
        raise UserError(
            "this checkpoint was trained with other folds of these clips, and has seen some that "
            f"would be tested: give its own, data.folds={saved.config.data.folds or 'null'}"
        )
    trained_for = own_fold(index.name, fold_numbers(index, folds), trained_for)
    if trained_for != number:
        raise UserError(
            f"fold {number} was among the training clips of this checkpoint, which is to be tested "
            f"on fold {trained_for}"
        )
    return number


def unseen_ambiguous_clips(
    config: Config, index: Index, trained_on: Sequence[str | None]
) -> ClipSet:
    """Return the clips of a set without a majority, which a checkpoint was not trained on.

    Parameters
    ----------
    config : Config
        The checkpoint's.
    index : Index
        With the classes of the model; clips of others are left out.
    trained_on : sequence of str
        Hashes of the sets that it was trained on.

    Raises
    ------
    UserError
        If it was, or there are none.
    """
    if not index.ambiguous_shards:
        raise UserError(f"{index.name} has no clip without a majority: leave --ambiguous out")
    if config.data.ambiguous is Ambiguous.train and index.hash in trained_on:
        raise UserError(
            "the clips without a majority were among the training clips of this checkpoint "
            "(data.ambiguous=train): leave --ambiguous out"
        )
    clips = all_clips(index, index.ambiguous_shards)
    if isinstance(index, JointIndex):
        clips = known_clips(index, 0, clips)
    if not len(clips):
        raise UserError(
            f"{index.root}: no clip without a majority is of a class that the model has "
            f"({', '.join(index.classes)})"
        )
    return clips


def clips_to_test(index: Index, fold: int | None, folds: FoldOverlay | None = None) -> FoldClips:
    """Return the clips of a fold; without one, those of all test folds together."""
    if fold is not None:
        return fold_clips(index, fold, folds)
    parts = [fold_clips(index, k, folds) for k in fold_numbers(index, folds)]
    lost = tuple(clip for part in parts for clip in part.left_out)
    return replace(parts[0], test=join_clips(part.test for part in parts), left_out=lost)


def _unknown_classes(index: Index, clips: ClipSet, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of clips by class that is not among ``classes``."""
    counts = np.zeros(len(index.classes), dtype=np.int64)
    for shard, rows in zip(clips.shards, clips.rows, strict=True):
        labels = to_numpy(index.sidecar(shard)["label"].combine_chunks())
        own = labels if rows is None else labels[rows]
        counts += np.bincount(own, minlength=len(counts))
    unknown = np.array(map_classes(index.classes, classes)) == LEFT_OUT
    return {index.classes[i]: int(counts[i]) for i in np.flatnonzero(unknown & (counts > 0))}
