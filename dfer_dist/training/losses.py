"""The losses of a training step: cross-entropy on labels, contrastive loss on descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dfer_dist.config.schema import Config, Output, Supervision
from dfer_dist.data.loading.mixing import mix_targets
from dfer_dist.data.sources.compound import membership
from dfer_dist.models.dferclip import ModelOutputs


class Objective:
    """Loss of each clip of a micro batch; a step minimizes their mean.

    The loss is the cross-entropy of the logits of each polarity, the :func:`contrastive_loss` of
    clips and descriptions, or with ``train.objective=both`` the first plus
    ``train.description_weight`` times the second.

    The negative polarity, if there is one, has the weight ``model.negative_weight``. Its logits are
    negated cosines, so the true class should have the lowest cosine (FineCLIPER: Chen et al., ACM
    MM 2024). A damaged clip has the loss zero, so that micro batches of all ranks have equal
    weight. ``train.label_smoothing`` is that of Szegedy et al. (CVPR 2016, section 7).
    ``train.class_balance`` weights classes by their effective number of clips
    (:func:`class_weights`). The target of a clip that is mixed with another is the mixture of both
    targets. Its loss is the same mixture of the two clips' losses, each with the weight of its own
    class, label smoothing included.

    With ``model.output=sigmoid`` the loss of a clip is the mean over the single classes of their
    binary cross-entropies (Wightman et al., "ResNet strikes back", 2021, section 3.2), whose
    targets are 1 for all labels of the clip. Label smoothing moves targets towards 1/2, a class's
    weight is that of its binary cross-entropy, and mixed clips have mixed targets.

    With ``train.target=votes`` a target is the distribution of a clip's votes, and its loss the
    mean over votes of the loss with each vote as label, weights and smoothing included.

    Parameters
    ----------
    config : Config
    histogram : sequence of C float
        Training clips by class; of votes, a clip counts in part for each class.
    device : torch.device
    classes : sequence of C str, optional
        Needed for sigmoid outputs.
    """

    def __init__(
        self,
        config: Config,
        histogram: Sequence[float],
        device: torch.device,
        classes: Sequence[str] = (),
    ) -> None:
        self.train, self.model = config.train, config.model
        self.weights: Tensor | None = None
        # the single classes of each class
        self.members: Tensor | None = None
        if self.model.output is Output.sigmoid:
            members = membership(classes).astype(np.float32)
            self.members = torch.from_numpy(members).to(device)
            histogram = (np.asarray(histogram) @ members).tolist() if histogram else []
        if self.train.class_balance:
            self.weights = class_weights(histogram, self.train.class_balance).to(device)
        self.uses_labels = self.train.objective is not Supervision.descriptions
        self.description_weight = self.train.description_weight if self.uses_labels else 1.0

    def __call__(
        self,
        outputs: ModelOutputs,
        targets: Tensor,
        valid: Tensor,
        has_description: Tensor | None = None,
        own_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each clip, float32 [b].

        Parameters
        ----------
        outputs : ModelOutputs
            With logits if ``uses_labels``, with features if ``has_description`` is given.
        targets : int64 [b] or float32 [b, C]
            Labels, or distributions over the classes; for sigmoid outputs 1 for each label of a
            clip. On any device, as the following three.
        valid : bool [b]
            Which clips are intact.
        has_description : bool [b], optional
            Which clips have a description.
        own_weights : float32 [b], optional
            Of each clip in its own mixture, if pairs of clips are mixed.
        """
        class_loss = self._cross_entropy if self.members is None else self._binary_cross_entropy
        weighted = ((1.0, outputs.positive), (self.model.negative_weight, outputs.negative))
        parts = [
            weight * class_loss(logits, targets, own_weights)
            for weight, logits in weighted
            if logits is not None
        ]
        if has_description is not None:
            video, description = outputs.video, outputs.description
            assert video is not None and description is not None
            has_text = (has_description & valid).to(video.device, non_blocking=True)
            assert self.model.temperature is not None, "config.checks"
            contrastive = contrastive_loss(video, description, has_text, self.model.temperature)
            parts.append(self.description_weight * contrastive)
        losses = torch.stack(parts).sum(0)
        return torch.where(valid.to(losses.device, non_blocking=True), losses, 0.0)

    def _cross_entropy(self, logits: Tensor, targets: Tensor, own_weights: Tensor | None) -> Tensor:
        if own_weights is not None:
            targets = mix_targets(targets, own_weights, logits.shape[1])
        return F.cross_entropy(
            logits,
            targets.to(logits.device, non_blocking=True),
            self.weights,
            reduction="none",
            label_smoothing=self.train.label_smoothing,
        )

    def _binary_cross_entropy(
        self, logits: Tensor, targets: Tensor, own_weights: Tensor | None
    ) -> Tensor:
        assert self.members is not None
        targets = targets.to(logits.device, non_blocking=True)
        if targets.dim() == 1:
            labels = self.members[targets]
        else:
            labels = (targets @ self.members).clamp_max(1)
        if own_weights is not None:
            own = own_weights.to(logits.device, non_blocking=True)
            labels = mix_targets(labels, own, labels.shape[1])
        labels = torch.lerp(labels, torch.full_like(labels, 0.5), self.train.label_smoothing)
        losses = F.binary_cross_entropy_with_logits(logits, labels, self.weights, reduction="none")
        return losses.mean(1)


def class_weights(histogram: Sequence[float], beta: float) -> Tensor:
    """Return weights (1 - beta) / (1 - beta^n) of classes with n clips.

    They are scaled to a mean of 1 over the classes that occur. Cui et al., "Class-Balanced Loss
    Based on Effective Number of Samples", CVPR 2019, equation 6.

    Parameters
    ----------
    histogram : sequence of C float
        Clips by class; less than one clip counts as one.
    beta : float
        In [0, 1).

    Returns
    -------
    float32 [C]
        0 for a class without clips.
    """
    counts = torch.tensor(histogram, dtype=torch.float64)
    present = counts > 0
    effective = (1 - beta ** counts.clamp_min(1)).clamp_min(1e-300)
    weights = torch.where(present, (1 - beta) / effective, 0.0)
    return (weights * present.sum() / weights.sum()).float()


def contrastive_loss(
    video: Tensor, description: Tensor, has_description: Tensor, temperature: float
) -> Tensor:
    """Return the InfoNCE loss of this rank's clips among the clips of all ranks. Collective.

    The loss is that of CLIP, in both directions (Radford et al., "Learning Transferable Visual
    Models From Natural Language Supervision", ICML 2021, section 2.3). The backward pass is
    collective too. The mean over the clips of all ranks is the loss of the whole batch, and the
    mean of their gradients its gradient; neither depends on the number of ranks. A clip without a
    description has the loss zero and is no negative of another clip.

    Parameters
    ----------
    video, description : float32 [b, D]
        Features of unit length; every rank has the same b.
    has_description : bool [b]
        Which clips have a description.
    temperature : float

    Returns
    -------
    float32 [b]
        The mean of two cross-entropies, in nats.
    """
    size, width = video.shape
    features = torch.cat([video, description, has_description[:, None].to(video)], dim=1)
    if _world_size() > 1:
        features = _AllGather.apply(features)
    all_videos, all_texts, all_has_description = features.split([width, width, 1], dim=1)
    targets = torch.arange(size, device=video.device) + size * _rank()
    masked = torch.finfo(torch.float32).min / 4
    losses = torch.zeros_like(video[:, 0])
    for own, others in ((video, all_texts), (description, all_videos)):
        logits = (own @ others.t() / temperature).masked_fill(all_has_description.t() == 0, masked)
        losses = losses + F.cross_entropy(logits, targets, reduction="none") / 2
    return torch.where(has_description, losses, 0.0)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    """Rows of all ranks in rank order; the backward pass sums all ranks' gradients for a row."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(_world_size())[_rank()]
