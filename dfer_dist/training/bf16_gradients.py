"""Replacements for private functions of DeepSpeed's bf16 optimizer, and the gradient all-reduce.

What is replaced, on the instance that ``deepspeed.initialize`` makes for ZeRO-1 in bf16
(``deepspeed.runtime.bf16_optimizer.BF16_Optimizer``):

``_update_hp_grad``
    adds the bf16 gradient of a parameter to its float32 gradient as soon as it is there. The
    replacement lets the first micro batch of a step overwrite the float32 gradient instead.
``clear_hp_grads``
    zeroes all float32 gradients, twice a step. The replacement only marks them as not written, and
    :func:`zero_unwritten_gradients` zeroes those that no micro batch has written.

With ``engine.enable_backward_allreduce = False`` the gradients are averaged over ranks here too:
DeepSpeed would copy all of them four times to send them in one piece, even to no other rank.

Written for DeepSpeed 0.19; ``setup.cfg`` bounds its version. :data:`REPLACED` has a hash of the
source of each function that is replaced or relied on, and a test compares them.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Gradient values that are reduced at a time.
# DeepSpeed's default of 5e8 takes up to 2 GB of buffers.
BUCKET = 50_000_000

#: First 16 hex digits of the sha256 of the source of methods of BF16_Optimizer.
REPLACED = {
    "_update_hp_grad": "026f6bb3edea2557",
    "clear_hp_grads": "82cb16a0c5b97d8e",
    "get_grads_for_reduction": "2ed8bbe28ad43103",
    "update_hp_grads": "e36698422d4d5d5d",
}


def source_hash(function: Any) -> str:
    """Return the first 16 hex digits of the sha256 of a function's source."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def replace_hooks(engine: Any) -> bool:
    """Replace the functions if ``engine`` is for ZeRO-1 in bf16; return whether it is.

    From then on, :func:`zero_unwritten_gradients` and :func:`all_reduce_mean` must be called after
    the last backward pass of a step.

    Parameters
    ----------
    engine : deepspeed.DeepSpeedEngine
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    optimizer = engine.optimizer
    if not isinstance(optimizer, BF16_Optimizer):
        return False
    engine.enable_backward_allreduce = False
    optimizer._update_hp_grad = partial(_update_hp_grad, optimizer)
    optimizer.clear_hp_grads = partial(_clear_hp_grads, optimizer)
    return True


def _update_hp_grad(
    optimizer: Any, parameter: Any, group: int, index: int, clear_lp_grads: bool
) -> None:
    """Replace ``_update_hp_grad``, which is called for each parameter that has a gradient."""
    if parameter.grad is None:
        return
    kept = optimizer.fp32_groups_gradients[group][index]
    parameter._hp_grad = kept
    written = optimizer.fp32_groups_has_gradients[group]
    gradient = parameter.grad.view(kept.shape)
    if written[index]:
        kept.add_(gradient)
    else:
        kept.copy_(gradient)
    written[index] = True
    if clear_lp_grads:
        parameter.grad.zero_()


def _clear_hp_grads(optimizer: Any) -> None:
    """Replace ``clear_hp_grads``: mark all float32 gradients as not written."""
    for written in optimizer.fp32_groups_has_gradients:
        written[:] = [False] * len(written)


def zero_unwritten_gradients(optimizer: Any) -> None:
    """Zero the gradients of parameters that took part in no micro batch of this step.

    They still hold those of the last step.
    """
    for gradients, written in zip(
        optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients, strict=True
    ):
        for gradient, is_written in zip(gradients, written, strict=True):
            if not is_written:
                gradient.zero_()


def all_reduce_mean(gradients: Sequence[Tensor]) -> None:
    """Replace flat float32 gradients by their mean over all ranks. Collective.

    They are sent in bf16, as by DeepSpeed. While a bucket is sent, the next one is cast.
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return
    sent: tuple[Tensor, Tensor, dist.Work] | None = None
    for bucket in (part for flat in gradients for part in flat.split(BUCKET)):
        half = bucket.to(torch.bfloat16)
        work = dist.all_reduce(half, async_op=True)
        if sent:
            _receive(*sent, world_size)
        sent = bucket, half, work
    if sent:
        _receive(*sent, world_size)


def _receive(bucket: Tensor, half: Tensor, work: dist.Work, world_size: int) -> None:
    work.wait()
    bucket.copy_(half.mul_(1 / world_size))
