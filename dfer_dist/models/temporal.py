"""Reduce the features of frames and modalities to one feature of the clip.

Over time by the transformer of DFER-CLIP (Zhao & Patras, BMVC 2023, section 3.2), or by the mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dfer_dist.config.schema import ModelConfig, TemporalPool
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
    """Class token, learned positions and blocks; it has no final norm.

    The clip's feature is the output of the class token or the mean of those of the frames, as
    ``cfg.temporal_pool`` says. With the mean the class token stays among the tokens, as in MAE.

    Parameters
    ----------
    width : int
        Size D of a frame's feature and of the clip's.
    frames : int
        Number T of frames in a clip.
    cfg : ModelConfig
        Has the sizes of the blocks, and whether their activations are recomputed.
    """

    def __init__(self, width: int, frames: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.recompute, self.pool = cfg.checkpoint_temporal, cfg.temporal_pool
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, frames + 1, width))
        self.blocks = nn.ModuleList(
            TemporalBlock(width, cfg.temporal_heads, cfg.temporal_head_dim, cfg.temporal_mlp)
            for _ in range(cfg.temporal_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of clips: [B, T, D] -> [B, D]."""
        x = torch.cat([repeat(self.cls, "1 1 d -> b 1 d", b=len(x)), x], dim=1) + self.pos
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if self.pool is TemporalPool.mean:
            return x[:, 1:].mean(1)
        return x[:, 0]


class Fusion(nn.Module):
    """The weighted mean of normalized features, normalized again.

    It fuses the modalities of a clip (FineCLIPER: Chen et al., ACM MM 2024).

    Parameters
    ----------
    modalities : int
        M, the frames included, which come first.
    video_weight : float, optional
        Weight of the frames; the other modalities share the rest. By default the weights are the
        softmax of M learned numbers, equal at the start.
    """

    def __init__(self, modalities: int, video_weight: float | None) -> None:
        super().__init__()
        self.fixed: list[float] | None = None
        self.scores: nn.Parameter | None = None
        if video_weight is None:
            self.scores = nn.Parameter(torch.zeros(modalities))
        else:
            others = modalities - 1
            self.fixed = [video_weight, *[(1 - video_weight) / others] * others]

    def weights(self) -> Tensor:
        """Return the weights of the modalities, float32 [M]; their sum is 1."""
        if self.scores is None:
            return torch.tensor(self.fixed)
        return self.scores.float().softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """Average normalized features: float32 [M, B, D] -> float32 [B, D], normalized."""
        weights = self.weights().to(features.device, non_blocking=True)
        return F.normalize(torch.einsum("l,lbd->bd", weights, features), dim=-1)
