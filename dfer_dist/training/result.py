"""The tests of a fold's selected weights, and its result as written to ``result.json``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from dfer_dist.config.schema import Output, config_hash
from dfer_dist.evaluation.calibration import Outputs, fit_temperature, score_calibration
from dfer_dist.evaluation.metrics import metric_values
from dfer_dist.evaluation.predictions import Predictions
from dfer_dist.runs.calibration import CalibrationScores
from dfer_dist.runs.records import FoldResult, Scores, SetScores, UarWar, VoteScores
from dfer_dist.tracking.metric_names import metric_suffix

if TYPE_CHECKING:
    from dfer_dist.training.trainer import Trainer

logger = logging.getLogger(__name__)


class FinalTests(NamedTuple):
    """What the selected weights of a fold were tested on.

    Attributes
    ----------
    table : Predictions or None
        Of the test clips; only on rank 0, as ``temperature``.
    scores : Scores
        Of the test clips.
    shuffled : UarWar or None
        Of the same clips with the frames of each in a random order.
    others : list of SetScores
        Of the test clips of other sets.
    temperature : float or None
        By which logits are divided for the least loss on the validation clips; None without these.
    """

    table: Predictions | None
    scores: Scores
    shuffled: UarWar | None
    others: list[SetScores]
    temperature: float | None


def run_tests(trainer: Trainer) -> FinalTests:
    """Test the weights that are loaded; write the predictions of other sets. Collective.

    Raises
    ------
    Preempted
        If a rank was preempted.
    """
    table, scores = trainer.validate(trainer.data.test)
    shuffled = _test_shuffled(trainer) if trainer.config.eval.shuffle_frames else None
    return FinalTests(table, scores, shuffled, _test_others(trainer), _fit_temperature(trainer))


def _test_shuffled(trainer: Trainer) -> UarWar:
    table, scores = trainer.validate(trainer.data.test, shuffle_frames=True)
    if table:
        table.write(trainer.folder.shuffled_predictions)
    return UarWar(uar=scores.uar, war=scores.war)


def _test_others(trainer: Trainer) -> list[SetScores]:
    found = []
    for own in trainer.data.tested[1:]:
        table, scores = trainer.validate(own.clips, index=own.index)
        if table:
            table.write(trainer.folder.predictions_of(own.index.name))
        logger.info(
            f"{own.index.name}: test UAR {scores.uar:.2f}, WAR {scores.war:.2f} on {scores.n} clips"
        )
        found.append(SetScores(own.index.name, own.index.hash, scores, list(own.left_out)))
    return found


def _fit_temperature(trainer: Trainer) -> float | None:
    clips = trainer.data.val
    if clips is None or trainer.config.model.output is not Output.softmax:
        return None
    table, _ = trainer.validate(clips)
    return fit_temperature(Outputs.of(table.labels, table.logits)) if table else None


def _score_calibration(trainer: Trainer, table: Predictions | None) -> CalibrationScores | None:
    if table is None or trainer.config.model.output is not Output.softmax:
        return None
    return score_calibration(Outputs.of(table.labels, table.logits))


def final_metrics(result: FoldResult) -> dict[str, float]:
    """Return the metrics of a test by name; those of a set but the first end with its name."""
    metrics = {f"test_{name}": value for name, value in metric_values(result.scores).items()}
    if result.calibration:
        metrics |= {f"test_{name}": value for name, value in vars(result.calibration).items()}
    if result.shuffled:
        metrics |= {"shuffled_uar": result.shuffled.uar, "shuffled_war": result.shuffled.war}
    if result.votes:
        metrics |= {"test_kl": result.votes.kl, "test_any_annotator": result.votes.any_annotator}
    for own in result.others:
        values = metric_values(own.scores)
        of_set = metric_suffix(own.dataset)
        metrics |= {f"test_{name}/{of_set}": value for name, value in values.items()}
    return metrics


def fold_result(trainer: Trainer, tests: FinalTests, votes: VoteScores | None) -> FoldResult:
    """Return the result of a trained fold; ``votes`` are its scores against annotators' votes."""
    config, data, state = trainer.config, trainer.data, trainer.state
    return FoldResult(
        dataset=data.tested[0].index.name,
        fold=data.fold,
        **vars(tests.scores),
        output=config.model.output.name,
        selection=config.train.selection.name,
        epoch=(state.best or trainer).epoch,
        step=state.selected_step,
        checkpoint=str(trainer.selected_checkpoint.relative_to(trainer.folder.root)),
        config_hash=config_hash(config),
        index_hash=data.index.hash,
        folds_hash=data.folds_hash,
        shuffled=tests.shuffled,
        modalities=list(config.model.modalities),
        modalities_hash=str(data.modalities["hash"]) if data.modalities else None,
        objective=config.train.objective.name,
        target=config.train.target.name,
        ambiguous_clips=data.ambiguous_clips,
        described_clips=len(data.descriptions.texts) if data.descriptions else None,
        pretrained_sha256=trainer.info.pretrained_sha256,
        parameters=_num_parameters(trainer),
        num_frames=config.data.num_frames,
        sampling=config.data.sampling.name,
        views=config.eval.views,
        crops=config.eval.crops,
        mirror=config.eval.mirror,
        ema=config.train.ema,
        device=trainer.ranks.device.type,
        lost_clips=len(state.lost_clips),
        skipped_steps=len(state.bad_steps),
        drift=state.drift,
        left_out=list(data.tested[0].left_out),
        sets=list(data.sets),
        others=tests.others,
        votes=votes,
        temperature=tests.temperature,
        calibration=_score_calibration(trainer, tests.table),
    )


def _num_parameters(trainer: Trainer) -> int:
    # ZeRO-3 leaves an empty tensor of what other ranks hold
    return sum(getattr(p, "ds_numel", p.numel()) for p in trainer.engine.deepspeed.parameters())
