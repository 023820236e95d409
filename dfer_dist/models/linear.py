"""Linear layers by the products that the CPU is fastest at in bf16; elsewhere they are torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WIDE = 256  # inputs from which on a layer's products outweigh what a Python function costs
STEEP = 3  # times as many outputs as inputs, or the other way round, from which on a transposed copy of the smaller factor pays
_ROWS = 128  # copied at a time by a transposition, which runs along them


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: float = 1.0, after: float = 1.0
) -> Tensor:
    """after (before x W^T + b): as ``F.linear`` where both are 1, with factors that cost no pass over numbers where :func:`is_fast`.

    [..., inputs] -> [..., outputs].
    """
    if is_fast(x):
        return _Linear.apply(x, weight, bias, before, after)
    y = F.linear(x if before == 1 else before * x, weight, bias)
    return y if after == 1 else after * y


def is_fast(x: Tensor) -> bool:
    """Whether a layer with these inputs, [..., inputs], has faster products than torch's own: bf16 on a CPU, and not too narrow."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return on_cpu and x.shape[-1] >= WIDE and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Linear(nn.Linear):
    """A linear layer that computes by :func:`linear`, and takes over the weights of ``base`` under their names."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor, before: float = 1.0, after: float = 1.0) -> Tensor:
        """:func:`linear` with this layer's weights."""
        return linear(x, self.weight, self.bias, before, after)


class _Linear(torch.autograd.Function):
    """oneDNN's product adds the bias itself, where ``F.linear`` fills the output with copies of it beforehand."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, before: float, after: float
    ) -> Tensor:
        ctx.save_for_backward(
            x if ctx.needs_input_grad[1] else None, weight
        )  # a frozen layer needs its input no more
        ctx.before, ctx.after, ctx.shape = before, after, x.shape
        if before == after == 1 or bias is None:
            y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return y if before == after == 1 else y.mul_(before * after)
        bias = bias if after == 1 else after * bias
        return torch.addmm(bias, x.flatten(0, -2), weight.t(), alpha=before * after).unflatten(
            0, x.shape[:-1]
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needed, g = ctx.needs_input_grad, gradients[0].flatten(0, -2)
        of_x = _product(g, weight, ctx.before * ctx.after).view(ctx.shape) if needed[0] else None
        of_weight = of_bias = None
        if needed[1]:
            of_weight, of_bias = layer_gradients(g, x.flatten(0, -2), ctx.before, ctx.after)
        elif needed[2]:
            of_bias = ctx.after * g.sum(0)
        return of_x, of_weight, of_bias if needed[2] else None, None, None


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def layer_gradients(g: Tensor, x: Tensor, before: float, after: float) -> tuple[Tensor, Tensor]:
    """Gradients of a weight and a bias, ``before after g^T x`` and ``after g^T 1``: [rows, outputs] and [rows, inputs] -> [outputs, inputs] and [outputs].

    oneDNN is slow where its left factor lies transposed, so that a copy of the smaller factor and, where that is x, of the result is the
    shorter way. Rows of ones below x then sum g in the same product: 16, since the matrix unit multiplies no fewer.
    """
    inputs, outputs, scale = x.shape[1], g.shape[1], before * after
    if inputs * STEEP <= outputs:
        left = x.new_empty(inputs + 16, len(x))
        transpose(x, left[:inputs])
        left[inputs:] = 1
        both = _product(left, g, scale)
        of_weight = transpose(both[:inputs], x.new_empty(outputs, inputs))
        return of_weight, both[inputs] / before
    left = transpose(g, g.new_empty(outputs, len(g))) if outputs * STEEP <= inputs else g.t()
    of_bias = g.sum(0)
    return _product(left, x, scale), of_bias if after == 1 else after * of_bias


def transpose(x: Tensor, out: Tensor) -> Tensor:
    """Lay x [A, B] as ``out`` [B, A], by all threads; ``x.t().contiguous()`` is the work of one."""
    torch._foreach_copy_(out.split(_ROWS, 1), [rows.t() for rows in x.split(_ROWS)])
    return out
