"""What training minimises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfer_dist.config import Config


class Objective:
    """Cross-entropy on the logits of each side, for each place of a micro batch; their mean is what a step minimises.

    The negative side, if there is one, is added with the weight ``model.negative_weight``. Its logits are negated cosines, so the true class is asked
    to have the lowest one (FineCLIPER: Chen et al., ACM MM 2024). A place whose clip was lost to damage counts as zero, so that micro batches of all ranks weigh the same.
    ``train.label_smoothing`` is that of Szegedy et al. (CVPR 2016, section 7); ``train.class_balance`` weighs classes by
    the effective number of their clips (:func:`class_weights`).

    Parameters
    ----------
    config : Config
    histogram : sequence of C int
        Training clips by label.
    device : torch.device
    """

    def __init__(self, config: Config, histogram: Sequence[int], device: torch.device) -> None:
        self.smoothing = config.train.label_smoothing
        balance = config.train.class_balance
        self.weights = class_weights(histogram, balance).to(device) if balance else None
        self.side_weights = {"positive": 1.0, "negative": config.model.negative_weight}

    def __call__(self, sides: Mapping[str, Tensor], labels: Tensor, valid: Tensor) -> Tensor:
        """Logits by side, float32 [b, C], labels int64 [b] and valid bool [b] (both on any device) -> losses float32 [b]."""
        losses = torch.stack([self.side_weights[side] * self._one(logits, labels) for side, logits in sides.items()]).sum(0)
        return torch.where(valid.to(losses.device, non_blocking=True), losses, 0.0)

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(logits.device, non_blocking=True)
        return F.cross_entropy(logits, labels, self.weights, reduction="none", label_smoothing=self.smoothing)


def class_weights(histogram: Sequence[int], beta: float) -> Tensor:
    """Weights (1 - beta) / (1 - beta^n) of classes with n clips, scaled to a mean of 1 over classes that occur.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 6.

    Returns
    -------
    Tensor, float32 [C]
        0 for a class without clips.
    """
    counts = torch.tensor(histogram, dtype=torch.float64)
    present = counts > 0
    weights = torch.where(present, (1 - beta) / (1 - beta**counts).clamp_min(1e-300), 0.0)
    return (weights * present.sum() / weights.sum()).float()
