"""Fuse the features of a clip's modalities (FineCLIPER: Chen et al., ACM MM 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module):
    """The weighted mean of normalized features, normalized again.

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
