"""A linear classifier on the feature of a clip, in place of a text tower."""

from __future__ import annotations

from torch import Tensor, nn

from dfer_dist.config.schema import HeadInit

_STD = 0.02  # as timm initializes classifiers of ViTs


def linear_head(width: int, classes: int, init: HeadInit) -> nn.Linear:
    """Return a classifier of C classes; its bias is zero at the start.

    Parameters
    ----------
    width : int
        Size D of a clip's feature.
    classes : int
    init : HeadInit
        ``text`` leaves the weight as ``zeros`` does; the caller fills it.
    """
    head = nn.Linear(width, classes)
    nn.init.zeros_(head.bias)
    if init is HeadInit.normal:
        nn.init.trunc_normal_(head.weight, std=_STD)
    else:
        nn.init.zeros_(head.weight)
    return head


def classify(head: nn.Linear, features: Tensor) -> Tensor:
    """Return logits of normalized features, scaled to a mean square of 1 as after a LayerNorm.

    Parameters
    ----------
    features : float32 [B, D]
        Of unit length.

    Returns
    -------
    float32 [B, C]
    """
    scaled = features * features.shape[1] ** 0.5
    return head(scaled.to(head.weight.dtype)).float()
