"""Stochastic depth of an image tower: a residual branch is left out for whole clips.

As in Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, rates grow linearly with
depth, from 0 in the first block to ``model.drop_path`` in the last. As in timm, a branch that is
kept is divided by the probability of keeping it, all branches of a block have the same rate, and
nothing is left out in a test. All frames, modalities and regions of a clip are treated alike.

With adapters, the given branches are kept and what adapters add next to them is dropped: the
temporal adapter's output and that of the adapter parallel to the MLP, as in the code of AIM (Yang
et al., ICLR 2023). The adapter after the attention is a part of that branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dfer_dist.data.loading.sampler import keyed_rng
from dfer_dist.models.layers import blocks_of

# Modules of a block whose outputs are added to the residual stream: in timm's blocks, open_clip's,
# and those on regions of MAE-DFER.
_BRANCHES = (
    ("drop_path1", "drop_path2"),
    ("ls_1", "ls_2"),
    ("local_attn", "global_attn", "exchange_attn", "mlp"),
)
_ADAPTERS = ("time_adapter", "mlp_adapter")


class DropPath:
    """The residual branches of a tower that are left out for each clip of a micro batch.

    A forward hook on each branch reads them, so weights keep their names and recomputed
    activations are those of the first pass.

    Parameters
    ----------
    rate : float
        Of the last block.
    layers, branches : int
        Blocks L of the tower, and branches K of each.
    inputs : int
        The frames and modalities M of a clip; the tower's batch has M parts of B clips.

    Attributes
    ----------
    rates : float64 [K L]
        Of each branch.
    scales : float32 [K L, B] or None
        Factors of the branches of each clip; None keeps all branches.
    """

    def __init__(self, rate: float, layers: int, inputs: int, branches: int = 2) -> None:
        self.rates, self.inputs = np.linspace(0, rate, layers).repeat(branches), inputs
        self.scales: Tensor | None = None

    def sample(self, keys: Sequence[str], seed: int, epoch: int, device: torch.device) -> None:
        """Sample the branches of a micro batch; they depend on seed, epoch and key alone."""
        rngs = (keyed_rng("drop path", seed, epoch, key) for key in keys)
        kept = np.stack([rng.random(len(self.rates)) >= self.rates for rng in rngs])
        scales = torch.from_numpy((kept / (1 - self.rates)).T.astype(np.float32))
        self.scales = scales.contiguous().to(device, non_blocking=True)

    def scale(self, branch: int, module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Multiply the output of a branch, [M B r, ...] with r rows a clip; a forward hook."""
        if self.scales is None or not module.training:
            return out
        own = self.scales[branch].to(out.dtype)
        by_clip = out.unflatten(0, (self.inputs, len(own), -1))
        return (by_clip * own.view(-1, *[1] * (by_clip.ndim - 2))).flatten(0, 2)


def add_drop_path(image: nn.Module, rate: float, inputs: int) -> DropPath:
    """Add stochastic depth to the blocks of an image tower.

    Parameters
    ----------
    image : nn.Module
        With adapters, if it is to have any.
    rate, inputs
        As for :class:`DropPath`.
    """
    branches = [_branches(block) for block in blocks_of(image)]
    count = max(2, *map(len, branches))
    drop_path = DropPath(rate, len(branches), inputs, count)
    for i, own in enumerate(branches):
        for j, module in own:
            module.register_forward_hook(partial(drop_path.scale, count * i + j))
    return drop_path


def _branches(block: nn.Module) -> list[tuple[int, nn.Module]]:
    """Return the modules of a block that are hooked, with the number of their branch."""
    children = dict(block.named_modules())
    if "mlp_adapter" in children:
        return [(j, children[name]) for j, name in enumerate(_ADAPTERS) if name in children]
    for names in _BRANCHES:
        if children.keys() >= set(names):
            return [(j, children[name]) for j, name in enumerate(names)]
    raise ValueError(f"{type(block).__name__} has none of the branches {_BRANCHES}")
