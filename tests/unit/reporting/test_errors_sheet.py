"""The sheet of the most confident errors."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.reporting.plots.errors_sheet import draw_confident_errors, find_confident_errors
from dfer_dist.reporting.results import load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import make_misclassified_run


@pytest.fixture
def shown(tiny_shards: Index, tmp_path: Path) -> RunDir:
    return make_misclassified_run(tmp_path / "shown", tiny_shards)


def test_most_confident_errors_come_first_with_own_frames(
    shown: RunDir, tiny_shards: Index
) -> None:
    found = find_confident_errors(load_run(shown), 5)
    assert [m.fold for m in found] == [2, 1, 2, 1, 2]
    assert all(a.probability > b.probability for a, b in pairwise(found))
    assert all(
        tiny_shards.classes.index(m.predicted) == (tiny_shards.classes.index(m.truth) + 1) % 7
        for m in found
    )
    weights = np.exp([12.2, *[0.0] * 6])
    assert found[0].probability == pytest.approx(weights[0] / weights.sum())
    assert found[0].truth_probability == pytest.approx(weights[1] / weights.sum())
    path, drawn, fault = draw_confident_errors(shown, 3)
    assert drawn == found[:3] and not fault
    with Image.open(path) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    last = tiny_shards.test_shards(2)[-1]
    row = tiny_shards.shards[last].clips - 1
    clip = ClipReader(tiny_shards).read(last, row, lambda _, n: np.array([0]))
    assert clip.key == found[0].key
    middle = clip.frames[0].reshape(-1, 3).mean(0)
    assert np.abs(colours.astype(float) - middle).sum(1).min() < 12


def test_errors_sheet_rejects_other_data(shown: RunDir) -> None:
    for k in (1, 2):
        path = shown.fold(k).result
        path.write_text(json.dumps(json.loads(path.read_text()) | {"index_hash": "other"}))
    with pytest.raises(UserError, match="other data"):
        draw_confident_errors(shown, 2)
    assert not shown.mistakes.exists()
