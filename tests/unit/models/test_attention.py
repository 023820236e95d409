"""Explicit attention equals that of torch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfer_dist.models.attention import MAX_PLAIN_TOKENS, attend, attend_packed
from dfer_dist.models.lora import LoRAAttention
from tests.helpers.models.kernels import assert_equal_layers


@pytest.mark.parametrize("length", [7, MAX_PLAIN_TOKENS + 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_short_and_long_sequences(length: int, masked: bool) -> None:
    mask = torch.full((length, length), float("-inf")).triu(1) if masked else None
    own, theirs = (
        lambda q, k, v, f=f: f(q, k, v, mask) for f in (attend, F.scaled_dot_product_attention)
    )
    assert_equal_layers(own, theirs, *torch.randn(3, 2, 3, length, 8))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_same_where_no_gradient_is_needed(masked: bool) -> None:
    mask = torch.full((50, 50), float("-inf")).triu(1) if masked else None
    q, k, v = torch.randn(3, 2, 3, 50, 8)
    with_gradient = attend(q.clone().requires_grad_(), k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask), with_gradient.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [7, MAX_PLAIN_TOKENS + 1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_queries", [None, 2])
def test_attention_of_queries_keys_and_values_side_by_side(
    length: int, masked: bool, num_queries: int | None
) -> None:
    mask = torch.full((length, length), float("-inf")).triu(1) if masked else None

    def apart(qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in qkv.unflatten(-1, (3, 2, 8)).unbind(2))
        return (
            F.scaled_dot_product_attention(q, k, v, mask)
            .transpose(1, 2)
            .flatten(2)[:, :num_queries]
        )

    qkv = torch.randn(3, length, 48)
    assert_equal_layers(lambda qkv: attend_packed(qkv, 2, mask, num_queries), apart, qkv)
    torch.testing.assert_close(attend_packed(qkv, 2, mask, num_queries), apart(qkv))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_explicit_attention_is_torchs(causal: bool, train: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(96, 3, batch_first=True).train(train)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = LoRAAttention(copy.deepcopy(theirs), rank=4, alpha=8)
    mask = torch.full((7, 7), -torch.inf).triu(1) if causal else None
    results = []
    for module in (theirs, ours):
        x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = module(x, x, x, need_weights=False, attn_mask=mask)[0]
        y.square().sum().backward()
        results.append(
            (
                y.detach(),
                x.grad,
                module.in_proj_weight.grad,
                module.in_proj_bias.grad,
                module.out_proj.weight.grad,
            )
        )
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-6 * max(1, a.abs().max())
