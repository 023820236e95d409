"""The float32 gradients that DeepSpeed's optimizer for ZeRO-1 in bf16 keeps: how they come about, and how they are averaged over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 50_000_000  # elements reduced at a time; DeepSpeed's own 5e8 costs up to 2 GB of buffers


def overwrite(optimizer: Any) -> None:
    """Let the first micro batch of a step write over the gradients of the last step; DeepSpeed clears all of them, twice a step, and adds.

    Parameters
    ----------
    optimizer : deepspeed.runtime.bf16_optimizer.BF16_Optimizer
    """
    optimizer._update_hp_grad = partial(_take, optimizer)
    optimizer.clear_hp_grads = partial(_forget, optimizer)


def _take(optimizer: Any, own: Any, group: int, index: int, clear_lp_grads: bool) -> None:
    """In the place of ``_update_hp_grad``: called for each parameter as soon as its gradient is there."""
    if own.grad is None:
        return
    own._hp_grad = kept = optimizer.fp32_groups_gradients[group][index]
    seen = optimizer.fp32_groups_has_gradients[group]
    gradient = own.grad.view(kept.shape)
    kept.add_(gradient) if seen[index] else kept.copy_(gradient)
    seen[index] = True
    if clear_lp_grads:
        own.grad.zero_()


def _forget(optimizer: Any) -> None:
    """In the place of ``clear_hp_grads``."""
    for seen in optimizer.fp32_groups_has_gradients:
        seen[:] = [False] * len(seen)


def complete(optimizer: Any) -> None:
    """Clear what no micro batch of this step has written: the last step's gradients of parameters that had none in this one."""
    for gradients, seen in zip(
        optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients, strict=True
    ):
        for kept, written in zip(gradients, seen, strict=True):
            if not written:
                kept.zero_()


def average(gradients: Sequence[Tensor]) -> None:
    """Replace flat float32 gradients by their mean over all ranks, which goes over the wire in bf16, as in DeepSpeed: a bucket at a time, the next being cast meanwhile."""
    world = dist.get_world_size()
    if world == 1:
        return
    sent: tuple[Tensor, Tensor, dist.Work] | None = None
    for bucket in (own for flat in gradients for own in flat.split(BUCKET)):
        half = bucket.to(torch.bfloat16)
        work = dist.all_reduce(half, async_op=True)
        if sent:
            _receive(*sent, world)
        sent = bucket, half, work
    if sent:
        _receive(*sent, world)


def _receive(bucket: Tensor, half: Tensor, work: dist.Work, world: int) -> None:
    work.wait()
    bucket.copy_(half.mul_(1 / world))
