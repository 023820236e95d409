"""Train and test one fold: ``python -m dfer_dist.train --run DIR --fold K``, once a rank.

Leaves with status 0 when the fold is done, 75 when it was told to leave and saved, 2 for a mistake that a person can mend.
"""

from __future__ import annotations

import logging

from dfer_dist.distributed.preemption import EXIT_PREEMPTED, PreemptionHandler

LEAVE = PreemptionHandler()
if __name__ == "__main__":
    LEAVE.install()  # before the imports below, which take seconds: a signal during them must not kill the job

import argparse
import errno
import math
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.optimizer_state import replace_weights
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Selection, config_hash
from dfer_dist.data.loading.loader import Batch
from dfer_dist.distributed.process_group import device_name, peak_memory, start
from dfer_dist.distributed.process_group import leave as leave_process
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.reporting.curves import curves_png
from dfer_dist.reporting.summary import confusion_png
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.status import Attempt, package_mismatch
from dfer_dist.tracking.metrics_log import FAILED, FINISHED, KILLED
from dfer_dist.tracking.mlflow_runs import close_early
from dfer_dist.training.fold import Fold, Preempted, build
from dfer_dist.training.meters import Meter
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from dfer_dist.utils.log import setup_logging

logger = logging.getLogger("dfer_dist.train")

DONE, PREEMPTED = "DONE", "PREEMPTED"


def fit(fold: Fold) -> str:
    """Train from where the fold stands to the last step, or until told to leave; everything else hangs off this loop."""
    engine, ranks, config = fold.engine, fold.ranks, fold.config
    if not fold.epoch_ended:  # a test was left in the middle
        end_epoch(fold)
    meter = Meter()
    for step in range(fold.step, engine.total_steps):
        fold.watchdog.beat()
        meter.begin()
        rates = engine.set_learning_rates(step)
        losses, lost = train_step(fold, meter)
        fold.step = step + 1
        meter.count(config.train.global_batch)
        fold.leave.need = 2 * meter.longest + 2 * fold.checkpointer.seconds
        votes = [
            sum(x for _, x in losses),
            len(lost),
            bool(fold.leave),
            fold.save_due,
            fold.checkpointer.failed,
        ]
        loss, any_lost, told, due, failed = ranks.all_reduce_sum(votes)
        loss /= ranks.world * len(losses)
        if failed:
            raise UserError(ranks.broadcast_object(fold.checkpointer.verdict()))
        if any_lost:
            check_lost(fold, lost)
        if engine.step_was_skipped():
            skip_step(fold, losses)
        log_step(fold, loss, rates, meter)
        if fold.at_epoch_end:
            end_epoch(fold, bool(told))
        elif told or (
            due and not engine.bad_steps
        ):  # in the midst of bad steps, what was saved before is worth more
            fold.save()
        if told:
            fold.checkpointer.wait()
            return PREEMPTED
    fold.stream = iter(())  # its loader workers end
    fold.checkpointer.wait(again=fold.save)
    return DONE


def train_step(fold: Fold, meter: Meter) -> tuple[list[tuple[str, float]], set[str]]:
    """One optimizer step; returns this rank's clips with their losses, and the keys of those lost to damage."""
    parts, keys, lost = [], list[str](), set[str]()
    for _ in range(fold.engine.accumulation):
        with meter.waiting():
            batch = next(fold.stream)
        tokens, described = fold.texts.of(batch.keys) if fold.texts else (None, None)
        there = None if tokens is None else tokens.to(fold.ranks.device, non_blocking=True)
        outputs = fold.engine.deepspeed(
            batch.pixels(fold.ranks.device), per_polarity=fold.objective.per_polarity, tokens=there
        )
        losses = fold.objective(outputs, batch.labels, batch.valid, described)
        fold.engine.micro_step(losses.mean())
        parts.append(losses.detach())
        keys += batch.keys
        lost |= report_lost(batch)
    return list(zip(keys, torch.cat(parts).tolist(), strict=True)), lost


def report_lost(batch: Batch) -> set[str]:
    """Keys of the batch's clips that are damaged, after a line for each."""
    for line in batch.lost:
        logger.warning(f"lost: {line}")
    return {
        key
        for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True)
        if key and not valid
    }


def check_lost(fold: Fold, lost: set[str]) -> None:
    """Count clips that any rank lost to damage, and stop where they are more than the config allows. Collective."""
    shares = fold.ranks.gather_objects(lost)
    fold.lost |= fold.ranks.broadcast_object(set().union(*shares) if shares else set())
    budget = fold.config.data.loss_budget
    if len(fold.lost) > budget:
        raise UserError(
            f"{len(fold.lost)} training clips are damaged and data.loss_budget={budget}: see the lines 'lost:' in "
            f"{fold.dir.log.name} beside {fold.dir.status}, copy those shards again, or allow the loss"
        )


def skip_step(fold: Fold, losses: list[tuple[str, float]]) -> None:
    """Write down the clips of a step that DeepSpeed skipped, and stop after too many in a row. Collective.

    Those whose own loss is not finite are to blame; where every loss is finite, any clip of the step may be.
    """
    shares = fold.ranks.gather_objects(losses)
    clips = [pair for share in shares or () for pair in share]
    blamed = [key for key, loss in clips if not math.isfinite(loss)]
    what, keys = fold.ranks.broadcast_object(
        ("loss", blamed) if blamed else ("gradient", [key for key, _ in clips])
    )
    fold.skip(what, keys)
    logger.warning(
        f"step {fold.step}: the {what} was not finite, the step was skipped; clips: {', '.join(keys)}"
    )
    most = fold.config.train.max_bad_steps
    if fold.engine.bad_steps >= most:
        recent = sorted({key for bad in fold.bad_steps[-most:] for key in bad["clips"]})
        raise UserError(
            f"{most} steps in a row had a loss or gradient that was not finite, with clips {', '.join(recent)} (all in "
            f"{fold.dir.bad_steps}): look at these, or choose smaller learning rates; the last good checkpoint stands"
        )


def log_step(fold: Fold, loss: float, rates: dict[str, float], meter: Meter) -> None:
    """The line of a step, where it is time for one; a loss that leaps is marked in any case."""
    spike = fold.spikes.is_spike(loss)
    if spike:
        logger.warning(
            f"step {fold.step}: loss {loss:.4g} leaps out of the last {fold.spikes.WINDOW}"
        )
    if spike or fold.step % fold.config.train.log_every == 0:
        figures = {
            "loss": loss,
            "grad_norm": fold.engine.gradient_norm(),
            "loss_spike": float(spike),
            **meter.read(),
        }
        counts = {"skipped_steps": len(fold.bad_steps), "lost_clips": len(fold.lost)}
        fold.log({**figures, **counts, **{f"lr_{k}": v for k, v in rates.items()}})


def end_epoch(fold: Fold, told: bool = False) -> None:
    """Validate where an epoch is to be selected, and save where it is time to.

    Raises
    ------
    Preempted
        If that was cut short, once all is saved.
    """
    train = fold.config.train
    improved = False
    if train.selection is not Selection.last:
        clips, name = (fold.val, "val") if fold.val else (fold.test, "test")
        fold.epoch_ended = False
        try:
            _, scores = fold.evaluate(clips)
        except Preempted:
            fold.save()
            fold.checkpointer.wait()
            raise
        fold.epoch_ended = True
        fold.log({f"{name}_uar": scores.uar, f"{name}_war": scores.war})
        improved = fold.best is None or scores.war > fold.best["war"]
        if improved:
            fold.best = {
                "epoch": fold.epoch,
                "step": fold.step,
                "war": scores.war,
                "uar": scores.uar,
            }
    if told or improved or fold.epoch % train.save_epochs == 0 or fold.epoch == train.epochs:
        fold.save(best=improved)
    if improved:  # what is written later would be other weights
        fold.checkpointer.wait(again=None if told else lambda: fold.save(best=True))


def finish(fold: Fold) -> None:
    """Test the selected weights and write the fold's result; ``result.json`` comes last and means that all is there.

    Raises
    ------
    Preempted
        If it was cut short: the same is done after a restart.
    """
    config, path = fold.config, fold.best_checkpoint
    if fold.best:
        replace_weights(fold.engine, checkpoint.read(path, weights_only=True))
    table, scores = fold.evaluate(fold.test)
    shuffled = None
    if config.eval.shuffle_frames:
        shuffled_table, shuffled_scores = fold.evaluate(fold.test, shuffle_frames=True)
        shuffled = {"uar": shuffled_scores.uar, "war": shuffled_scores.war}
        if shuffled_table:
            shuffled_table.write(fold.dir.shuffled_predictions)
    if not table:
        return
    table.write(fold.dir.predictions)
    chosen = fold.best or {"epoch": fold.epoch, "step": fold.step}
    result = {
        "dataset": fold.index.name,
        "fold": fold.number,
        **asdict(scores),
        "selection": config.train.selection.name,
    }
    result |= {
        "epoch": chosen["epoch"],
        "step": chosen["step"],
        "checkpoint": str(path.relative_to(fold.dir.root)),
    }
    result |= {
        "config_hash": config_hash(config),
        "index_hash": fold.index.hash,
        "shuffled": shuffled,
    }
    result |= {
        "levels": list(config.model.modalities),
        "levels_hash": fold.modalities["hash"] if fold.modalities else None,
    }
    result |= {
        "objective": config.train.objective.name,
        "described_clips": len(fold.texts.texts) if fold.texts else None,
    }
    result |= {"pretrained_sha256": fold.engine.model.pretrained_sha256}
    result |= {
        "num_frames": config.data.num_frames,
        "sampling": config.data.sampling.name,
        "views": config.eval.views,
    }
    result |= {"device": fold.ranks.device.type}
    result |= {
        "lost_clips": len(fold.lost),
        "skipped_steps": len(fold.bad_steps),
        "drift": sorted(fold.drift),
    }
    fold.log(
        {
            "test_uar": scores.uar,
            "test_war": scores.war,
            **({f"shuffled_{k}": v for k, v in shuffled.items()} if shuffled else {}),
        }
    )
    confusion_png(result, fold.dir.confusion)
    curves_png(fold.dir, f"{fold.index.name}, fold {fold.number}")
    write_json(fold.dir.result, result)


def train(run: RunDir, number: int, leave: PreemptionHandler) -> str:
    """Train fold ``number`` of a run and test it; returns DONE, or PREEMPTED when told to leave."""
    config, where = read_config(run.config), run.fold(number)
    hang_seconds = 60 * config.train.hang_minutes
    ranks = start(config.train.device, hang_seconds)
    for line in filter(
        None, ranks.gather_objects(package_mismatch(run) if ranks.local_rank == 0 else None) or ()
    ):
        logger.warning(line)
    attempt = Attempt(where, ranks.world, ranks.is_main, device_name(ranks.device))
    watchdog = Watchdog(
        where.stacks(ranks.rank), hang_seconds, lambda why: attempt.end("FAILED", why)
    )
    fold: Fold | None = None
    try:
        fold = build(run, number, config, ranks, leave, watchdog)
        attempt.begin(
            fold.step,
            fold.engine.total_steps,
            fold.metrics_log.num_rolled_back(fold.step) if fold.metrics_log else 0,
        )
        outcome = fit(fold)
        if outcome == DONE:
            finish(fold)
    except Preempted:
        outcome = PREEMPTED
    except BaseException as e:
        reason = one_line(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        attempt.end("FAILED", reason)
        if fold:
            fold.checkpointer.join()  # what it is writing is worth having
        if fold:
            fold.close_tracking(FAILED)
        elif ranks.is_main:
            close_early(run, number, FAILED)
        raise
    watchdog.stop()
    why = "all steps done"
    if outcome == PREEMPTED:  # any rank may have been told, or have found that time is up
        why = next(filter(None, ranks.gather_objects(leave.why) or ()), "told to leave")
    if fold:
        if fold.metrics_log:
            fold.metrics_log.commit(fold.metrics_log.size)
        fold.close_tracking(FINISHED if outcome == DONE else KILLED)
    attempt.end(outcome, why, peak_memory(ranks.device))  # last: DONE means all of it
    return outcome


def is_user_error(e: Exception) -> bool:
    """Whether a person can mend what went wrong: a :class:`UserError`, or a disk that takes no more."""
    return isinstance(e, UserError) or (
        isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def one_line(e: Exception) -> str:
    """The error's own text; from a loader worker it comes wrapped in that worker's traceback."""
    return str(e).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--deadline", type=float, help="unix time before which to save and leave")
    args = parser.parse_args()
    LEAVE.set_deadline(args.deadline)
    setup_logging(int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0))
    try:
        outcome = train(RunDir(args.run.resolve()), args.fold, LEAVE)
    except (UserError, OSError) as e:
        if os.environ.get("DFER_DEBUG") or not is_user_error(e):
            traceback.print_exc()
        if not is_user_error(e):
            return 1
        logger.error(one_line(e))
        return 2
    except BaseException as e:
        traceback.print_exc()
        sys.stderr.flush()
        if isinstance(e, RuntimeError) and "is killed by signal" in str(e):
            os.kill(
                os.getpid(), signal.SIGKILL
            )  # a loader worker, as when memory runs out: the same as if it had been us
        return 1
    torch.distributed.destroy_process_group()
    return EXIT_PREEMPTED if outcome == PREEMPTED else 0


if __name__ == "__main__":
    leave_process(main())
