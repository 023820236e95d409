"""Curves and cost of training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.reporting.history import loss_curve, read_lines, time_text, training_cost
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.files import write_json
from tests.helpers.made_runs import make_run


@pytest.fixture
def whole(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "whole", shuffled=True)


def test_loss_curve_and_cost_match_lines_and_attempts(whole: RunDir, tmp_path: Path) -> None:
    fold = whole.fold(1)
    lines = read_lines(fold)
    assert len(lines) == 30  # the one that was cut short is no line
    curve = loss_curve(lines, steps_per_epoch=10)
    assert (curve.x[0], curve.x[-1]) == pytest.approx((0.15, 2.9))  # their middles
    assert curve.values[0] == pytest.approx((2 + 1) / 2)  # steps 1 and 2 of 30 in 12 parts
    assert curve.values[-1] == pytest.approx(np.mean([2 / 28, 2 / 29, 2 / 30]))
    run = RunDir(tmp_path)
    shutil.copytree(fold.root, run.fold(1).root)
    attempts = json.loads(fold.status.read_text())["attempts"]
    killed = {
        "started": "1970-01-01T00:10:00+00:00",
        "ended": None,
        "world_size": 2,
        "undone_steps": None,
        "device": "GPU X",
    }
    write_json(
        run.fold(1).status, {"state": "RUNNING", "steps": 30, "attempts": [*attempts, killed]}
    )
    result = replace(FoldResult.read(fold.result), device="cuda")
    found = training_cost(run.fold(1), result)
    assert (found.ranks, found.attempts, found.steps_repeated, found.at_least) == (
        (4, 2),
        2,
        3,
        True,
    )
    assert found.hours == pytest.approx(0.5 + (1030 - 600) / 3600)  # up to the last line
    assert found.device_hours == pytest.approx(2 + 2 * (1030 - 600) / 3600)
    assert (found.clips_per_second, found.device, found.device_name) == (50, "cuda", "GPU X")


@pytest.mark.parametrize(
    ("hours", "ranks", "device", "text"),
    [
        (27 / 3600, (2,), "cpu", "27 s on 2 ranks"),
        (3.2, (8,), "cuda", "3.2 h on 8 GPUs"),
        (3.2, (8, 4), "cuda", "3.2 h on 4, 8 GPUs"),
        (0.2, (1,), None, "12.0 min on 1 rank"),
        (None, (), None, "not recorded"),
    ],
)
def test_time_is_in_the_units_of_people(
    whole: RunDir, hours: float | None, ranks: tuple[int, ...], device: str | None, text: str
) -> None:
    cost = training_cost(whole.fold(1), FoldResult.read(whole.fold(1).result))
    assert time_text([replace(cost, hours=hours, ranks=ranks, device=device)]) == text
