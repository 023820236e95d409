"""Self-attention in explicit layers, in the place of ``nn.MultiheadAttention``, which hands its weights to one fused function.

ZeRO-3 holds a weight for the length of a layer's own forward pass only, so what is added to a layer has to be added there. And where the weights
are frozen, torch 2.14's own transposes its input, which the CPU then multiplies with a copy of the weight for each token: 0.65 GiB in a block of
ViT-B/16 in bf16, for a moment.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Self-attention as ``nn.MultiheadAttention`` computes it, whose weights this takes over under their names.

    It stands where open_clip's blocks call theirs, so it has that one's arguments and returns a pair.
    """

    def __init__(self, base: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = base.num_heads
        self.in_proj_weight, self.in_proj_bias = base.in_proj_weight, base.in_proj_bias
        self.out_proj: nn.Module = base.out_proj

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, [B, N, 3 D]."""
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """[B, N, D] -> [B, N, D]; ``key`` and ``value`` are ``x`` again, ``attn_mask`` [N, N] is added to the scores."""
        q, k, v = rearrange(self.project(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(rearrange(mixed, "b h n d -> b n (h d)")), None
