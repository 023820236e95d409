"""Layers of image towers."""

from __future__ import annotations

import pytest
from torch import nn

from dfer_dist.models.layers import blocks_of, layer_of, num_layers
from dfer_dist.models.towers.open_clip_models import TINY, build_clip


def beit_layer(name: str, layers: int) -> int:
    """``get_num_layer_for_vit`` of BEiT's run_class_finetuning.py, for ``layers`` blocks."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks"):
        return int(name.split(".")[1]) + 1
    return layers + 1


def test_layers_of_a_timm_tower_are_those_of_beit() -> None:
    import timm

    image = nn.Module()
    image.trunk = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2)
    assert num_layers(image) == 3
    for name, _ in image.trunk.named_parameters():
        assert layer_of(f"image.trunk.{name}", 3) == beit_layer(name, 3), name


def test_layers_of_an_open_clip_tower() -> None:
    image = build_clip(TINY, 64).visual
    assert num_layers(image) == 2
    assert blocks_of(image)[1] is image.transformer.resblocks[1]
    layers: dict[int, set[str]] = {}
    for name, _ in image.named_parameters():
        layers.setdefault(layer_of(f"image.{name}", 2), set()).add(name)
    assert layers.keys() == {0, 1, 2, 3}
    assert layers[0] == {
        "class_embedding",
        "positional_embedding",
        "conv1.weight",
        "ln_pre.weight",
        "ln_pre.bias",
    }
    assert layers[3] == {"proj", "ln_post.weight", "ln_post.bias"}
    assert all(".resblocks.1." in name for name in layers[2]) and len(layers[2]) == 12


def test_tower_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no blocks at"):
        num_layers(nn.Linear(1, 1))
