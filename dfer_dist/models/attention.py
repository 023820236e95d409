"""Self-attention in explicit layers, in place of ``nn.MultiheadAttention``.

``nn.MultiheadAttention`` passes its weights to one fused function. ZeRO-3 gathers a weight only
during the forward pass of its own layer, so what is added to a layer (LoRA) has to be a layer.
Besides, with frozen weights torch 2.14's own transposes its input, which the CPU then multiplies
with a copy of the weight for each token: for a moment 0.65 GiB in a block of ViT-B/16 in bf16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from dfer_dist.models.cpu_kernels import attend_plain, linear

# Tokens up to which the CPU trains by plain products. They are as fast up to 577 tokens, but their
# scores are kept for the backward pass.
MAX_PLAIN_TOKENS = 512


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask) v by the fastest kernel of the device.

    Parameters
    ----------
    q, k, v : [B, H, N, d]
    mask : [N, N] or [B, 1, N, N], optional
        Of the type of ``q``; added to the scores.

    Returns
    -------
    [B, H, N, d]
    """
    if uses_fused_kernel(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ v


def attend_packed(
    qkv: Tensor, heads: int, mask: Tensor | None = None, num_queries: int | None = None
) -> Tensor:
    """Return :func:`attend` of concatenated queries, keys and values.

    Parameters
    ----------
    qkv : [B, N, 3 D]
    mask : [N, N] or [B, 1, N, N], optional
        Added to the scores.
    num_queries : int, optional
        Compute the output of the first tokens only.

    Returns
    -------
    [B, num_queries or N, D]
    """
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
    if mask is None and not uses_fused_kernel(q, k, v):
        return attend_plain(qkv, heads, num_queries)
    if mask is not None:
        mask = mask[..., :num_queries, :]
    attended = attend(q[:, :, :num_queries], k, v, mask)
    return rearrange(attended, "b h n d -> b n (h d)")


def uses_fused_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether torch's fused kernel is the fastest for these, [B, H, N, d] each.

    The backward pass of the CPU's is slow.
    """
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return q.is_cuda or not trained or q.shape[-2] > MAX_PLAIN_TOKENS


class SelfAttention(nn.Module):
    """Self-attention as ``nn.MultiheadAttention`` computes it.

    It takes over the weights of ``base`` under their names. Blocks of open_clip call it, so it has
    the arguments of ``nn.MultiheadAttention`` and returns a pair.
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
        """Return queries, keys and values: [B, N, D] -> [B, N, 3 D]."""
        return linear(x, self.in_proj_weight, self.in_proj_bias)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        num_queries: int | None = None,
    ) -> tuple[Tensor, None]:
        """Attend to all tokens.

        Parameters
        ----------
        x : [B, N, D]
        key, value
            ``x`` again.
        attn_mask : [N, N], optional
            Added to the scores.
        num_queries : int, optional
            Compute the output of the first tokens only.

        Returns
        -------
        [B, num_queries or N, D], None
        """
        attended = attend_packed(self.project(x), self.num_heads, attn_mask, num_queries)
        return self.out_proj(attended), None


def use_explicit_attention(*towers: Transformer) -> None:
    """Replace the attention of each block of the towers, in place.

    Blocks that are not built as those of OpenAI's CLIP are not changed.
    """
    for tower in towers:
        for block in tower.resblocks:
            if isinstance(block, ResidualAttentionBlock):
                block.attn = SelfAttention(block.attn)
