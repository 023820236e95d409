"""Learning rates over training."""

from __future__ import annotations

import pytest

from dfer_dist.config.schema import OptimConfig, Schedule
from dfer_dist.training.engine import lr_factor

STEPS_PER_EPOCH = 10


def factors(optim: OptimConfig, *steps: int, total: int = 100) -> list[float]:
    return [lr_factor(optim, step, STEPS_PER_EPOCH, total) for step in steps]


def test_step_schedule_falls_at_the_first_step_of_a_milestone() -> None:
    optim = OptimConfig(milestones=[2, 4], gamma=0.1)
    assert factors(optim, 0, 19, 20, 39, 40, 99) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_milestones_count_from_the_start_of_training_with_warmup() -> None:
    optim = OptimConfig(milestones=[2], gamma=0.1, warmup_epochs=1)
    assert factors(optim, 10, 19, 20) == pytest.approx([1, 1, 0.1])


def test_warmup_rises_linearly_to_the_peak() -> None:
    optim = OptimConfig(warmup_epochs=0.5)
    assert factors(optim, 0, 1, 2, 3, 4, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_cosine_schedule_falls_from_the_peak_to_zero_after_warmup() -> None:
    optim = OptimConfig(schedule=Schedule.cosine, warmup_epochs=2)
    assert factors(optim, 19, 20, 60, 100) == pytest.approx([1, 1, 0.5, 0])
    # a third of the way
    assert factors(optim, 20 + 10, total=50) == pytest.approx([0.75])
