"""Record the matrix products of some work while it runs, and time them alone.

Their time is a lower bound of the time of the work.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfer_dist.models import cpu_kernels

_aten = torch.ops.aten
# Place of the first of two factors in an operation's arguments.
_FACTORS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
_Layout = tuple[tuple[int, ...], tuple[int, ...]]


class Product(NamedTuple):
    """The layout of two factors in memory: (shape, stride) of each."""

    left: _Layout
    right: _Layout
    dtype: torch.dtype


class MatrixProducts(TorchDispatchMode):
    """Record the matrix products of what runs inside it, forward and backward.

    ``counts`` has how often each occurs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()
        self._own = cpu_kernels.linear_gradients
        self._paused = False

    def __enter__(self) -> MatrixProducts:
        """Record from here on."""
        cpu_kernels.linear_gradients = self._linear_gradients
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop recording."""
        super().__exit__(*error)
        cpu_kernels.linear_gradients = self._own

    def _linear_gradients(
        self, g: Tensor, x: Tensor, input_scale: float, output_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Count a weight's gradient as one product, as in torch's own backward pass.

        Its computation here may consist of several.
        """
        self._record(g.t(), x)
        self._paused = True
        try:
            return self._own(g, x, input_scale, output_scale)
        finally:
            self._paused = False

    def _record(self, left: Tensor, right: Tensor) -> None:
        self.counts[Product(_layout(left), _layout(right), left.dtype)] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and record it if it is a matrix product."""
        if func in _FACTORS and not self._paused:
            self._record(*args[_FACTORS[func] :][:2])
        elif func is torch.ops.mkldnn._linear_pointwise.default and not self._paused:
            self._record(args[0].flatten(0, -2), args[1].t())
        return func(*args, **(kwargs or {}))

    def seconds(self, device: torch.device) -> float:
        """Return the seconds of all of them, one after the other, on random factors.

        Each is timed at most three times; the time is scaled to its count.
        """
        total = 0.0
        for product, count in self.counts.items():
            left, right = (_make(layout, product.dtype, device) for layout in product[:2])
            multiply = torch.mm if left.dim() == 2 else torch.bmm
            multiply(left, right)
            times = min(count, 3)
            begin = synchronized_time(device)
            for _ in range(times):
                multiply(left, right)
            total += (synchronized_time(device) - begin) * count / times
        return total


def _layout(x: Tensor) -> _Layout:
    return tuple(x.shape), tuple(x.stride())


def _make(layout: _Layout, dtype: torch.dtype, device: torch.device) -> Tensor:
    shape, stride = layout
    size = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    return torch.randn(size, dtype=dtype, device=device).as_strided(shape, stride)


def synchronized_time(device: torch.device) -> float:
    """Return the clock's seconds once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
