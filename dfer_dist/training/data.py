"""The data that a fold is trained, validated and tested on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dfer_dist.config.schema import Config, Selection, Supervision, split_batch
from dfer_dist.data.folds.clips import FoldClips, fold_clips
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.loading.loader import Batch, train_loader
from dfer_dist.data.loading.prefetch import check_cache
from dfer_dist.data.loading.sampler import (
    ClipSet,
    EpochPlan,
    balanced_plan,
    clips_by_class,
    train_val_split,
)
from dfer_dist.data.shards.index import Index, check_sizes, open_index
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.training.descriptions import ClipDescriptions, read_descriptions


@dataclass(frozen=True)
class FoldData:
    """The data of a fold.

    Attributes
    ----------
    fold : int
        Its number, counted from 1.
    index : Index
    plan : EpochPlan
        Of epoch 0; carries what all epochs share.
    val : ClipSet or None
        Clips held out of the training folds.
    test : ClipSet
    left_out : tuple of str
        Test clips that were lost when the set was packed.
    class_sizes : list of int
        Training clips by label; empty where no setting needs them.
    descriptions : ClipDescriptions or None
        Where they are trained on.
    modalities : dict or None
        How the parsing maps and landmarks were made, where the model uses some.
    folds_hash : str or None
        Of the folds in a file; None for the set's own.
    """

    fold: int
    index: Index
    plan: EpochPlan
    val: ClipSet | None
    test: ClipSet
    left_out: tuple[str, ...]
    class_sizes: list[int]
    descriptions: ClipDescriptions | None
    modalities: dict[str, Any] | None
    folds_hash: str | None


def build_data(*, config: Config, fold: int, ranks: Ranks) -> FoldData:
    """Open the data set and plan the epochs of a fold. Collective.

    Raises
    ------
    UserError
        If a shard, modality or description that the fold needs is missing, ``data.folds`` does not
        fit the set, the cache is too small, or the ranks cannot share the global batch.
    """
    train = config.train
    index = open_index(config.data, config.data.loss_budget)
    # Found now rather than after the training.
    folds = open_folds(config.data, index)
    of_fold = fold_clips(index, fold, folds)
    check_sizes(index, of_fold.test.shards)
    clips, val = _train_and_val(config, index, of_fold)
    needs_classes = config.data.balanced or train.class_balance
    by_class = clips_by_class(index, clips) if needs_classes else ()
    plan = EpochPlan(
        clips=clips,
        seed=train.seed,
        epoch=0,
        global_batch=train.global_batch,
        block=config.data.block,
    )
    if config.data.balanced:
        plan = balanced_plan(plan, by_class)
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
        test=of_fold.test,
        left_out=of_fold.left_out,
        class_sizes=[len(c) for c in by_class],
        descriptions=descriptions,
        modalities=ranks.broadcast_object(modalities),
        folds_hash=folds.hash if folds else None,
    )


def _train_and_val(
    config: Config, index: Index, clips: FoldClips
) -> tuple[ClipSet, ClipSet | None]:
    """Return the clips to train on, and those that choose the epoch if the selection needs some."""
    train = config.train
    if train.selection is not Selection.best_val:
        return clips.train, None
    if clips.val is not None:
        return clips.train, clips.val
    return train_val_split(index, clips.train, train.val_fraction, train.seed)


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
