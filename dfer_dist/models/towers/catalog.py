"""Every backbone by name: sizes, operations, weights, and why one is refused.

Building all towers takes half a minute, so parameters and operations of named models come from
``sizes.csv``, which ``python -m tests.helpers.models.backbone_sizes`` counts and writes. Models
that it does not have, as of a later version of a library, are counted when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from pyarrow.csv import read_csv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfer_dist.config.checks import WITHOUT_TEXT
from dfer_dist.models.backbone import describe_backbone, load_backbone, published_tags
from dfer_dist.models.towers import videomae
from dfer_dist.models.towers.image import patch_size
from dfer_dist.models.towers.open_clip_models import build_text, clip_config, refusal
from dfer_dist.models.towers.timm_models import PREFIX, is_vit
from dfer_dist.models.towers.tower import suggest
from dfer_dist.utils.errors import UserError

SIZES = Path(__file__).with_name("sizes.csv")
# Frames of a clip, as data.num_frames is by default.
FRAMES = 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a backbone.

    Attributes
    ----------
    image_size : int
        Side of a frame, pixels.
    patch : int
        Side of a patch, pixels.
    image_parameters : int
        Of the image tower.
    text_parameters : int, optional
        Of the text tower; None if there is none, or its settings are on the Hub.
    gflops : float
        10^9 operations of the image tower's forward pass of a clip of :data:`FRAMES` frames; a
        multiplication and an addition are two.
    """

    image_size: int
    patch: int
    image_parameters: int
    text_parameters: int | None
    gflops: float


@dataclass(frozen=True)
class Entry:
    """A backbone in the list.

    Attributes
    ----------
    name : str
        As ``model.backbone``.
    has_text : bool
    tags : list of str
        Published weights, as ``model.pretrained``.
    refusal : str, optional
        Why it cannot be a backbone.
    sizes : Sizes, optional
        None if it is refused.
    """

    name: str
    has_text: bool
    tags: list[str]
    refusal: str | None
    sizes: Sizes | None


def find(pattern: str | None) -> list[Entry]:
    """Return the backbones whose name contains a pattern, in any case.

    Parameters
    ----------
    pattern : str, optional
        May have the wildcards ``*`` and ``?``. Models of timm are listed if it begins with
        ``timm:``, video towers with ``videomae:``, those of open_clip otherwise; without it all of
        these.

    Raises
    ------
    UserError
        If there is none.
    """
    wanted = (pattern or "").lower()
    names = names_of_open_clip()
    if wanted.startswith(PREFIX):
        names = names_of_timm()
    elif wanted.startswith(videomae.PREFIX):
        names = [f"{videomae.PREFIX}{name}" for name in videomae.SIZES]
    found = [name for name in names if fnmatchcase(name.lower(), f"*{wanted}*")]
    if not found:
        raise UserError(f"no backbone's name contains '{pattern}'{suggest(wanted, names)}")
    return [_entry(name) for name in found]


def names_of_open_clip() -> list[str]:
    """Return ``tiny`` and the names of open_clip."""
    return ["tiny", *open_clip.list_models()]


def names_of_timm() -> list[str]:
    """Return the names of timm's ViTs."""
    return [f"{PREFIX}{name}" for name in timm.list_models() if is_vit(name)]


def _entry(name: str) -> Entry:
    has_text = not name.startswith(WITHOUT_TEXT)
    if has_text and name != "tiny":
        config: dict[str, Any] = open_clip.get_model_config(name)
        if fault := refusal(config):
            return Entry(name, has_text, [], fault, None)
    return Entry(name, has_text, published_tags(name), None, _stored().get(name) or count(name))


@cache
def _stored() -> dict[str, Sizes]:
    rows = read_csv(SIZES).to_pylist()
    return {row.pop("name"): Sizes(**row) for row in rows}


def count(name: str) -> Sizes:
    """Build a backbone on the ``meta`` device and count its sizes.

    Raises
    ------
    UserError
        Unknown name, or a model whose image tower is no ViT.
    """
    info = describe_backbone(name)
    with torch.device("meta"):
        image = load_backbone(
            name, "none", info.image_size, with_text=False, num_frames=FRAMES
        ).image
        image.requires_grad_(False)
        pixels = torch.empty(FRAMES, 3, info.image_size, info.image_size)
        if info.is_video:
            pixels = pixels[None]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            image(pixels)
        text = _text_parameters(name) if info.has_text else None
    return Sizes(
        image_size=info.image_size,
        patch=patch_size(image),
        image_parameters=_parameters(image),
        text_parameters=text,
        gflops=round(counter.get_total_flops() / 1e9, 1),
    )


def _text_parameters(name: str) -> int | None:
    try:
        return _parameters(build_text(clip_config(name)))
    # Its settings are not on this machine.
    except UserError:
        return None


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
