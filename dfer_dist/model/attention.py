"""Self-attention in explicit layers, in the place of ``nn.MultiheadAttention``, which hands its weights to one fused function.

ZeRO-3 holds a weight for the length of a layer's own forward pass only, so what is added to a layer has to be added there. And where the weights
are frozen, torch 2.14's own transposes its input, which the CPU then multiplies with a copy of the weight for each token: 0.65 GiB in a block of
ViT-B/16 in bf16, for a moment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PLAIN_LENGTH = 512  # tokens up to which the CPU trains by plain products: as fast up to 577, but they keep their scores


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v by whatever is fastest on the device: [B, H, N, d] each -> [B, H, N, d].

    Parameters
    ----------
    mask : Tensor [N, N], optional
        Of ``q``'s type; added to the scores.
    """
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if q.is_cuda or not trained or q.shape[-2] > PLAIN_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # the CPU's fused kernel is slow in its backward pass
    return (scores if mask is None else scores + mask).softmax(-1) @ v


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
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """[B, N, D] -> [B, N, D]; ``key`` and ``value`` are ``x`` again, ``attn_mask`` [N, N] is added to the scores."""
        q, k, v = rearrange(self.project(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        return self.out_proj(rearrange(attend(q, k, v, attn_mask), "b h n d -> b n (h d)")), None
