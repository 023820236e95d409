"""Reduce frame features to one feature of the clip.

By the temporal transformer of DFER-CLIP (Zhao & Patras, BMVC 2023, section 3.2), or by the mean.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dfer_dist.models import attention


class TemporalBlock(nn.Module):
    """A pre-norm transformer block: x + attention(LN(x)), then x + MLP(LN(x)).

    It has no mask and no dropout. GELU is the tanh form: with the exact one, logits are 20 times as
    far from those measured on the authors' code.
    """

    def __init__(self, width: int, heads: int, head_dim: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp), nn.GELU(approximate="tanh"), nn.Linear(mlp, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens: [B, N, D] -> [B, N, D]."""
        x = x + self.out(attention.attend_packed(self.qkv(self.norm1(x)), self.heads))
        return x + self.mlp(self.norm2(x))


class MeanOverTime(nn.Module):
    """The mean of a clip's frame features; it has no parameters and ignores their order."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over time: [B, T, D] -> [B, D]."""
        return x.mean(1)


class TemporalTransformer(nn.Module):
    """Class token, learned positions and blocks; the class token is the clip's feature.

    It has no final norm.

    Parameters
    ----------
    width : int
        Size D of a frame's feature and of the clip's.
    frames : int
        Number T of frames in a clip.
    recompute : bool
        Recompute each block's activations in the backward pass.
    """

    def __init__(
        self,
        width: int,
        frames: int,
        layers: int,
        heads: int,
        head_dim: int,
        mlp: int,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, frames + 1, width))
        self.blocks = nn.ModuleList(
            TemporalBlock(width, heads, head_dim, mlp) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature of the class token: [B, T, D] -> [B, D]."""
        x = torch.cat([repeat(self.cls, "1 1 d -> b 1 d", b=len(x)), x], dim=1) + self.pos
        for block in self.blocks:
            if self.recompute:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x[:, 0]
