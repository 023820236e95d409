"""The loss scale of float16, and which skipped steps count as bad."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfer_dist.training.engine import Engine, StepOutcome
from dfer_dist.utils.records import from_json, to_json


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """DeepSpeed's scaler asks for the rank before it writes its log."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed import comm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "get_rank", lambda: 1)
        yield


def make_scale(first: float = 16.0, window: int = 3, hysteresis: int = 2) -> Any:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from dfer_dist.training.loss_scale import replace_scaler

    scaler = DynamicLossScaler(first, window, 1, hysteresis, False)
    return replace_scaler(SimpleNamespace(loss_scaler=scaler))


def step(scale: Any, overflow: bool = False) -> tuple[float, float]:
    """Return the scale that the loss of a step is multiplied by, and its gradients divided by."""
    factor = scale.scale_loss(torch.ones(())).item()
    scale.update_scale(overflow)
    return factor, scale.cur_scale


def test_gradients_are_divided_by_the_scale_of_their_loss() -> None:
    scale = make_scale()
    assert [step(scale) for _ in range(8)] == 4 * [(16, 16)] + 3 * [(32, 32)] + [(64, 64)]


def test_scale_falls_at_the_second_overflow_and_then_at_each() -> None:
    scale = make_scale()
    assert [step(scale, overflow=True)[0] for _ in range(7)] == [16, 16, 8, 4, 2, 1, 1]


def make_engine(overflow: bool, scale: Any = None) -> Engine:
    deepspeed = SimpleNamespace(optimizer=SimpleNamespace(overflow=overflow))
    fields = dict.fromkeys(Engine.__dataclass_fields__) | {"bad_steps": 0}
    return Engine(**(fields | {"deepspeed": deepspeed, "loss_scale": scale}))  # type: ignore[arg-type]


def test_overflow_is_a_bad_step_only_at_the_smallest_scale() -> None:
    scale = make_scale(first=4.0, hysteresis=1)
    engine = make_engine(overflow=True, scale=scale)
    outcomes = []
    for _ in range(5):
        step(scale, overflow=True)
        outcomes.append(engine.judge_step(0.5))
    assert outcomes == 2 * [StepOutcome.OVERFLOW] + 3 * [StepOutcome.BAD]
    assert engine.bad_steps == 3


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_a_bad_step_at_any_scale(loss: float) -> None:
    scale = make_scale()
    engine = make_engine(overflow=True, scale=scale)
    step(scale, overflow=True)
    assert engine.judge_step(loss) is StepOutcome.BAD
    assert engine.bad_steps == 1


def test_skipped_step_without_a_loss_scale_is_bad() -> None:
    assert make_engine(overflow=True).judge_step(0.5) is StepOutcome.BAD
    taken = make_engine(overflow=False)
    taken.bad_steps = 2
    assert (taken.judge_step(0.5), taken.bad_steps) == (StepOutcome.TAKEN, 0)


@pytest.mark.parametrize("done", range(1, 9))
def test_restored_scale_continues_as_if_uninterrupted(done: int) -> None:
    """At whichever of these steps it is saved, before and after it doubles and halves."""
    overflows = [False, True, True, False, False, False, False, False, False, False]
    whole, first, second = make_scale(), make_scale(), make_scale()
    expected = [step(whole, overflow) for overflow in overflows]
    for overflow in overflows[:done]:
        step(first, overflow)
    saved = to_json(first.state_dict())
    second.load_state_dict(from_json(type(first.state_dict()), saved))
    assert [step(second, overflow) for overflow in overflows[done:]] == expected[done:]
