"""Learning rates over training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from dfer_dist.config.schema import OptimConfig, Schedule
from dfer_dist.training.engine import Engine, lr_factor

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


def engine_rates(optim: OptimConfig, step: int) -> tuple[dict[str, float], list[float]]:
    """Logged rates and rates of two parameter groups at a step of ten epochs."""
    groups = [
        {"name": "image", "lr_scale": 1.0, "lr": 0.0},
        {"name": "image", "lr_scale": 0.25, "lr": 0.0},
    ]
    engine = Engine(
        deepspeed=SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups)),
        trained={},
        base_lr={"image": 3e-4},
        optim=optim,
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=100,
        micro_batch=1,
        accumulation=1,
        averager=None,
    )
    return engine.set_learning_rates(step), [group["lr"] for group in groups]


@pytest.mark.parametrize("step", [0, 7, 20, 33, 60, 99])
def test_cosine_ends_at_the_smallest_rate_in_each_layer_as_in_mae(step: int) -> None:
    optim = OptimConfig(schedule=Schedule.cosine, warmup_epochs=2, min_lr=1e-5)
    # lr_sched.py of MAE's code, with steps counted from 1 in the warm-up
    rate = 3e-4 * (step + 1) / 20
    if step >= 20:
        rate = 1e-5 + (3e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
    logged, used = engine_rates(optim, step)
    assert logged == {"image": pytest.approx(rate, rel=1e-12)}
    assert used == [logged["image"], logged["image"] * 0.25]


def test_smallest_rate_is_no_part_of_the_step_schedule() -> None:
    assert engine_rates(OptimConfig(min_lr=1e-5), 50)[0] == {"image": 3e-4}
