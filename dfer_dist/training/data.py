"""The data that a fold is trained, validated and tested on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfer_dist.config.schema import (
    Ambiguous,
    Config,
    Selection,
    Supervision,
    split_batch,
)
from dfer_dist.data.folds.clips import FoldClips, clips_of_set, fold_clips, set_clips
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.loading.loader import Batch, train_loader
from dfer_dist.data.loading.prefetch import check_cache
from dfer_dist.data.loading.sampler import (
    ClipSet,
    EpochPlan,
    balanced_plan,
    clips_by_class,
    join_clips,
    mixture_plan,
    train_val_split,
)
from dfer_dist.data.loading.votes import Votes, check_votes, training_votes
from dfer_dist.data.shards.index import Index, check_sizes
from dfer_dist.data.shards.joint import JointIndex, open_sets
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.runs.records import TrainedSet
from dfer_dist.training.descriptions import ClipDescriptions, read_descriptions
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class EvaluatedSet:
    """The test clips of a set.

    Attributes
    ----------
    index : Index
        Of this set alone, with the classes of the model.
    clips : ClipSet
    left_out : tuple of str
        Test clips that were lost when the set was packed.
    """

    index: Index
    clips: ClipSet
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class FoldData:
    """The data of a fold.

    Attributes
    ----------
    fold : int
        Its number, counted from 1.
    index : Index
        Of all sets that are trained on.
    plan : EpochPlan
        Of epoch 0; carries what all epochs share.
    val : ClipSet or None
        Clips held out of the training folds of the first set.
    tested : tuple of EvaluatedSet
        Each set, the first one first.
    sets : tuple of TrainedSet
        What an epoch takes of each set; empty for a single one.
    class_sizes : list of float
        Training clips of an epoch by class, or their shares of votes; empty where no setting needs
        them.
    descriptions : ClipDescriptions or None
        Where they are trained on.
    modalities : dict or None
        How the parsing maps and landmarks were made, where the model uses some.
    folds_hash : str or None
        Of the folds in a file; None for the set's own.
    votes : Votes or None
        Where they are trained on.
    ambiguous_clips : int
        Training clips without a majority.
    """

    fold: int
    index: Index
    plan: EpochPlan
    val: ClipSet | None
    tested: tuple[EvaluatedSet, ...]
    sets: tuple[TrainedSet, ...]
    class_sizes: list[float]
    descriptions: ClipDescriptions | None
    modalities: dict[str, Any] | None
    folds_hash: str | None
    votes: Votes | None
    ambiguous_clips: int

    def targets(self, batch: Batch) -> Tensor:
        """Return what a batch is trained towards: labels, or of votes float32 [b, C]."""
        if self.votes is None:
            return batch.labels
        return torch.from_numpy(self.votes.of(batch.keys))

    @property
    def test(self) -> ClipSet:
        """Test clips of the first set, as positions in its own index."""
        return self.tested[0].clips


def build_data(*, config: Config, fold: int, ranks: Ranks) -> FoldData:
    """Open the data set and plan the epochs of a fold. Collective.

    Raises
    ------
    UserError
        If a shard, modality, description or vote that the fold needs is missing, ``data.folds``
        does not fit the set, the cache is too small, or the ranks cannot share the global batch.
    """
    train, ambiguous = config.train, config.data.ambiguous is Ambiguous.train
    index = open_sets(config.data, config.data.loss_budget)
    check_votes(index, config)
    folds = open_folds(config.data, index)
    # Missing test clips are found now rather than after the training.
    tested = _tested_sets(index, fold, folds)
    of_fold = fold_clips(index, fold, folds, ambiguous=ambiguous)
    clips, val = _train_and_val(config, of_fold, tested[0].index)
    votes = training_votes(index, clips, train.target)
    sets = _trained_sets(index, clips, config.data.mixture)
    needs_classes = config.data.balanced or train.class_balance
    by_class = clips_by_class(index, clips) if needs_classes else ()
    plan = _plan(config, clips, by_class, sets)
    # A batch that cannot be split is found before the model is built.
    split_batch(config, ranks.world_size)
    check_cache(index, plan, ranks.local_ranks, ranks.world_size)
    modalities = None
    if ranks.is_main:
        modalities = describe_modalities(index, config.model.modalities)
    descriptions = None
    if train.objective is not Supervision.labels:
        descriptions = read_descriptions(index, clips, fold, config, folds)
    return FoldData(
        fold=fold,
        index=index,
        plan=plan,
        val=val,
        tested=tested,
        sets=sets,
        class_sizes=_class_sizes(by_class, sets, votes),
        descriptions=descriptions,
        modalities=ranks.broadcast_object(modalities),
        folds_hash=folds.hash if folds else None,
        votes=votes,
        ambiguous_clips=clips.count_in(index.ambiguous_shards),
    )


def _tested_sets(index: Index, fold: int, folds: FoldOverlay | None) -> tuple[EvaluatedSet, ...]:
    """Return the test clips of each set, whose shards are there in full."""
    parts = [(index, fold_clips(index, fold, folds))]
    if isinstance(index, JointIndex):
        numbers = range(len(index.sets))
        parts = [(index.one_set(n), set_clips(index, n, fold, folds)) for n in numbers]
    for own, clips in parts:
        check_sizes(own, clips.test.shards)
    return tuple(EvaluatedSet(own, clips.test, clips.left_out) for own, clips in parts)


def _train_and_val(
    config: Config, clips: FoldClips, first: Index
) -> tuple[ClipSet, ClipSet | None]:
    """Return the clips to train on, and those that choose the epoch if the selection needs some.

    These are of the first of several sets.
    """
    train = config.train
    if train.selection is not Selection.best_val:
        return clips.train, None
    if clips.val is not None:
        return clips.train, clips.val
    end = bisect_left(clips.train.shards, len(first.shards))
    own, others = clips.train[:end], clips.train[end:]
    own, val = train_val_split(first, own, train.val_fraction, train.seed)
    return join_clips([own, others]), val


def _trained_sets(
    index: Index, clips: ClipSet, mixture: dict[str, float] | None
) -> tuple[TrainedSet, ...]:
    if not isinstance(index, JointIndex):
        return ()
    counts = [len(clips_of_set(index, clips, number)) for number in range(len(index.sets))]
    for own, count in zip(index.sets, counts, strict=True):
        if not count:
            raise UserError(f"{own.name} has no training clips in this fold: leave it out")
    return tuple(
        TrainedSet(
            name=own.name,
            index_hash=own.hash,
            clips=count,
            weight=(mixture or {}).get(own.name, 1.0),
            without_class=index.lost_classes(number),
        )
        for number, (own, count) in enumerate(zip(index.sets, counts, strict=True))
    )


def _plan(
    config: Config, clips: ClipSet, by_class: Sequence[np.ndarray], sets: Sequence[TrainedSet]
) -> EpochPlan:
    plan = EpochPlan(
        clips=clips,
        seed=config.train.seed,
        epoch=0,
        global_batch=config.train.global_batch,
        block=config.data.block,
    )
    if config.data.balanced:
        return balanced_plan(plan, by_class)
    if not sets:
        return plan
    # the shards of a set follow those of the set before
    by_set = np.split(np.arange(len(clips)), np.cumsum([own.clips for own in sets])[:-1])
    return mixture_plan(plan, by_set, [own.weight for own in sets])


def _class_sizes(
    by_class: Sequence[np.ndarray], sets: Sequence[TrainedSet], votes: Votes | None
) -> list[float]:
    """Return the clips that an epoch takes of each class, in the mean; of votes their shares."""
    if not sets and votes:
        return [float(size) for size in votes.distributions.sum(0)]
    if not sets:
        return [len(own) for own in by_class]
    weights = np.repeat([own.weight for own in sets], [own.clips for own in sets])
    if votes:
        return [float(size) for size in weights @ votes.distributions]
    return [float(weights[own].sum()) for own in by_class]


def build_batches(*, config: Config, data: FoldData, ranks: Ranks, step: int) -> Iterator[Batch]:
    """Start the loader workers; return this rank's micro batches from ``step`` on."""
    micro_batch, _ = split_batch(config, ranks.world_size)
    return train_loader(
        data.index,
        config.data,
        data.plan,
        epochs=config.train.epochs,
        start=divmod(step, data.plan.steps),
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batch=micro_batch,
        modalities=config.model.modalities,
    )
