"""The functions of DeepSpeed that are replaced are those that the replacements were written for."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable

import pytest

# First 16 hex digits of the sha256 of the source of methods of BF16_Optimizer.
REPLACED = {
    "_update_hp_grad": "026f6bb3edea2557",
    "accumulate_hp_grads_and_remove_lp": "4792e4da4c695a7e",
    "clear_hp_grads": "82cb16a0c5b97d8e",
    "create_grad_acc_hooks": "4b718287ea8307f7",
    "update_hp_grads": "e36698422d4d5d5d",
}


@pytest.fixture(scope="module")
def optimizer_class() -> type:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    return BF16_Optimizer


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_function_of_deepspeed_is_unchanged(optimizer_class: type, name: str) -> None:
    function: Callable[..., object] = getattr(optimizer_class, name)
    source = inspect.getsource(function)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == REPLACED[name], (
        f"BF16_Optimizer.{name} has changed: compare it with training/bf16_gradients.py, "
        "then update REPLACED and the versions in setup.cfg"
    )
