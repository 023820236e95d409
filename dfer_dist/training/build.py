"""Builds a trainer from the settings of a run and the last checkpoint of a fold."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dfer_dist.checkpoints import portable
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.checkpoints.optimizer_state import restore
from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.checkpoints.state import CheckpointInfo
from dfer_dist.config.schema import Config, config_hash
from dfer_dist.distributed.preemption import PreemptionHandler
from dfer_dist.distributed.process_group import Ranks, device_name
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.models import build as models
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.outputs import OutputsModule
from dfer_dist.models.tuning import param_groups, trained_line
from dfer_dist.runs.layout import RunDir
from dfer_dist.training.data import FoldData, build_batches, build_data
from dfer_dist.training.descriptions import ClipDescriptions
from dfer_dist.training.engine import Engine, build_engine
from dfer_dist.training.losses import Objective
from dfer_dist.training.state import TrainState
from dfer_dist.training.tracking import build_tracking
from dfer_dist.training.trainer import Trainer
from dfer_dist.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_trainer(
    *,
    run: RunDir,
    fold: int,
    config: Config,
    ranks: Ranks,
    preemption: PreemptionHandler,
    watchdog: Watchdog,
) -> Trainer:
    """Build the trainer of a fold in the state of its last intact checkpoint. Collective."""
    folder = run.fold(fold)
    data = build_data(config=config, fold=fold, ranks=ranks)
    saved = read_checkpoint(run=run, fold=fold, ranks=ranks)
    image_size = models.resolve_image_size(config)
    # Loader workers read while the model is built. They are forked before the threads of tracking
    # are started.
    step, keep_bytes = 0, 0
    if saved:
        step, keep_bytes = saved.state["step"], saved.state["metrics_bytes"]
    batches = build_batches(config=config, data=data, ranks=ranks, step=step)
    model = build_model(config=config, data=data, image_size=image_size, saved=saved)
    watchdog.beat()
    engine = build_engine(OutputsModule(model.module), model.groups, config, ranks, data.plan.steps)
    objective = Objective(config, data.class_sizes, ranks.device)
    log_start(config=config, data=data, engine=engine, model=model, ranks=ranks)
    tracking = build_tracking(run=run, fold=fold, ranks=ranks, keep_bytes=keep_bytes)
    trainer = Trainer(
        config=config,
        folder=folder,
        ranks=ranks,
        data=data,
        batches=batches,
        engine=engine,
        objective=objective,
        tracking=tracking,
        checkpointer=AsyncCheckpointer(
            folder.checkpoints, config, ranks, model.num_trained, tracking.metrics_log
        ),
        preemption=preemption,
        watchdog=watchdog,
        info=checkpoint_info(config=config, data=data, model=model),
        state=TrainState(num_drifts=len(run.info().drift)),
    )
    if saved:
        resume(trainer, saved, run)
    watchdog.beat()
    return trainer


@dataclass(frozen=True)
class BuiltModel:
    """A model with what has to be known of it before DeepSpeed wraps it.

    ``groups`` has the trained parameters by group and name; ``summary`` says how many they are.
    """

    module: DFERCLIP
    groups: dict[str, list[tuple[str, nn.Parameter]]]
    frozen_sha256: str
    summary: str

    @property
    def num_trained(self) -> int:
        """The number of trained scalars."""
        return sum(p.numel() for group in self.groups.values() for _, p in group)


def build_model(
    *, config: Config, data: FoldData, image_size: int, saved: Checkpoint | None
) -> BuiltModel:
    """Build the model, with pretrained weights or those of a checkpoint.

    Raises
    ------
    UserError
        If the weights are missing, or the checkpoint is of another model or of other data.
    """
    torch.manual_seed(config.train.seed)
    module = models.build_model(
        config.model, data.index.classes, config.data.num_frames, image_size
    )
    groups = param_groups(module)
    trained = {name: p for group in groups.values() for name, p in group}
    built = BuiltModel(
        module=module,
        groups=groups,
        frozen_sha256=portable.frozen_checksum(module, trained),
        summary=trained_line(module),
    )
    if saved:
        check_same_modalities(saved, data.modalities)
        check_same_descriptions(saved, data.descriptions)
        portable.load_weights(module, trained, saved)
    return built


def checkpoint_info(*, config: Config, data: FoldData, model: BuiltModel) -> CheckpointInfo:
    """Return what checkpoints record of data, model and settings."""
    return CheckpointInfo(
        step=0,
        fold=data.fold,
        frozen_sha256=model.frozen_sha256,
        pretrained_sha256=model.module.pretrained_sha256,
        dataset=data.index.name,
        classes=list(data.index.classes),
        config_hash=config_hash(config),
        index_hash=data.index.hash,
        modalities=data.modalities,
        objective=config.train.objective.name,
        texts_sha256=data.descriptions.sha256 if data.descriptions else None,
    )


def read_checkpoint(*, run: RunDir, fold: int, ranks: Ranks) -> Checkpoint | None:
    """Read the last intact checkpoint, chosen by rank 0; None where there is none. Collective."""
    newest = portable.newest(run.fold(fold).checkpoints) if ranks.is_main else None
    newest = ranks.broadcast_object(newest)
    if newest:
        return portable.read(newest)
    return None


def resume(trainer: Trainer, saved: Checkpoint, run: RunDir) -> None:
    """Bring a trainer, whose model has the weights already, to the state of a checkpoint.

    Collective.
    """
    restore(trainer.engine, saved, trainer.config, trainer.ranks)
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


def log_start(
    *, config: Config, data: FoldData, engine: Engine, model: BuiltModel, ranks: Ranks
) -> None:
    """Log on rank 0 what is trained, on what data and on what devices."""
    batch = (
        f"batch {config.train.global_batch} = {ranks.world_size} ranks x "
        f"{engine.micro_batch} clips x {engine.accumulation} micro batches"
    )
    descriptions = f"; {data.descriptions}" if data.descriptions else ""
    logger.info(
        f"fold {data.fold} of {data.index.name}: {data.num_train_clips} training clips, "
        f"{len(data.test)} test clips; {ranks.world_size} x {device_name(ranks.device)}; "
        f"ZeRO-{config.train.zero_stage}, {config.train.precision.name}; {batch}; "
        f"{model.summary}{descriptions}"
    )


def check_same_modalities(saved: Checkpoint, modalities: dict[str, Any] | None) -> None:
    """Check that a checkpoint was trained on the parsing maps and landmarks next to the shards.

    Raises
    ------
    UserError
        If not.
    """
    if saved.state.get("levels") != modalities:
        raise UserError(
            f"{saved.path} was trained on other parsing maps or landmarks than those next to the "
            "shards: make these again, or start another run"
        )


def check_same_descriptions(saved: Checkpoint, descriptions: ClipDescriptions | None) -> None:
    """Check that a checkpoint was trained on these descriptions.

    Raises
    ------
    UserError
        If not.
    """
    if saved.state.get("texts_sha256") != (descriptions and descriptions.sha256):
        raise UserError(
            f"{saved.path} was trained on other descriptions than there are now: "
            "start another run, or restore those"
        )
