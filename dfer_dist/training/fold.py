"""One fold: what it is made of, how far it has come, and how that is saved, tested and taken up again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.checkpoints.optimizer_state import restore
from dfer_dist.config.schema import Config, Selection, Supervision, config_hash, split_batch
from dfer_dist.data.loading.loader import Batch, evaluation_loader, train_loader
from dfer_dist.data.loading.prefetch import check_cache
from dfer_dist.data.loading.sampler import (
    BalancedPlan,
    ClipSet,
    EpochPlan,
    all_clips,
    clips_by_class,
    train_val_split,
)
from dfer_dist.data.shards.index import Index, check_sizes, open_index
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.distributed.preemption import PreemptionHandler
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.evaluation.evaluate import Predictions, collect, predict
from dfer_dist.evaluation.metrics import Scores
from dfer_dist.models.build import build_model, resolve_image_size
from dfer_dist.models.tuning import param_groups, trained_line
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.tracking.mlflow_runs import ChildRun, is_tracked
from dfer_dist.tracking.sync import finalize_run
from dfer_dist.tracking.system_metrics import SystemMonitor
from dfer_dist.training.contrast import ClipTexts, read_clip_texts
from dfer_dist.training.engine import Engine, build_engine
from dfer_dist.training.meters import Spikes
from dfer_dist.training.objective import Objective
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """A test was left in the middle, by all ranks, since one of them was told to leave."""


@dataclass
class Fold:
    """One fold in training. ``step`` and what stands below it are saved with a checkpoint."""

    run: RunDir
    number: int
    config: Config
    index: Index
    ranks: Ranks
    engine: Engine
    plan: EpochPlan  # of epoch 0; carries what all epochs share
    stream: Iterator[Batch]  # this rank's micro batches from ``step`` on, to the end of training
    test: ClipSet
    val: ClipSet | None
    objective: Objective
    texts: ClipTexts | None  # descriptions, where some are learned from
    frozen_sha256: str
    modalities: (
        dict[str, Any] | None
    )  # the clips' parsing maps and landmarks, where the model sees some: hash, and how they were made
    metrics_log: MetricsLog | None  # rank 0's
    monitor: SystemMonitor | None  # of the first rank on each machine
    checkpointer: AsyncCheckpointer
    leave: PreemptionHandler
    watchdog: Watchdog
    drifts: list[dict[str, Any]]  # of the run so far
    step: int = 0  # done so far
    epoch_ended: bool = (
        True  # whether what happens at an epoch's end is done, where one has just ended
    )
    lost: set[str] = field(default_factory=set)  # keys of clips lost to damage so far
    bad_steps: list[dict[str, Any]] = field(
        default_factory=list
    )  # steps that were skipped, with the keys of their clips
    best: dict[str, Any] | None = (
        None  # epoch, step, war and uar of the best epoch, where one is selected
    )
    spikes: Spikes = field(default_factory=Spikes)
    drift: set[str] = field(
        default_factory=set
    )  # what was changed with --allow-drift since the fold began

    @property
    def dir(self) -> FoldDir:
        return self.run.fold(self.number)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.plan.steps

    @property
    def at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.plan.steps == 0

    @property
    def save_due(self) -> bool:
        """Whether rank 0 finds it time for a checkpoint."""
        every = self.config.train.save_steps
        at_step = every is not None and self.step % every == 0 and not self.checkpointer.failures
        return self.ranks.is_main and (self.checkpointer.due or at_step)

    def close_tracking(self, status: str) -> None:
        """Send what may be sent, and end the fold's run at the server as ``status``. Not collective."""
        if self.monitor:
            self.monitor.close()
        if self.metrics_log:
            self.metrics_log.close(finalize_run(self.run, self.number, status))

    def log(self, values: dict[str, float]) -> None:
        if self.metrics_log:
            self.metrics_log.log(self.step, self.epoch, values)

    def save(self, best: bool = False) -> None:
        """Begin to write a checkpoint; with ``best``, the one that is tested in the end. Collective."""
        self.watchdog.beat()
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "fold": self.number,
            "epoch_ended": self.epoch_ended,
        }
        state |= {
            "lost_clips": sorted(self.lost),
            "skipped_steps": len(self.bad_steps),
            "bad_steps": list(self.bad_steps),
        }
        state |= {
            "best": self.best,
            "recent_losses": self.spikes.recent,
            "base_lr": self.engine.base_lr,
        }
        state |= {"drift": sorted(self.drift), "drifts": len(self.drifts)}
        state |= {"metrics_bytes": self.metrics_log.size if self.metrics_log else 0}
        state |= {
            "frozen_sha256": self.frozen_sha256,
            "pretrained_sha256": self.engine.model.pretrained_sha256,
        }
        state |= {"dataset": self.index.name, "classes": list(self.index.classes)}
        state |= {
            "config_hash": config_hash(self.config),
            "index_hash": self.index.hash,
            "levels": self.modalities,
        }
        state |= {
            "objective": self.config.train.objective.name,
            "texts_sha256": self.texts.sha256 if self.texts else None,
        }
        self.checkpointer.save(self.engine, state, best)
        self.watchdog.beat()

    def skip(self, what: str, keys: list[str]) -> None:
        """Note that the step just done was skipped since its loss or gradient, ``what``, was not finite, with clips ``keys``."""
        self.bad_steps.append({"step": self.step, "not_finite": what, "clips": keys})
        self._write_bad_steps()

    def _bad_in_a_row(self) -> int:
        """How many of the last steps were bad, up to the one that was done last."""
        bad, count = {b["step"] for b in self.bad_steps}, 0
        while self.step - count in bad:
            count += 1
        return count

    def _write_bad_steps(self) -> None:
        if self.ranks.is_main and (self.bad_steps or self.dir.bad_steps.exists()):
            try:
                write_json(self.dir.bad_steps, {"steps": self.bad_steps})
            except OSError as e:  # a full disk; the next checkpoint has them too
                logger.warning(f"{self.dir.bad_steps} cannot be written: {e}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint's ``state.json`` stands."""
        self.step, self.epoch_ended, self.best = state["step"], state["epoch_ended"], state["best"]
        self.lost, self.bad_steps, self.spikes = (
            set(state["lost_clips"]),
            state["bad_steps"],
            Spikes(state["recent_losses"]),
        )
        self.engine.bad_steps = self._bad_in_a_row()
        self.drift = set(state["drift"]).union(
            *(d["changes"] for d in self.drifts[state["drifts"] :])
        )
        self._write_bad_steps()
        if self.ranks.is_main:
            checkpoint.set_pointer(
                self.dir.checkpoints,
                "LATEST",
                checkpoint.step_folder(self.dir.checkpoints, self.step),
            )
            if self.best:
                checkpoint.set_pointer(self.dir.checkpoints, "BEST", self.best_checkpoint)

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint that the result is of: the best epoch's, or the last one."""
        return checkpoint.step_folder(
            self.dir.checkpoints, self.best["step"] if self.best else self.step
        )

    def evaluate(
        self, clips: ClipSet, shuffle_frames: bool = False
    ) -> tuple[Predictions | None, Scores]:
        """Predict every clip once. The table is rank 0's; every rank gets the scores. Collective.

        Raises
        ------
        Preempted
            If a rank was told to leave.
        """
        model, ranks, config = self.engine.deepspeed, self.ranks, self.config
        model.eval()
        with torch.no_grad():
            text = model.module.text_features()
        views, modalities = config.eval.views, config.model.modalities
        batches = evaluation_loader(
            self.index,
            config.data,
            clips,
            batch=config.eval.batch,
            rank=ranks.rank,
            world_size=ranks.world,
            seed=config.train.seed,
            views=views,
            shuffle_frames=shuffle_frames,
            modalities=modalities,
        )
        try:
            rows = predict(lambda frames: model(frames, text), batches, ranks.device, self._go_on)
        finally:
            model.train()
        table = collect(rows, self.index, clips, ranks)
        return table, ranks.broadcast_object(table.score(self.index.classes) if table else None)  # type: ignore[return-value]

    def _go_on(self, _: int) -> None:
        self.watchdog.beat()
        if self.ranks.all_reduce_sum([bool(self.leave)])[0]:  # every rank sees as many batches
            raise Preempted


def check_same_modalities(saved: checkpoint.Checkpoint, modalities: dict[str, Any] | None) -> None:
    """Whether a checkpoint was trained on the parsing maps and landmarks that lie beside the shards now, ``modalities``.

    Raises
    ------
    UserError
        If not.
    """
    if saved.state.get("levels") != modalities:
        raise UserError(
            f"{saved.path} was trained on other parsing maps or landmarks than lie beside the shards: make these anew, or begin another run"
        )


def check_same_texts(saved: checkpoint.Checkpoint, texts: ClipTexts | None) -> None:
    """Whether a checkpoint was trained on the descriptions ``texts``.

    Raises
    ------
    UserError
        If not.
    """
    if saved.state.get("texts_sha256") != (texts.sha256 if texts else None):
        raise UserError(
            f"{saved.path} was trained on other descriptions than there are now: begin another run, or put those back"
        )


def build(
    run: RunDir,
    number: int,
    config: Config,
    ranks: Ranks,
    leave: PreemptionHandler,
    watchdog: Watchdog,
) -> Fold:
    """Everything a fold needs, brought to where its last good checkpoint stands."""
    index = open_index(config.data, config.data.loss_budget)
    check_sizes(index, index.test_shards(number))  # now, rather than after the training
    train, val = all_clips(index, index.train_shards(number)), None
    if config.train.selection is Selection.best_val:
        train, val = train_val_split(
            index, index.train_shards(number), config.train.val_fraction, config.train.seed
        )
    by_class = (
        clips_by_class(index, train) if config.data.balanced or config.train.class_balance else ()
    )
    shape = (train, config.train.seed, 0, config.train.global_batch, config.data.block)
    plan = (
        BalancedPlan(*shape, tuple(c for c in by_class if len(c)))
        if config.data.balanced
        else EpochPlan(*shape)
    )
    micro, _ = split_batch(
        config, ranks.world
    )  # a batch that cannot be cut is found before the model is built
    check_cache(index, plan, ranks.local_ranks, ranks.world)
    modalities = ranks.broadcast_object(
        describe_modalities(index, config.model.modalities) if ranks.is_main else None
    )
    texts = None
    if config.train.objective is not Supervision.labels:
        texts = read_clip_texts(index, train, number, config)
    folder = run.fold(number).checkpoints
    found = ranks.broadcast_object(checkpoint.newest(folder) if ranks.is_main else None)
    saved = checkpoint.read(found) if found else None
    size, at = resolve_image_size(config), divmod(saved.state["step"] if saved else 0, plan.steps)
    # as early as can be: loader workers read while the model is built, and are forked before the threads of tracking are there
    stream = train_loader(
        index,
        config.data,
        plan,
        epochs=config.train.epochs,
        start=at,
        rank=ranks.rank,
        world_size=ranks.world,
        micro_batch=micro,
        modalities=config.model.modalities,
    )
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, index.classes, config.data.num_frames, size)
    groups = param_groups(model)
    trained = {name: p for group in groups.values() for name, p in group}
    frozen, described = checkpoint.frozen_checksum(model, trained), trained_line(model)
    if saved:
        check_same_modalities(saved, modalities)
        check_same_texts(saved, texts)
        checkpoint.load_weights(model, trained, saved)
    watchdog.beat()
    engine = build_engine(model, groups, config, ranks, plan.steps)
    test = all_clips(index, index.test_shards(number))
    objective = Objective(config, [len(c) for c in by_class], ranks.device)
    metrics_log, monitor, tracked = None, None, is_tracked(run)
    where = run.fold(number)
    if ranks.is_main:
        logger.info(described if texts is None else f"{described}; {texts}")
        connect = ChildRun(run, number, running=True) if tracked else None
        metrics_log = MetricsLog(
            where.metrics, where.sent, connect, saved.state["metrics_bytes"] if saved else 0
        )
    if ranks.local_rank == 0 and tracked:
        monitor = SystemMonitor(where, ChildRun(run, number, running=False))
    checkpointer = AsyncCheckpointer(
        folder, config, ranks, sum(p.numel() for p in trained.values()), metrics_log
    )
    data = (
        index,
        ranks,
        engine,
        plan,
        stream,
        test,
        val,
        objective,
        texts,
        frozen,
        modalities,
        metrics_log,
        monitor,
        checkpointer,
    )
    fold = Fold(run, number, config, *data, leave, watchdog, run.drifts())
    if saved:
        restore(engine, saved, config, ranks)
        fold.load_state_dict(saved.state)
    watchdog.beat()
    return fold
