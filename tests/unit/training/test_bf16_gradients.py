"""The functions of DeepSpeed that are replaced are those that the replacements were written for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from dfer_dist.training.bf16_gradients import REPLACED, source_hash


@pytest.fixture(scope="module")
def optimizer_class() -> type:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    return BF16_Optimizer


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_function_of_deepspeed_is_unchanged(optimizer_class: type, name: str) -> None:
    function: Callable[..., object] = getattr(optimizer_class, name)
    assert source_hash(function) == REPLACED[name], (
        f"BF16_Optimizer.{name} has changed: compare it with training/bf16_gradients.py, "
        "then update REPLACED and the versions in setup.cfg"
    )
