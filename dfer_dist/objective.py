"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfer_dist.config import TrainConfig


class Objective:
    """Cross-entropy on the logits, for each place of a micro batch; their mean is what a step minimises.

    A place whose clip was lost to damage counts as zero, so that micro batches of all ranks weigh the same.
    ``train.label_smoothing`` is that of Szegedy et al. (CVPR 2016, section 7); ``train.class_balance`` weighs classes by
    the effective number of their clips (:func:`class_weights`).

    Parameters
    ----------
    train : TrainConfig
    histogram : sequence of C int
        Training clips by label.
    device : torch.device
    """

    def __init__(self, train: TrainConfig, histogram: Sequence[int], device: torch.device) -> None:
        self.smoothing = train.label_smoothing
        self.weights = class_weights(histogram, train.class_balance).to(device) if train.class_balance else None

    def __call__(self, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Logits float32 [b, C], labels int64 [b] and valid bool [b] (on any device) -> losses float32 [b]."""
        valid, labels = (x.to(logits.device, non_blocking=True) for x in (valid, labels))
        losses = F.cross_entropy(logits, labels, self.weights, reduction="none", label_smoothing=self.smoothing)
        return torch.where(valid, losses, 0.0)


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
