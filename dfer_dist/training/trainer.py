"""The training loop of one fold, its validation and its result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch.profiler import record_function

from dfer_dist.checkpoints import portable
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.checkpoints.optimizer_state import averaged_weights, select_weights
from dfer_dist.checkpoints.state import CheckpointInfo
from dfer_dist.config.schema import Config, Selection
from dfer_dist.data.loading.device import DevicePrefetcher
from dfer_dist.data.loading.loader import Batch
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index
from dfer_dist.distributed.preemption import Preempted, PreemptionHandler
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.evaluation.evaluate import build_test_loader, collect, predict
from dfer_dist.evaluation.metrics import metric_values
from dfer_dist.evaluation.predictions import Predictions
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import Scores
from dfer_dist.runs.status import Phase
from dfer_dist.training.data import FoldData
from dfer_dist.training.engine import Engine, StepOutcome
from dfer_dist.training.losses import Objective
from dfer_dist.training.meters import Meter, ProgressLog
from dfer_dist.training.result import final_metrics, fold_result, run_tests
from dfer_dist.training.speed.profiling import StepProfiler
from dfer_dist.training.speed.utilization import Utilization
from dfer_dist.training.state import BadStep, BestEpoch, TrainState
from dfer_dist.training.step import StepResult, StepVotes, log_lost_clips
from dfer_dist.training.tracking import FoldTracking
from dfer_dist.utils.errors import UserError, first_of

logger = logging.getLogger(__name__)
_MAX_CLIPS = 5  # in an error


@dataclass(eq=False, kw_only=True)
class Trainer:
    """Trains and tests one fold.

    Built by :func:`dfer_dist.training.build.build_trainer`. Every rank has one; its methods are
    collective. ``batches`` yields this rank's micro batches from the current step to the end of
    training. ``enter_phase`` records what the ranks do, if it is not what they did before.
    ``state`` is saved with every checkpoint, and ``info``, which says what is trained on.
    """

    config: Config
    folder: FoldDir
    ranks: Ranks
    data: FoldData
    batches: Iterator[Batch]
    engine: Engine
    objective: Objective
    tracking: FoldTracking
    checkpointer: AsyncCheckpointer
    preemption: PreemptionHandler
    watchdog: Watchdog
    enter_phase: Callable[[Phase], None]
    info: CheckpointInfo
    state: TrainState

    def __post_init__(self) -> None:
        """Start to measure and to log."""
        self.meter = Meter()
        self.inputs = DevicePrefetcher(self.batches, self.ranks.device)
        traced = self.config.train.profile * self.ranks.is_main
        self.profiler = StepProfiler(self.folder.profile, traced)
        self.utilization = Utilization(self.config, self.data.index.classes, self.ranks)
        self.progress = ProgressLog(
            self.config.train,
            steps_per_epoch=self.data.plan.steps,
            meter=self.meter,
            utilization=self.utilization,
            device=self.ranks.device,
        )

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.state.step // self.data.plan.steps

    def fit(self) -> None:
        """Train from the current step to the last.

        Raises
        ------
        Preempted
            If a rank was preempted, once the state is saved.
        """
        if not self.state.epoch_ended:
            self.end_epoch()
        first = self.state.step
        for step in range(first, self.engine.total_steps):
            result = self.train_step(step)
            self.enter_phase(Phase.TRAINING)
            votes = self.reduce_votes(result)
            self.check_step(result, votes)
            self.log_step(result, votes)
            if step == first:
                self.tracking.start()
            preempted = bool(votes.preempted)
            if self.state.step % self.data.plan.steps == 0:
                self.end_epoch(preempted)
            elif preempted or (votes.save_due and not self.engine.bad_steps):
                # While steps are skipped, the last checkpoint is worth more than a new one.
                self.save()
            if preempted:
                self.enter_phase(Phase.SAVING)
                self.checkpointer.wait()
                raise Preempted
        self.enter_phase(Phase.SAVING)
        self.profiler.stop()
        # End the loader workers before the test.
        self.batches = self.inputs.batches = iter(())
        self.checkpointer.wait(again=self.save)

    def train_step(self, step: int) -> StepResult:
        """Do one optimizer step; ``step`` counts the steps done before."""
        self.watchdog.beat()
        self.meter.start_step()
        learning_rates = self.engine.set_learning_rates(step)
        keys, lost, losses = list[list[str]](), set[str](), list[torch.Tensor]()
        for _ in range(self.engine.accumulation):
            with self.meter.waiting():
                batch = next(self.inputs)
            losses.append(self._micro_step(batch))
            keys += batch.sources
            lost |= log_lost_clips(batch)
        clip_losses = list(zip(keys, torch.cat(losses).tolist(), strict=True))
        self.state.step = step + 1
        self.meter.end_step(self.config.train.global_batch)
        self.profiler.step(self.state.step)
        return StepResult(clip_losses, lost, learning_rates)

    def _micro_step(self, batch: Batch) -> torch.Tensor:
        """Run forward and backward pass on a micro batch; return the losses, float32 [b]."""
        device = self.ranks.device
        tokens, has_description = None, None
        if self.data.descriptions:
            tokens, has_description = self.data.descriptions.tokenize(batch.keys)
            tokens = tokens.to(device, non_blocking=True)
        drop_path = self.engine.deepspeed.module.model.drop_path
        if drop_path:
            drop_path.sample(batch.keys, self.config.train.seed, self.epoch, device)
        with record_function("forward"):
            outputs = self.engine.deepspeed(
                self.inputs.pixels(batch), tokens=tokens, with_logits=self.objective.uses_labels
            )
            losses = self.objective(
                outputs, self.data.targets(batch), batch.valid, has_description, batch.own_weights
            )
        with self.meter.waiting():
            self.inputs.prefetch()
        self.engine.micro_step(losses.mean())
        return losses.detach()

    def reduce_votes(self, result: StepResult) -> StepVotes:
        """Return what all ranks have to decide on together after a step."""
        checkpointer = self.checkpointer
        self.preemption.seconds_needed = 2 * self.meter.longest_step + 2 * checkpointer.seconds
        votes = StepVotes(
            loss=sum(loss for _, loss in result.clip_losses),
            lost_clips=len(result.lost_clips),
            preempted=self.preemption.preempted,
            save_due=self._is_save_due(),
            save_failed=checkpointer.failed,
        )
        return votes.reduce(self.ranks)

    def _is_save_due(self) -> bool:
        """Return whether rank 0 wants a checkpoint after this step."""
        every = self.config.train.save_steps
        at_step = every is not None and self.state.step % every == 0
        is_due = self.checkpointer.due or (at_step and not self.checkpointer.failures)
        return self.ranks.is_main and is_due

    def check_step(self, result: StepResult, votes: StepVotes) -> None:
        """Record lost clips and a skipped step.

        Raises
        ------
        UserError
            If checkpoints cannot be written, more clips are damaged than the settings allow, or
            too many steps in a row were skipped.
        """
        if votes.save_failed:
            raise UserError(self.ranks.broadcast_object(self.checkpointer.verdict()))
        if votes.lost_clips:
            self._record_lost_clips(result.lost_clips)
        outcome = self.engine.judge_step(votes.loss)
        self.state.overflow_steps += outcome is StepOutcome.OVERFLOW
        if outcome is StepOutcome.BAD:
            self._record_bad_step(result.clip_losses)

    def _record_lost_clips(self, lost: set[str]) -> None:
        of_all_ranks = self.ranks.gather_objects(lost) or []
        self.state.lost_clips = self.ranks.broadcast_object(
            sorted(lost.union(self.state.lost_clips, *of_all_ranks))
        )
        num_lost, budget = len(self.state.lost_clips), self.config.data.loss_budget
        if num_lost > budget:
            raise UserError(
                f"{num_lost} training clips are damaged and data.loss_budget={budget}: "
                f"see the lines 'lost:' in {self.folder.log}, copy those shards again, "
                "or allow the loss"
            )

    def _record_bad_step(self, clip_losses: list[tuple[list[str], float]]) -> None:
        """Record a skipped step with the clips that may have caused it."""
        shares = self.ranks.gather_objects(clip_losses) or []
        bad = self.ranks.broadcast_object(BadStep.of(self.state.step, chain(*shares)))
        self.state.bad_steps.append(bad)
        self.write_bad_steps()
        logger.warning(
            f"step {bad.step}: the {bad.not_finite} was not finite, the step was skipped; "
            f"clips: {', '.join(bad.clips)}"
        )
        limit = self.config.train.max_bad_steps
        if self.engine.bad_steps >= limit:
            recent = sorted({key for b in self.state.bad_steps[-limit:] for key in b.clips})
            raise UserError(
                f"{limit} steps in a row had a loss or gradient that was not finite, "
                f"with clips {first_of(recent, _MAX_CLIPS)} (all in {self.folder.bad_steps}): "
                "look at these, or choose smaller learning rates; the last good checkpoint is kept"
            )

    def write_bad_steps(self) -> None:
        """Write all bad steps to ``bad_steps.json``."""
        if self.ranks.is_main:
            self.state.write_bad_steps(self.folder.bad_steps)

    def log_step(self, result: StepResult, votes: StepVotes) -> None:
        """Log a step to the metrics file and the log, where a line is due or the loss spikes."""
        state, train = self.state, self.config.train
        loss = votes.loss / (self.ranks.world_size * len(result.clip_losses))
        is_spike = state.is_spike(loss)
        if is_spike:
            logger.warning(
                f"step {state.step}: loss {loss:.4g} is far above the last {state.WINDOW}"
            )
        if not self.ranks.is_main:
            return
        if is_spike or state.step % train.log_every == 0:
            throughput = self.meter.throughput("metrics")
            metrics = {
                "loss": loss,
                **self.engine.metrics(),
                "loss_spike": float(is_spike),
                **throughput._asdict(),
                **self.utilization.metrics(throughput.clips_per_second),
                "skipped_steps": len(state.bad_steps),
                "lost_clips": len(state.lost_clips),
                **{f"lr_{name}": rate for name, rate in result.learning_rates.items()},
            }
            self.tracking.log(state.step, self.epoch, metrics)
        self.progress.log_step(state.step, loss, result.learning_rates)

    def end_epoch(self, preempted: bool = False) -> None:
        """Validate where an epoch's scores are asked for, and save where it is due.

        Raises
        ------
        Preempted
            If a rank was preempted during the validation, once the state is saved.
        """
        train = self.config.train
        improved, scores, split = False, None, "val" if self.data.val else "test"
        if train.selection is not Selection.last:
            scores = self._validate_epoch(split)
            improved = self._update_best(scores)
        # finish() tests the last one
        elif self.config.eval.each_epoch and self.epoch < train.epochs:
            scores = self._validate_epoch(split)
        self.progress.log_epoch(self.epoch, scores, split)
        is_save_epoch = self.epoch % train.save_epochs == 0 or self.epoch == train.epochs
        if preempted or improved or is_save_epoch:
            self.save(best=improved)
        if improved:
            # Wait for the file: what is written after further steps would be other weights.
            again = None if preempted else partial(self.save, best=True)
            self.checkpointer.wait(again=again)

    def _validate_epoch(self, split: str) -> Scores:
        self.state.epoch_ended = False
        try:
            with averaged_weights(self.engine):
                _, scores = self.validate(self.data.val or self.data.test)
        except Preempted:
            self.save()
            self.checkpointer.wait()
            raise
        self.state.epoch_ended = True
        metrics = {f"{split}_{name}": value for name, value in metric_values(scores).items()}
        self.tracking.log(self.state.step, self.epoch, metrics)
        return scores

    def _update_best(self, scores: Scores) -> bool:
        """Return whether this epoch is the best so far, and record it if so."""
        state = self.state
        if state.best and scores.war <= state.best.war:
            return False
        state.best = BestEpoch(self.epoch, state.step, war=scores.war, uar=scores.uar)
        return True

    def save(self, best: bool = False) -> None:
        """Begin to write a checkpoint; with ``best``, the one that is tested in the end."""
        self.watchdog.beat()
        info = replace(self.info, epoch=self.epoch, metrics_bytes=self.tracking.num_bytes).to_json()
        state = {**info, **self.state.state_dict(), **self.engine.state_dict()}
        self.checkpointer.save(self.engine, state, best)
        self.watchdog.beat()

    @property
    def selected_checkpoint(self) -> Path:
        """The checkpoint that the result is of: the best epoch's, or the last one."""
        return portable.step_folder(self.folder.checkpoints, self.state.selected_step)

    def validate(
        self, clips: ClipSet, shuffle_frames: bool = False, index: Index | None = None
    ) -> tuple[Predictions | None, Scores]:
        """Predict every clip once; return predictions, only on rank 0, and scores.

        The clips are of the first set, or of that of ``index``.

        Raises
        ------
        Preempted
            If a rank was preempted.
        """
        self.enter_phase(Phase.TESTING)
        engine, ranks = self.engine.deepspeed, self.ranks
        model = engine.module.model
        index = index or self.data.tested[0].index
        engine.eval()
        with torch.no_grad():
            text = model.text_features()
        batches = build_test_loader(self.config, index, clips, ranks, shuffle_frames)
        try:
            rows = predict(
                lambda frames: model.merge_polarities(engine(frames, text)),
                batches,
                ranks.device,
                self._check_preemption,
                self.config.model.output,
            )
        finally:
            engine.train()
        table = collect(rows, index, clips, ranks, self.config.model.output)
        scores = table.score(index.classes) if table else None
        return table, ranks.broadcast_object(scores)  # type: ignore[return-value]

    def _check_preemption(self, _: int) -> None:
        """Raise :class:`Preempted` on all ranks, which see equally many batches."""
        self.watchdog.beat()
        if self.ranks.all_reduce_sum([self.preemption.preempted])[0]:
            raise Preempted

    def finish(self) -> None:
        """Test the selected weights and write the result of the fold.

        ``result.json`` is written last: it means that all other files are there.

        Raises
        ------
        Preempted
            If a rank was preempted; the next attempt tests again.
        """
        from dfer_dist.reporting.plots.page import curves_png
        from dfer_dist.reporting.plots.scores import confusion_png

        select_weights(self.engine, self.selected_checkpoint if self.state.best else None)
        tests = run_tests(self)
        self.enter_phase(Phase.SAVING)
        if not tests.table:
            return
        tests.table.write(self.folder.predictions)
        result = fold_result(self, tests, tests.table.score_votes())
        self.tracking.log(self.state.step, self.epoch, final_metrics(result))
        run = self.folder.root.parent.name
        confusion_png(run, result, self.folder.confusion)
        curves_png(run, result, self.folder)
        result.write(self.folder.result)
        logger.info(f"test UAR {result.uar:.2f}, WAR {result.war:.2f} on {result.n} clips")
