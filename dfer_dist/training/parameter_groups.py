"""The parameter groups of the optimizer: by learning rate, layer and weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from dfer_dist.config.schema import OptimConfig
from dfer_dist.models.layers import layer_of, num_layers

Groups = Mapping[str, Sequence[tuple[str, nn.Parameter]]]

# Parameters with more than one dimension that are not decayed either: class tokens and positions
# of open_clip's, timm's and MAE-DFER's towers, of the temporal transformer and of adapters.
_NOT_DECAYED = {
    *("class_embedding", "positional_embedding", "cls", "pos", "positions"),
    *("cls_token", "reg_token", "mask_token", "pos_embed", "region_tokens"),
    "relative_position_bias_table",
}


def base_rates(groups: Iterable[str], optim: OptimConfig) -> dict[str, float]:
    """Return the peak learning rate of each group of trained parameters."""
    return {name: getattr(optim, f"lr_{name}") for name in groups}


def optimizer_groups(model: nn.Module, groups: Groups, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the parameter groups for torch's optimizer.

    There is one for each name, factor of the learning rate and weight decay that occur, in the
    order in which they occur; with the default settings, one for each name.

    Parameters
    ----------
    model : nn.Module
        With ``optim.layer_decay`` below 1, its image tower is ``model.image``.
    groups : mapping
        Trained parameters by group and name, with full shapes.
    optim : OptimConfig

    Returns
    -------
    list of dict
        With ``params``, ``name``, ``lr``, ``weight_decay``, and ``lr_scale``, the factor of the
        layer, under the names of timm.
    """
    layers = 0
    if optim.layer_decay < 1:
        layers = num_layers(model.get_submodule("model.image"))
    split: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for group, own in groups.items():
        for name, p in own:
            scale = 1.0
            if group == "image":
                scale = layer_scale(name, optim.layer_decay, layers)
            decay = optim.weight_decay * (optim.decay_all or is_decayed(name, p))
            split.setdefault((group, scale, decay), []).append(p)
    base_lr = base_rates(groups, optim)
    return [
        {
            "params": own,
            "name": name,
            "lr": base_lr[name] * scale,
            "lr_scale": scale,
            "weight_decay": decay,
        }
        for (name, scale, decay), own in split.items()
    ]


def layer_scale(name: str, decay: float, layers: int) -> float:
    """Return the factor of the learning rate of a parameter of the image tower.

    It is decay^(L + 1 - layer): decay^(L + 1) before the blocks, decay^(L - i) in block i, counted
    from 0, and 1 after the blocks. That is ``LayerDecayValueAssigner`` of BEiT's code and
    ``lrd.py`` of MAE's.
    """
    return decay ** (layers + 1 - layer_of(name, layers))


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is decayed where norms and biases are not.

    As in BEiT's and MAE's code, one with a single dimension is not: norms, biases, layer scales,
    class tokens; nor are positions.
    """
    return parameter.ndim > 1 and name.rpartition(".")[2] not in _NOT_DECAYED
