"""Builds a trainer from the settings of a run and the last checkpoint of a fold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import nn

from dfer_dist.checkpoints import portable
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.checkpoints.optimizer_state import restore
from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.checkpoints.state import CheckpointInfo
from dfer_dist.config.schema import Config, config_hash, split_batch
from dfer_dist.distributed.preemption import PreemptionHandler
from dfer_dist.distributed.process_group import Ranks, device_name
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.models import build as models
from dfer_dist.models.dferclip import DFERCLIP, OutputsModule
from dfer_dist.models.tuning import param_groups, trained_line
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.status import Phase
from dfer_dist.training.data import FoldData, build_batches, build_data
from dfer_dist.training.engine import build_engine
from dfer_dist.training.losses import Objective
from dfer_dist.training.state import TrainState
from dfer_dist.training.tracking import FoldTracking, build_tracking
from dfer_dist.training.trainer import Trainer
from dfer_dist.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_trainer(
    run: RunDir,
    fold: int,
    config: Config,
    ranks: Ranks,
    preemption: PreemptionHandler,
    watchdog: Watchdog,
    enter_phase: Callable[[Phase], None],
) -> Trainer:
    """Build the trainer of a fold in the state of its last intact checkpoint. Collective."""
    folder = run.fold(fold)
    data = build_data(config=config, fold=fold, ranks=ranks)
    saved = read_checkpoint(folder=folder, ranks=ranks)
    image_size = models.resolve_image_size(config)
    before = saved.info if saved else CheckpointInfo(step=0)
    # Loader workers read while the model is built. They are forked before tracking starts threads.
    batches = build_batches(config=config, data=data, ranks=ranks, step=before.step)
    torch.manual_seed(config.train.seed)
    model = models.build_model(config.model, data.index.classes, config.data.num_frames, image_size)
    groups = param_groups(model)
    trained = dict(chain(*groups.values()))
    info = checkpoint_info(config=config, data=data, model=model, trained=trained)
    if saved:
        check_same_data(saved, info)
        portable.load_weights(model, trained, saved)
    watchdog.beat()
    log_start(config=config, data=data, model=model, ranks=ranks)
    engine = build_engine(OutputsModule(model), groups, config, ranks, data.plan.steps)
    tracking = build_tracking(run=run, fold=fold, ranks=ranks, keep_bytes=before.metrics_bytes)
    trainer = Trainer(
        config=config,
        folder=folder,
        ranks=ranks,
        data=data,
        batches=batches,
        engine=engine,
        objective=Objective(config, data.class_sizes, ranks.device, data.index.classes),
        tracking=tracking,
        checkpointer=build_checkpointer(config, folder, ranks, trained, tracking),
        preemption=preemption,
        watchdog=watchdog,
        enter_phase=enter_phase,
        info=info,
        state=TrainState(num_drifts=len(run.info().drift)),
    )
    if saved:
        resume(trainer, saved, run)
    watchdog.beat()
    return trainer


def build_checkpointer(
    config: Config,
    folder: FoldDir,
    ranks: Ranks,
    trained: Mapping[str, nn.Parameter],
    tracking: FoldTracking,
) -> AsyncCheckpointer:
    """Return the background writer of checkpoints of the ``trained`` parameters."""
    num_trained = sum(p.numel() for p in trained.values())
    log = tracking.metrics_log
    return AsyncCheckpointer(folder.checkpoints, config, ranks, num_trained, log)


def checkpoint_info(
    *, config: Config, data: FoldData, model: DFERCLIP, trained: Mapping[str, nn.Parameter]
) -> CheckpointInfo:
    """Return what checkpoints record of data, model and settings."""
    return CheckpointInfo(
        step=0,
        fold=data.fold,
        frozen_sha256=portable.frozen_checksum(model, trained),
        pretrained_sha256=model.pretrained_sha256,
        dataset=data.index.name,
        classes=list(data.index.classes),
        config_hash=config_hash(config),
        index_hash=data.index.hash,
        modalities=data.modalities,
        objective=config.train.objective.name,
        texts_sha256=data.descriptions.sha256 if data.descriptions else None,
        set_hashes={own.name: own.index_hash for own in data.sets},
    )


def read_checkpoint(*, folder: FoldDir, ranks: Ranks) -> Checkpoint | None:
    """Read the last intact checkpoint, chosen by rank 0; None where there is none. Collective."""
    newest = portable.newest(folder.checkpoints) if ranks.is_main else None
    newest = ranks.broadcast_object(newest)
    return portable.read(newest) if newest else None


def resume(trainer: Trainer, saved: Checkpoint, run: RunDir) -> None:
    """Bring a trainer, whose model has the weights already, to the state of a checkpoint.

    Collective.
    """
    restore(trainer.engine, saved, trainer.config, trainer.ranks)
    trainer.engine.load_state_dict(saved.state)
    trainer.state.load_state_dict(saved.state)
    trainer.state.add_drifts(run.info().drift)
    trainer.engine.bad_steps = trainer.state.bad_steps_in_a_row
    trainer.write_bad_steps()
    if not trainer.ranks.is_main:
        return
    folder = trainer.folder.checkpoints
    latest = portable.step_folder(folder, trainer.state.step)
    portable.set_pointer(folder, "LATEST", latest)
    if trainer.state.best:
        portable.set_pointer(folder, "BEST", trainer.selected_checkpoint)


def log_start(*, config: Config, data: FoldData, model: DFERCLIP, ranks: Ranks) -> None:
    """Log on rank 0 what is trained, on what data and on what devices."""
    micro_batch, accumulation = split_batch(config, ranks.world_size)
    batch = (
        f"batch {config.train.global_batch} = {ranks.world_size} ranks x "
        f"{micro_batch} clips x {accumulation} micro batches"
    )
    more = "".join(f"; {part}" for part in (data.descriptions, data.votes) if part)
    logger.info(
        f"fold {data.fold} of {data.index.name}: {data.plan.num_clips} training clips, "
        f"{len(data.test)} test clips; {ranks.world_size} x {device_name(ranks.device)}; "
        f"ZeRO-{config.train.zero_stage}, {config.train.precision.name}; {batch}; "
        f"{trained_line(model)}{more}"
    )
    for own in data.sets:
        logger.info(str(own))


def check_same_data(saved: Checkpoint, info: CheckpointInfo) -> None:
    """Check that a checkpoint was trained on the present parsing maps, landmarks and descriptions.

    Raises
    ------
    UserError
        If not.
    """
    other = "parsing maps or landmarks" if saved.info.modalities != info.modalities else ""
    if saved.info.texts_sha256 != info.texts_sha256:
        other = "descriptions"
    if other:
        raise UserError(
            f"{saved.path} was trained on other {other} than there are now: restore those, or "
            "start another run"
        )
