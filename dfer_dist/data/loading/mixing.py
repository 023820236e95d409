"""mixup and cutmix of two clips; all their frames and modalities are mixed alike.

The clips of lanes 2i and 2i + 1 of the plan are a pair. Each becomes a mixture with the other, and
its target the same mixture of both targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfer_dist.config.schema import AugmentConfig


class MixParams(NamedTuple):
    """How the clips of a pair are mixed.

    ``weight`` is that of each clip in its own mixture. cutmix exchanges the box, in pixels; mixup
    has an empty one.
    """

    weight: float = 1.0
    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0


def sample_mix(size: int, config: AugmentConfig, rng: np.random.Generator) -> MixParams:
    """Sample how a pair of clips of ``size`` x ``size`` pixels is mixed.

    With both mixup and cutmix each pair gets one of them, as often as the other, as in timm.
    """
    cuts = config.cutmix > 0
    if config.mixup and config.cutmix:
        cuts = rng.random() < 0.5
    if cuts:
        return _sample_box(size, rng.beta(config.cutmix, config.cutmix), rng)
    return MixParams(rng.beta(config.mixup, config.mixup))


def _sample_box(size: int, weight: float, rng: np.random.Generator) -> MixParams:
    """Sample a box of (1 - ``weight``) of the area, about a random pixel, cut off at the border.

    The weight that is returned is that of the area which is left (Yun et al., "CutMix", ICCV 2019,
    section 3.1, as in their code).
    """
    half = int(size * math.sqrt(1 - weight)) // 2
    y, x = (int(at) for at in rng.integers(size, size=2))
    top, left = max(y - half, 0), max(x - half, 0)
    height, width = min(y + half, size) - top, min(x + half, size) - left
    return MixParams(1 - height * width / size**2, top, left, height, width)


def mix_(clips: Tensor, pairs: Iterable[MixParams]) -> None:
    """Mix consecutive clips, uint8 [b, T, 3, S, S], in place.

    Parameters
    ----------
    clips : uint8 [b, T, 3, S, S]
    pairs : iterable of b / 2 MixParams
    """
    for pair, mix in zip(clips.unflatten(0, (-1, 2)), pairs, strict=True):
        if mix.height:
            box = pair[..., mix.top : mix.top + mix.height, mix.left : mix.left + mix.width]
            box.copy_(box.flip(0))
        elif mix.weight < 1:
            mixed = torch.lerp(pair.flip(0).float(), pair.float(), mix.weight)
            pair.copy_(mixed.round_())


def mix_targets(targets: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Return the targets of mixed pairs.

    Parameters
    ----------
    targets : int64 [b] or float32 [b, C]
        Labels or distributions.
    weights : float32 [b]
        Of each clip in its own mixture.
    classes : int
        C.

    Returns
    -------
    float32 [b, C]
        Rows add up to 1.
    """
    own = targets
    if own.dim() == 1:
        own = torch.nn.functional.one_hot(targets, classes).float()
    partners = own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(partners, own, weights[:, None])
