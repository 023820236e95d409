"""Self-attention in explicit layers, in the place of ``nn.MultiheadAttention``, which hands its weights to one fused function.

ZeRO-3 holds a weight for the length of a layer's own forward pass only, so what is added to a layer has to be added there. And where the weights
are frozen, torch 2.14's own transposes its input, which the CPU then multiplies with a copy of the weight for each token: 0.65 GiB in a block of
ViT-B/16 in bf16, for a moment.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfer_dist.models.linear import linear

PLAIN_LENGTH = 512  # tokens up to which the CPU trains by plain products: as fast up to 577, but they keep their scores


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v by whatever is fastest on the device: [B, H, N, d] each -> [B, H, N, d].

    Parameters
    ----------
    mask : Tensor [N, N], optional
        Of ``q``'s type; added to the scores.
    """
    if fused(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def attend_all(
    qkv: Tensor, heads: int, mask: Tensor | None = None, read: int | None = None
) -> Tensor:
    """:func:`attend` of queries, keys and values that lie side by side, for the first ``read`` tokens: [B, N, 3 D] -> [B, read, D]."""
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
    if mask is None and not fused(q, k, v):
        return _PlainProducts.apply(qkv, heads, read)
    attended = attend(q[:, :, :read], k, v, None if mask is None else mask[:read])
    return rearrange(attended, "b h n d -> b n (h d)")


def fused(*qkv: Tensor) -> bool:
    """Whether torch's fused kernel is the fastest for these, [B, H, N, d] each; the CPU's is slow in its backward pass."""
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in qkv)
    return qkv[0].is_cuda or not trained or qkv[0].shape[-2] > PLAIN_LENGTH


class _PlainProducts(torch.autograd.Function):
    """What :func:`attend` computes by plain products. Heads are laid one after the other once, and their gradients back once: torch's own
    derivative copies each factor of each product."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, read: int | None) -> Tensor:
        by_head = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
        packed = qkv.new_empty(by_head.shape).copy_(by_head)
        packed[0].mul_(by_head.shape[-1] ** -0.5)
        q, k, v = packed.flatten(1, 2)
        weights = torch.bmm(q[:, :read], k.transpose(1, 2)).softmax(-1)
        ctx.heads, ctx.read = heads, read
        ctx.save_for_backward(packed, weights)
        return rearrange(torch.bmm(weights, v), "(b h) n d -> b n (h d)", h=heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        packed, weights = ctx.saved_tensors
        q, k, v = packed.flatten(1, 2)
        q = q[:, : ctx.read]
        g = rearrange(gradients[0], "b n (h d) -> (b h) n d", h=ctx.heads)
        scores = torch._softmax_backward_data(
            torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype
        )
        make = (
            g.new_empty if ctx.read is None else g.new_zeros
        )  # other tokens' queries had no part in it
        out = make((packed.shape[1], k.shape[1], 3 * ctx.heads * k.shape[2]))
        of_q, of_k, of_v = rearrange(
            out, "b n (three h d) -> three b h n d", three=3, h=ctx.heads, d=k.shape[2]
        )
        of_q = of_q[:, :, : ctx.read]
        of_q.copy_(torch.bmm(scores, k).mul_(k.shape[2] ** -0.5).view(of_q.shape))
        of_k.copy_(torch.bmm(scores.transpose(1, 2), q).view(of_k.shape))
        of_v.copy_(torch.bmm(weights.transpose(1, 2), g).view(of_v.shape))
        return out, None, None


class SelfAttention(nn.Module):
    """Self-attention as ``nn.MultiheadAttention`` computes it, whose weights this takes over under their names.

    It stands where open_clip's blocks call theirs, so it has that one's arguments and returns a pair.
    """

    num_heads: int
    in_proj_weight: Tensor
    in_proj_bias: Tensor
    out_proj: nn.Module

    def __init__(self, base: nn.MultiheadAttention | SelfAttention) -> None:
        super().__init__()
        self.num_heads = base.num_heads
        self.in_proj_weight, self.in_proj_bias = base.in_proj_weight, base.in_proj_bias
        self.out_proj = base.out_proj

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, [B, N, 3 D]."""
        return linear(x, self.in_proj_weight, self.in_proj_bias)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        read: int | None = None,
    ) -> tuple[Tensor, None]:
        """[B, N, D] -> [B, N, D]; ``key`` and ``value`` are ``x`` again, ``attn_mask`` [N, N] is added to the scores. Of the first ``read`` tokens alone, if given."""
        return self.out_proj(attend_all(self.project(x), self.num_heads, attn_mask, read)), None
