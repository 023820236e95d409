"""The blocks of an image tower, and which layer a parameter belongs to.

A tower's layers are counted from the input: 0 is what comes before the blocks (patch embedding,
positions, class token and their norm), i + 1 is block i, and L + 1 is what comes after all L
blocks. BEiT (Bao et al., ICLR 2022) and MAE (He et al., CVPR 2022) count so when they fine-tune.
"""

from __future__ import annotations

import re

from torch import nn

# Where towers keep their blocks: open_clip's ViT, and those of timm and of video.
_BLOCKS = ("transformer.resblocks", "trunk.blocks")
_BLOCK = re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, _BLOCKS))})\.(\d+)\.")
# Names of what comes before the blocks, in the same towers.
_STEM = re.compile(
    r"(?:^|\.)(?:conv1|class_embedding|positional_embedding|ln_pre"
    r"|patch_embed|cls_token|reg_token|mask_token|pos_embed|norm_pre)(?:\.|$)"
)


def blocks_of(image: nn.Module) -> list[nn.Module]:
    """Return the blocks of an image tower, first to last.

    Raises
    ------
    ValueError
        If the tower has none in a known place.
    """
    for name, module in image.named_modules():
        if any(f".{name}".endswith(f".{path}") for path in _BLOCKS):
            return list(module.children())
    raise ValueError(f"{type(image).__name__} has no blocks at {', '.join(_BLOCKS)}")


def num_layers(image: nn.Module) -> int:
    """Return the number L of blocks of an image tower."""
    return len(blocks_of(image))


def layer_of(name: str, layers: int) -> int:
    """Return the layer of a parameter, 0 to ``layers`` + 1.

    Parameters
    ----------
    name : str
        Of a parameter of an image tower, such as ``transformer.resblocks.0.attn.in_proj_weight``;
        a prefix such as ``image.`` changes nothing.
    layers : int
        L, from :func:`num_layers`.
    """
    block = _BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if _STEM.search(name) else layers + 1
