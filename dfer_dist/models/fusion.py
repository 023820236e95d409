"""Features of a clip's levels -> one feature (FineCLIPER: Chen et al., ACM MM 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module):
    """The weighted mean of normalised features, normalised again.

    Parameters
    ----------
    levels : int
        L, the frames among them, which come first.
    video_weight : float, optional
        Of the frames; the others share the rest. Without it the weights are the softmax of L learned numbers, equal at the start.
    """

    def __init__(self, modalities: int, video_weight: float | None) -> None:
        super().__init__()
        self.fixed = (
            None
            if video_weight is None
            else [video_weight, *[(1 - video_weight) / (modalities - 1)] * (modalities - 1)]
        )
        self.scores = nn.Parameter(torch.zeros(modalities)) if video_weight is None else None

    def weights(self) -> Tensor:
        """float32 [L], adding up to 1."""
        return torch.tensor(self.fixed) if self.scores is None else self.scores.float().softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """float32 [L, B, D], each normalised -> float32 [B, D], normalised."""
        weights = self.weights().to(features.device, non_blocking=True)
        return F.normalize(torch.einsum("l,lbd->bd", weights, features), dim=-1)
