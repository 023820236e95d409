"""What an evaluation says of its data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.shards.index import Index, LeftOut
from dfer_dist.evaluation.evaluate import list_lost_clips

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
