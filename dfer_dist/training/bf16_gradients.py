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
DeepSpeed would copy all of them four times to send them in one piece, even to no other rank, and
only after the backward pass.

Written for DeepSpeed 0.19; ``setup.cfg`` bounds its version. A test compares the source of each
function that is replaced or relied on with its hash.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Gradient values that DeepSpeed reduces at a time; its default of 5e8 takes up to 2 GB of buffers.
BUCKET = 50_000_000
# Gradient values that are sent at a time here, and how many such parts at once, of the same size.
PART = 10_000_000
MAX_IN_FLIGHT = 2 * BUCKET // PART


def replace_hooks(engine: Any) -> GradientAverager | None:
    """Replace the functions if ``engine`` is for ZeRO-1 in bf16.

    Parameters
    ----------
    engine : deepspeed.DeepSpeedEngine

    Returns
    -------
    GradientAverager or None
        Its :meth:`~GradientAverager.finish` must be called after the last backward pass of a step.
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    optimizer = engine.optimizer
    if not isinstance(optimizer, BF16_Optimizer):
        return None
    engine.enable_backward_allreduce = False
    averager = GradientAverager(optimizer, engine.is_gradient_accumulation_boundary)
    optimizer._update_hp_grad = partial(_update_hp_grad, optimizer, averager)
    optimizer.clear_hp_grads = partial(_clear_hp_grads, optimizer)
    return averager


def _update_hp_grad(
    optimizer: Any,
    averager: GradientAverager,
    parameter: Any,
    group: int,
    index: int,
    clear_lp_grads: bool,
) -> None:
    """Replace ``_update_hp_grad``, which a hook calls for each parameter that has a gradient."""
    kept = optimizer.fp32_groups_gradients[group][index]
    parameter._hp_grad = kept
    written = optimizer.fp32_groups_has_gradients[group]
    gradient = parameter.grad.view(kept.shape)
    if written[index]:
        kept.add_(gradient)
    else:
        kept.copy_(gradient)
    written[index] = True
    averager.on_written(group, index)


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
        # On all ranks: those that have no gradient are left out of its norm.
        written[:] = [True] * len(written)


class GradientAverager:
    """Replaces the float32 gradients of a step by their mean over all ranks.

    They are sent in bf16, as by DeepSpeed, in parts. A part is sent as soon as the last micro batch
    has written it, while the backward pass runs. All ranks send parts in the same order: that in
    which rank 0 wrote them in its first step. Any order gives the same numbers.
    """

    def __init__(self, optimizer: Any, is_last_micro_batch: Callable[[], bool]) -> None:
        self._optimizer, self._is_last = optimizer, is_last_micro_batch
        self._world_size = dist.get_world_size()
        self._parts: list[Tensor] = []
        # The parts that the gradient of a parameter is in, by its group and index.
        self._parts_of: dict[tuple[int, int], range] = {}
        for group, flat in enumerate(optimizer.fp32_groups_gradients_flat):
            first, begin = len(self._parts), 0
            self._parts += flat.split(PART)
            for index, gradient in enumerate(optimizer.fp32_groups_gradients[group]):
                end = begin + gradient.numel()
                self._parts_of[group, index] = range(
                    first + begin // PART, first + (end - 1) // PART + 1
                )
                begin = end
        self._num_gradients = Counter(chain.from_iterable(self._parts_of.values()))
        self._missing = self._num_gradients.copy()
        self._written: list[int] = []
        self._order: list[int] | None = None
        self._num_sent = 0
        self._in_flight: deque[tuple[int, Tensor, dist.Work]] = deque()

    def on_written(self, group: int, index: int) -> None:
        """Send what is complete now that a micro batch has written a gradient."""
        if self._world_size == 1 or not self._is_last():
            return
        for part in self._parts_of[group, index]:
            self._missing[part] -= 1
            if not self._missing[part]:
                self._written.append(part)
        if self._order is not None:
            self._send(lambda part: not self._missing[part])

    def finish(self) -> None:
        """Send the rest and wait for all. Collective."""
        zero_unwritten_gradients(self._optimizer)
        if self._world_size == 1:
            return
        if self._order is None:
            order = [*self._written, *sorted(set(range(len(self._parts))) - {*self._written})]
            orders = [order]
            dist.broadcast_object_list(orders)
            [self._order] = orders
        self._send(lambda _: True)
        while self._in_flight:
            self._receive()
        self._missing, self._written = self._num_gradients.copy(), []
        self._num_sent = 0

    def _send(self, is_complete: Callable[[int], bool]) -> None:
        """Send parts in order up to the first one that is not complete."""
        assert self._order is not None
        while self._num_sent < len(self._order) and is_complete(self._order[self._num_sent]):
            part = self._order[self._num_sent]
            if len(self._in_flight) == MAX_IN_FLIGHT:
                self._receive()
            half = self._parts[part].to(torch.bfloat16)
            self._in_flight.append((part, half, dist.all_reduce(half, async_op=True)))
            self._num_sent += 1

    def _receive(self) -> None:
        """Wait for the part that was sent first."""
        part, half, work = self._in_flight.popleft()
        work.wait()
        self._parts[part].copy_(half.mul_(1 / self._world_size))
