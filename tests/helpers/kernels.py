"""The same layers with and without CPU kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def both(
    own: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    *inputs: Tensor,
    weights: tuple[Tensor, ...] = (),
    tolerance: float = 1e-5,
) -> None:
    """Values and gradients of all inputs and weights are equal to ``tolerance``."""
    seen = []
    for work in (own, theirs):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = work(*leaves)
        g = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
        seen.append([out, *torch.autograd.grad(out, [*leaves, *weights], g)])
    for a, b in zip(*seen, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()
