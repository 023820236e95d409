"""Train and test one fold: ``python -m dfer_dist.train --run DIR --fold K``, once a rank.

Leaves with status 0 when the fold is done, 75 when it was told to leave and saved, 2 for a mistake that a person can mend.
"""

from __future__ import annotations

from dfer_dist.preempt import EXIT_PREEMPTED, LeaveFlag

LEAVE = LeaveFlag()
if __name__ == "__main__":
    LEAVE.install()  # before the imports below, which take seconds: a signal during them must not kill the job

import argparse
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dfer_dist import UserError, checkpoint
from dfer_dist.config import Config, Selection, config_hash, split_batch
from dfer_dist.configfile import read_config
from dfer_dist.data.plan import BalancedPlan, ClipSet, EpochPlan, clips_by_class, hold_out, whole_shards
from dfer_dist.data.prefetch import check_cache
from dfer_dist.data.shards import Index, check_sizes, open_index
from dfer_dist.data.stream import Batch, evaluation_stream, train_stream
from dfer_dist.engine import Engine, build_engine
from dfer_dist.evaluate import Predictions, collect, predict
from dfer_dist.meter import Meter
from dfer_dist.metrics import Scores
from dfer_dist.model import build_model, param_groups, settle_image_size
from dfer_dist.objective import Objective
from dfer_dist.ranks import Ranks, start
from dfer_dist.report import confusion_png
from dfer_dist.rundir import FoldDir, RunDir, write_json
from dfer_dist.status import Attempt
from dfer_dist.tracking import FAILED, FINISHED, KILLED, Tracker, close_fold

DONE, PREEMPTED = "DONE", "PREEMPTED"


@dataclass
class Fold:
    """One fold in training: what it is made of, and how far it has come."""

    run: RunDir
    number: int
    config: Config
    index: Index
    ranks: Ranks
    engine: Engine
    plan: EpochPlan  # of epoch 0; carries what all epochs share
    test: ClipSet
    val: ClipSet | None
    objective: Objective
    frozen_sha256: str
    tracker: Tracker | None
    step: int = 0  # done so far
    lost: set[str] = field(default_factory=set)  # keys of clips lost to damage so far
    skipped: int = 0  # steps skipped for non-finite gradients so far
    best: dict[str, Any] | None = None  # epoch, step, war and uar of the best epoch, where one is selected
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def dir(self) -> FoldDir:
        return self.run.fold(self.number)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.plan.steps

    def log(self, values: dict[str, float]) -> None:
        if self.tracker:
            self.tracker.log(self.step, self.epoch, values)

    def save(self) -> Path:
        """Write a checkpoint. Collective."""
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "fold": self.number,
            "lost_clips": sorted(self.lost),
            "skipped_steps": self.skipped,
        }
        state |= {"best": self.best, "frozen_sha256": self.frozen_sha256, "base_lr": self.engine.base_lr}
        state |= {"pretrained_sha256": self.engine.model.pretrained_sha256}
        state |= {"config_hash": config_hash(self.config), "index_hash": self.index.hash}
        path = checkpoint.save(self.dir.checkpoints, self.engine, self.config, state, self.ranks)
        self.saved_at = time.monotonic()
        return path


def fit(fold: Fold, leave: LeaveFlag) -> str:
    """Train from where the fold stands to the last step, or until told to leave; everything else hangs off this loop."""
    engine, ranks, config, plan = fold.engine, fold.ranks, fold.config, fold.plan
    at = divmod(fold.step, plan.steps)
    stream = train_stream(fold.index, config.data, plan, config.train.epochs, at, ranks.rank, ranks.world, engine.micro_batch)
    meter = Meter()
    for step in range(fold.step, engine.total_steps):
        rates = engine.set_learning_rates(step)
        loss, lost = torch.zeros((), device=ranks.device), set[str]()
        for _ in range(engine.accumulation):
            with meter.waiting():
                batch = next(stream)
            part = fold.objective(engine.deepspeed(batch.pixels(ranks.device)), batch.labels, batch.valid)
            engine.micro_step(part)
            loss += part.detach() / engine.accumulation
            lost |= report_lost(batch)
        fold.step = step + 1
        save_due = ranks.is_main and time.monotonic() - fold.saved_at > 60 * config.train.save_minutes
        loss_sum, lost_sum, leave_sum, save_sum = ranks.sum([loss.item(), len(lost), bool(leave), save_due])
        if lost_sum:
            shares = ranks.gather(lost)
            fold.lost |= ranks.share(set().union(*shares) if shares else set())
        check_step(fold)
        meter.count(config.train.global_batch)
        if fold.step % config.train.log_every == 0:
            figures = {"loss": loss_sum / ranks.world, "grad_norm": engine.gradient_norm(), **meter.read()}
            fold.log(
                {
                    **figures,
                    "skipped_steps": fold.skipped,
                    "lost_clips": len(fold.lost),
                    **{f"lr_{k}": v for k, v in rates.items()},
                }
            )
        if fold.step % plan.steps == 0:
            end_epoch(fold)
        elif save_sum and not leave_sum:
            fold.save()
        if leave_sum:
            fold.save()
            return PREEMPTED
    return DONE


def report_lost(batch: Batch) -> set[str]:
    """Keys of the batch's clips that are damaged, after a line for each."""
    for line in batch.lost:
        print(f"lost: {line}", file=sys.stderr, flush=True)
    return {key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if key and not valid}


def check_step(fold: Fold) -> None:
    """Hold losses of data and of steps against what the config allows; every rank comes to the same verdict."""
    train, data = fold.config.train, fold.config.data
    if len(fold.lost) > data.loss_budget:
        raise UserError(
            f"{len(fold.lost)} training clips are damaged and data.loss_budget={data.loss_budget}: see the lines 'lost:' in "
            f"{fold.dir.log.name} beside {fold.dir.status}, copy those shards again, or allow the loss"
        )
    if fold.engine.step_was_skipped():
        fold.skipped += 1
        print(f"step {fold.step}: gradients were not finite, the step was skipped", file=sys.stderr, flush=True)
    if fold.engine.bad_steps >= train.max_bad_steps:
        raise UserError(
            f"{train.max_bad_steps} steps in a row had gradients that were not finite: choose smaller learning rates; "
            f"the last good checkpoint is in {fold.dir.checkpoints}"
        )


def end_epoch(fold: Fold) -> None:
    """Validate where an epoch is to be selected, and save where it is time to."""
    train = fold.config.train
    improved = False
    if train.selection is not Selection.last:
        clips, name = (fold.val, "val") if fold.val else (fold.test, "test")
        _, scores = evaluate(fold, clips)
        fold.log({f"{name}_uar": scores.uar, f"{name}_war": scores.war})
        improved = fold.best is None or scores.war > fold.best["war"]
        if improved:
            fold.best = {"epoch": fold.epoch, "step": fold.step, "war": scores.war, "uar": scores.uar}
    if improved or fold.epoch % train.save_epochs == 0 or fold.epoch == train.epochs:
        path = fold.save()
        if fold.ranks.is_main:
            if improved:
                checkpoint.point(fold.dir.checkpoints, "BEST", path)
            checkpoint.prune(fold.dir.checkpoints, train.keep)


def evaluate(fold: Fold, clips: ClipSet, shuffle_frames: bool = False) -> tuple[Predictions | None, Scores]:
    """Predict every clip once. The table is rank 0's; every rank gets the scores. Collective."""
    model, ranks, config = fold.engine.deepspeed, fold.ranks, fold.config
    model.eval()
    with torch.no_grad():
        text = fold.engine.deepspeed.module.text_features()
    share = (config.eval.batch, ranks.rank, ranks.world)
    batches = evaluation_stream(fold.index, config.data, clips, *share, config.train.seed, config.eval.views, shuffle_frames)
    rows = predict(lambda frames: model(frames, text), batches, ranks.device)
    model.train()
    table = collect(rows, fold.index, clips, ranks)
    return table, ranks.share(table.score(fold.index.classes) if table else None)  # type: ignore[return-value]


def finish(fold: Fold) -> None:
    """Test the selected weights and write the fold's result; ``result.json`` comes last and means that all is there."""
    ranks, config = fold.ranks, fold.config
    path = checkpoint.pointed(fold.dir.checkpoints, "BEST" if fold.best else "LATEST") if ranks.is_main else None
    path = ranks.share(path)
    if path is None:
        raise UserError(f"{fold.dir.checkpoints} has lost its checkpoint: train the fold again")
    if fold.best:
        checkpoint.replace_weights(fold.engine, checkpoint.read(path, weights_only=True))
    table, scores = evaluate(fold, fold.test)
    shuffled = None
    if config.eval.shuffle_frames:
        shuffled_table, shuffled_scores = evaluate(fold, fold.test, shuffle_frames=True)
        shuffled = {"uar": shuffled_scores.uar, "war": shuffled_scores.war}
        if shuffled_table:
            shuffled_table.write(fold.dir.shuffled_predictions)
    if not table:
        return
    table.write(fold.dir.predictions)
    chosen = fold.best or {"epoch": fold.epoch, "step": fold.step}
    result = {"dataset": fold.index.name, "fold": fold.number, **asdict(scores), "selection": config.train.selection.name}
    result |= {"epoch": chosen["epoch"], "step": chosen["step"], "checkpoint": str(path.relative_to(fold.dir.root))}
    result |= {"config_hash": config_hash(config), "index_hash": fold.index.hash, "shuffled": shuffled}
    result |= {"pretrained_sha256": fold.engine.model.pretrained_sha256}
    result |= {"num_frames": config.data.num_frames, "sampling": config.data.sampling.name, "views": config.eval.views}
    result |= {"lost_clips": len(fold.lost), "skipped_steps": fold.skipped}
    fold.log(
        {
            "test_uar": scores.uar,
            "test_war": scores.war,
            **({f"shuffled_{k}": v for k, v in shuffled.items()} if shuffled else {}),
        }
    )
    confusion_png(result, fold.dir.confusion)
    write_json(fold.dir.result, result)


def build(run: RunDir, number: int, config: Config, ranks: Ranks) -> Fold:
    """Everything a fold needs, brought to where its latest checkpoint stands."""
    index = open_index(config.data, config.data.loss_budget)
    check_sizes(index, index.test_shards(number))  # now, rather than after the training
    train, val = whole_shards(index, index.train_shards(number)), None
    if config.train.selection is Selection.best_val:
        train, val = hold_out(index, index.train_shards(number), config.train.val_fraction, config.train.seed)
    by_class = clips_by_class(index, train) if config.data.balanced or config.train.class_balance else ()
    shape = (train, config.train.seed, 0, config.train.global_batch, config.data.block)
    plan = BalancedPlan(*shape, tuple(c for c in by_class if len(c))) if config.data.balanced else EpochPlan(*shape)
    split_batch(config, ranks.world)  # a batch that cannot be cut is found before the model is built
    check_cache(index, plan, ranks.neighbours, ranks.world)
    found = checkpoint.newest(run.fold(number).checkpoints) if ranks.is_main else None
    found = ranks.share(found)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, index.classes, config.data.num_frames, settle_image_size(config))
    groups = param_groups(model)
    trained = {name: p for group in groups.values() for name, p in group}
    frozen = checkpoint.frozen_checksum(model, trained)
    saved = checkpoint.read(found) if found else None
    if saved:
        checkpoint.load_weights(model, trained, saved)
    engine = build_engine(model, groups, config, ranks, plan.steps)
    test = whole_shards(index, index.test_shards(number))
    objective = Objective(config.train, [len(c) for c in by_class], ranks.device)
    fold = Fold(run, number, config, index, ranks, engine, plan, test, val, objective, frozen, None)
    if saved:
        checkpoint.restore(engine, saved, config, ranks)
        fold.step, fold.skipped, fold.lost = saved.state["step"], saved.state["skipped_steps"], set(saved.state["lost_clips"])
        fold.best = saved.state["best"]
    if ranks.is_main:
        tracking = run.describe()["tracking"] or {"uri": None, "folds": {}}
        fold.tracker = Tracker(fold.dir, tracking["uri"], tracking["folds"].get(str(number)), fold.step)
    return fold


def train(run: RunDir, number: int, leave: LeaveFlag) -> str:
    """Train fold ``number`` of a run and test it; returns DONE, or PREEMPTED when told to leave."""
    config = read_config(run.config)
    ranks = start(config.train.device)
    attempt = Attempt(run.fold(number), ranks.world, ranks.is_main)
    fold: Fold | None = None
    try:
        fold = build(run, number, config, ranks)
        attempt.begin(fold.engine.total_steps)
        outcome = fit(fold, leave)
        if outcome == DONE:
            finish(fold)
    except BaseException as e:
        reason = one_line(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        attempt.end("FAILED", reason)
        if fold and fold.tracker:
            fold.tracker.close(FAILED)
        elif ranks.is_main:
            close_fold(run.describe()["tracking"], number, FAILED)
        raise
    attempt.end(outcome, leave.signal or ("told to leave" if outcome == PREEMPTED else "all steps done"))
    if fold.tracker:
        files = (fold.dir.result, fold.dir.predictions, fold.dir.confusion) if outcome == DONE else ()
        fold.tracker.close(FINISHED if outcome == DONE else KILLED, files)
    return outcome


def one_line(e: UserError) -> str:
    """The error's own text; from a loader worker it comes wrapped in that worker's traceback."""
    return str(e).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--fold", type=int, required=True)
    args = parser.parse_args()
    try:
        outcome = train(RunDir(args.run.resolve()), args.fold, LEAVE)
    except UserError as e:
        if os.environ.get("DFER_DEBUG"):
            traceback.print_exc()
        print(f"error: {one_line(e)}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return EXIT_PREEMPTED if outcome == PREEMPTED else 0


if __name__ == "__main__":
    sys.exit(main())
