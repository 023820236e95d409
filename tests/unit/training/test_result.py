"""What ``result.json`` of a trained fold holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfer_dist.config.schema import Config
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.shards.index import Index, LeftOut
from dfer_dist.evaluation.metrics import score
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult, VoteScores
from dfer_dist.training.data import EvaluatedSet
from dfer_dist.training.result import FinalTests, final_metrics, fold_result

LOST = (LeftOut("Happy/1", "fold1", "missing"), LeftOut("Sad/2", "fold2", "no face"))


@pytest.mark.parametrize(("fold", "lost"), [(1, ["Happy/1"]), (2, ["Sad/2"]), (3, [])])
def test_result_names_the_test_clips_that_were_lost_when_packing(
    tiny_shards: Index, tmp_path: Path, fold: int, lost: list[str]
) -> None:
    index = replace(tiny_shards, left_out=LOST)
    state = SimpleNamespace(best=None, selected_step=9, lost_clips={}, bad_steps=[], drift=[])
    of_fold = fold_clips(index, fold)
    tested = EvaluatedSet(index, of_fold.test, of_fold.left_out)
    trainer: Any = SimpleNamespace(
        config=Config(),
        data=SimpleNamespace(
            index=index,
            fold=fold,
            sets=(),
            tested=(tested,),
            folds_hash=None,
            modalities=None,
            descriptions=None,
            ambiguous_clips=3,
        ),
        state=state,
        epoch=2,
        folder=FoldDir(tmp_path),
        selected_checkpoint=tmp_path / "checkpoints" / "step-00000009",
        info=SimpleNamespace(pretrained_sha256=None),
        ranks=SimpleNamespace(device=torch.device("cpu")),
        engine=SimpleNamespace(deepspeed=torch.nn.Linear(2, 3)),
    )
    scores, votes = score([0, 1], [0, 1], index.classes), VoteScores(n=2, kl=0.5, any_annotator=50)
    tests = FinalTests(None, scores, None, [], 1.5)
    fold_result(trainer, tests, votes).write(tmp_path / "result.json")
    result = FoldResult.read(tmp_path / "result.json")
    assert (result.left_out, result.fold, result.checkpoint) == (
        lost,
        fold,
        "checkpoints/step-00000009",
    )
    assert (result.parameters, result.target, result.ambiguous_clips) == (9, "majority", 3)
    assert result.temperature == 1.5
    metrics = final_metrics(result)
    assert result.votes == votes and metrics["test_war"] == 100
    assert (metrics["test_kl"], metrics["test_any_annotator"]) == (0.5, 50)
    assert not {"test_kl", "shuffled_uar"} & final_metrics(replace(result, votes=None)).keys()
