"""RandAugment and random erasing by torchvision, the same for all frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torchvision.transforms import v2

from dfer_dist.config.schema import AugmentConfig

#: Seeds are below this.
MAX_SEED = 2**63


@dataclass(frozen=True)
class RandAugment:
    """Random operations of RandAugment on each clip of a batch, then random erasing.

    RandAugment is Cubuk et al., NeurIPS 2020, with torchvision's operations; random erasing is
    Zhong et al., AAAI 2020, filled black. Each clip has a seed of its own, so that what is drawn
    depends neither on the device nor on the other clips.

    Attributes
    ----------
    seeds : dict of int to int
        By position in the batch; clips that are not in it are left as they are.
    operations, magnitude : int
        Operations on a clip, and the position of their strength on a scale from 0 to 30.
    erasing : float
        Probability that a box of a clip is erased.
    """

    seeds: dict[int, int]
    operations: int
    magnitude: int
    erasing: float

    @classmethod
    def from_config(cls, config: AugmentConfig, seeds: dict[int, int]) -> Self:
        """Return the operations that the settings ask for."""
        return cls(seeds, config.rand_augment, config.rand_magnitude, config.erasing)

    def apply_(self, clips: Tensor) -> None:
        """Change clips, uint8 [b, T, 3, S, S] on any device, in place."""
        transform = v2.Compose(
            [v2.RandAugment(self.operations, self.magnitude), v2.RandomErasing(self.erasing)]
        )
        # torchvision samples from the CPU's default generator
        with torch.random.fork_rng(devices=[]):
            for i, seed in self.seeds.items():
                # torch.manual_seed would seed GPUs too
                torch.default_generator.manual_seed(seed)
                clips[i] = transform(clips[i])
