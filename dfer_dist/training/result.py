"""The result of a fold, as written to ``result.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from dfer_dist.runs.records import FoldResult, Scores, UarWar

if TYPE_CHECKING:
    from dfer_dist.training.trainer import Trainer


def fold_result(trainer: Trainer, scores: Scores, shuffled: UarWar | None) -> FoldResult:
    """Return the result of a trained fold.

    Parameters
    ----------
    trainer : Trainer
    scores : Scores
        On the test clips.
    shuffled : UarWar, optional
        The same with the frames of each clip in a random order.
    """
    config, facts, state = trainer.config, trainer.facts, trainer.state
    descriptions, modalities = trainer.data.descriptions, trainer.data.modalities
    return FoldResult(
        dataset=facts.dataset,
        fold=facts.fold,
        **asdict(scores),
        selection=config.train.selection.name,
        epoch=state.best.epoch if state.best else trainer.epoch,
        step=state.best.step if state.best else state.step,
        checkpoint=str(trainer.selected_checkpoint.relative_to(trainer.folder.root)),
        config_hash=facts.config_hash,
        index_hash=facts.index_hash,
        shuffled=shuffled,
        modalities=list(config.model.modalities),
        modalities_hash=str(modalities["hash"]) if modalities else None,
        objective=facts.objective,
        described_clips=len(descriptions.texts) if descriptions else None,
        pretrained_sha256=facts.pretrained_sha256,
        num_frames=config.data.num_frames,
        sampling=config.data.sampling.name,
        views=config.eval.views,
        device=trainer.ranks.device.type,
        lost_clips=len(state.lost_clips),
        skipped_steps=len(state.bad_steps),
        drift=sorted(state.drift),
    )
