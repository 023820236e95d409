"""Faster parts give what open_clip's give, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from dfer_dist.model.attention import PLAIN_LENGTH, attend
from dfer_dist.model.backbone import load_backbone
from dfer_dist.model.kernels import FusedQuickGELU, PatchEmbedding


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


def test_patches_as_a_product_are_the_convolution() -> None:
    conv = nn.Conv2d(3, 24, 8, stride=8, bias=False)
    own = PatchEmbedding(conv)
    assert [name for name, _ in own.named_parameters()] == ["weight"] and own.weight is conv.weight
    both(own, conv, torch.randn(2, 3, 32, 48), weights=(conv.weight,))


def test_quick_gelu_by_silu() -> None:
    both(FusedQuickGELU(), QuickGELU(), 4 * torch.randn(5, 7, 11))


@pytest.mark.parametrize("length", [7, PLAIN_LENGTH + 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_short_and_long_sequences(length: int, masked: bool) -> None:
    mask = torch.full((length, length), float("-inf")).triu(1) if masked else None
    own, theirs = (lambda q, k, v, f=f: f(q, k, v, mask) for f in (attend, F.scaled_dot_product_attention))
    both(own, theirs, *torch.randn(3, 2, 3, length, 8))


def test_both_towers_have_them() -> None:
    image, text, _ = load_backbone("tiny", "none", 64)
    for tower in (image.transformer, text.transformer):
        assert not any(isinstance(m, (QuickGELU, nn.MultiheadAttention)) for m in tower.modules())
    assert isinstance(image.conv1, PatchEmbedding)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_same_where_no_gradient_is_needed(masked: bool) -> None:
    mask = torch.full((50, 50), float("-inf")).triu(1) if masked else None
    q, k, v = torch.randn(3, 2, 3, 50, 8)
    with_gradient = attend(q.clone().requires_grad_(), k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask), with_gradient.detach(), rtol=1e-5, atol=1e-5)
