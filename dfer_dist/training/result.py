"""The result of a fold, as written to ``result.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from dfer_dist.config.schema import config_hash
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
    config, data, state = trainer.config, trainer.data, trainer.state
    # ZeRO-3 leaves an empty tensor of what other ranks hold
    sizes = [getattr(p, "ds_numel", p.numel()) for p in trainer.engine.deepspeed.parameters()]
    return FoldResult(
        dataset=data.index.name,
        fold=data.fold,
        **asdict(scores),
        selection=config.train.selection.name,
        epoch=(state.best or trainer).epoch,
        step=state.selected_step,
        checkpoint=str(trainer.selected_checkpoint.relative_to(trainer.folder.root)),
        config_hash=config_hash(config),
        index_hash=data.index.hash,
        folds_hash=data.folds_hash,
        shuffled=shuffled,
        modalities=list(config.model.modalities),
        modalities_hash=str(data.modalities["hash"]) if data.modalities else None,
        objective=config.train.objective.name,
        described_clips=len(data.descriptions.texts) if data.descriptions else None,
        pretrained_sha256=trainer.info.pretrained_sha256,
        parameters=sum(sizes),
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
        left_out=list(data.left_out),
    )
