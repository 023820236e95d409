"""Compare layers with and without CPU kernels."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from dfer_dist.models.attention import use_explicit_attention
from dfer_dist.models.cpu_kernels import use_cpu_kernels, use_fast_blocks


def replace_layers(clip: open_clip.CLIP) -> None:
    """Replace the layers of assert_equal_layers towers as ``load_backbone`` does."""
    use_explicit_attention(clip.visual.transformer, clip.transformer)
    use_cpu_kernels(clip.visual)
    use_fast_blocks(clip.transformer)


def assert_equal_layers(
    own: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    *inputs: Tensor,
    weights: tuple[Tensor, ...] = (),
    tolerance: float = 1e-5,
) -> None:
    """Assert equal values and gradients of all inputs and weights, to ``tolerance``."""
    results = []
    for work in (own, theirs):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = work(*leaves)
        g = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
        results.append([out, *torch.autograd.grad(out, [*leaves, *weights], g)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()
