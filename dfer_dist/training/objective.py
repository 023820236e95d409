"""What training minimises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfer_dist.config.schema import Config, Supervision
from dfer_dist.training.contrast import contrast


class Objective:
    """A loss for each place of a micro batch; their mean is what a step minimises.

    On labels, the cross-entropy on the logits of each side; on descriptions, :func:`~dfer_dist.training.contrast.contrast`; with ``train.objective=both``,
    the first plus ``train.description_weight`` times the second.

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
        learning = config.train.objective
        self.per_polarity = learning is not Supervision.descriptions
        self.description_weight = (
            config.train.description_weight if learning is Supervision.both else 1.0
        )
        self.temperature = config.model.temperature
        self.side_weights = {"positive": 1.0, "negative": config.model.negative_weight}

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        labels: Tensor,
        valid: Tensor,
        described: Tensor | None = None,
    ) -> Tensor:
        """Losses float32 [b].

        Parameters
        ----------
        outputs : mapping of str to Tensor
            Logits by side, float32 [b, C], and features as ``video`` and ``description``, float32 [b, D]: what there is.
        labels : int64 [b]
        valid, described : bool [b]
            Which clips there are, and which of them have a description. These and the labels may be on any device.
        """
        parts = [
            weight * self._one(outputs[side], labels)
            for side, weight in self.side_weights.items()
            if side in outputs
        ]
        if described is not None:
            told = (described & valid).to(outputs["video"].device, non_blocking=True)
            one = contrast(outputs["video"], outputs["description"], told, self.temperature)
            parts.append(self.description_weight * one)
        losses = torch.stack(parts).sum(0)
        return torch.where(valid.to(losses.device, non_blocking=True), losses, 0.0)

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(logits.device, non_blocking=True)
        return F.cross_entropy(
            logits, labels, self.weights, reduction="none", label_smoothing=self.smoothing
        )


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
