"""What an evaluation says of its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfer_dist.config.schema import Config
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index, LeftOut
from dfer_dist.evaluation.eval_clips import find_eval_clips
from dfer_dist.evaluation.evaluate import list_lost_clips
from tests.helpers.data.folds import fold_overlay

LOST = (
    LeftOut("Happy/1", "fold1", "missing"),
    LeftOut("Sad/2", "fold2", "no face"),
    LeftOut("Sad/3", "fold2", "label conflict"),
)


@pytest.mark.parametrize(("fold", "lost"), [(1, ["Happy/1"]), (2, ["Sad/2", "Sad/3"]), (3, [])])
def test_evaluation_says_how_many_test_clips_were_lost_when_packing(
    tiny_shards: Index, caplog: pytest.LogCaptureFixture, fold: int, lost: list[str]
) -> None:
    index = replace(tiny_shards, left_out=LOST)
    assert list_lost_clips(fold_clips(index, fold)) == lost
    line = f"{len(lost)} of {12 + len(lost)} test clips left out when the data was packed, such as"
    assert [r.getMessage().startswith(line) for r in caplog.records] == [True] * bool(lost)


def test_default_fold_is_one_of_the_overlay(tiny_shards: Index, tmp_path: Path) -> None:
    """The overlay may have more folds than the set, which may have one test split alone."""
    splits = ("test", *["train"] * (len(tiny_shards.shards) - 1))
    shards = zip(tiny_shards.shards, splits, strict=True)
    index = replace(tiny_shards, shards=tuple(replace(s, split=split) for s, split in shards))
    overlay = fold_overlay(index, 3)
    overlay.write(tmp_path / "folds.json")
    config = Config()
    config.data.shards = str(index.root)
    config.data.folds, config.data.folds_hash = str(tmp_path / "folds.json"), overlay.hash
    saved: Any = SimpleNamespace(
        config=config, state={"fold": 2, "index_hash": index.hash, "dataset": index.name}
    )
    clips = find_eval_clips(saved, config, index).part.test
    assert clip_keys(index, clips) == [key for key, fold in overlay.fold_of.items() if fold == 2]
