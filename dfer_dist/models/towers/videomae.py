"""Video towers, ``model.backbone=videomae:NAME``: VideoMAE's ViTs and MAE-DFER's.

NAME is one of :data:`SIZES`, a repository of the Hugging Face Hub in the local cache, a folder with
``config.json`` in the format of the library transformers, or such a ``.json`` file. The library
itself is not needed: its layers differ from version to version, and :mod:`.video_vit` has the same
ones for LoRA and ZeRO-3.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from dfer_dist.models.towers.image import TimmTower
from dfer_dist.models.towers.open_clip_models import check_size
from dfer_dist.models.towers.tower import Backbone, BackboneInfo, one_line, unreadable_weights
from dfer_dist.models.towers.video_vit import RegionViT, VideoSizes, VideoViT
from dfer_dist.models.towers.video_weights import rename
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

PREFIX = "videomae:"
# The tag of the weights that a repository or folder holds.
MAIN = "main"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
POOLED = ("regions", "patches", "all")
# The code of their authors normalizes with this eps.
_sizes = partial(VideoSizes, layer_norm_eps=1e-6, fc_norm_eps=1e-6)
SIZES = {
    # width, blocks, heads, and the hidden width of a block's MLP; the first is for the demo
    "tiny": _sizes(64, 2, 2, 256, image_size=64, num_frames=8),
    "vit_small": _sizes(384, 12, 6, 1536),
    "vit_base": _sizes(768, 12, 12, 3072),
    "vit_large": _sizes(1024, 24, 16, 4096),
    "vit_huge": _sizes(1280, 32, 16, 5120),
    # S4D: Chen et al., IEEE Transactions on Affective Computing 2025
    "vit_base_160": _sizes(768, 12, 12, 3072, image_size=160),
    "mae_dfer": _sizes(512, 16, 8, 2048, image_size=160, region_size=(2, 5, 10)),
}


def sizes_file(name: str) -> Path | None:
    """Return the file with the sizes of a backbone; None for one of :data:`SIZES`.

    Raises
    ------
    UserError
        If there is none on this machine.
    """
    own = name.removeprefix(PREFIX)
    if own in SIZES:
        return None
    path = Path(own).expanduser()
    if own.endswith(".json") and path.is_file():
        return path
    if (path / CONFIG).is_file():
        return path / CONFIG
    cached = _cached(own, CONFIG)
    if cached is not None:
        return cached
    raise UserError(
        f"no backbone '{name}' on this machine: give {PREFIX} and one of {', '.join(SIZES)}, a "
        f"folder with {CONFIG}, or a repository of the Hub that `dfer fetch-weights {name} {MAIN}` "
        "has downloaded"
    )


def _cached(repository: str, file: str) -> Path | None:
    # huggingface_hub refuses what is no name of a repository.
    try:
        path = try_to_load_from_cache(repository, file)
    except ValueError:
        return None
    return Path(path) if isinstance(path, str) else None


def read_sizes(name: str) -> VideoSizes:
    """Return the sizes of a backbone.

    Raises
    ------
    UserError
        If there is no such backbone on this machine, or it is another kind of model.
    """
    path = sizes_file(name)
    if path is None:
        return SIZES[name.removeprefix(PREFIX)]
    try:
        config = json.loads(path.read_text())
        return parse_sizes(config)
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"{path} does not describe a VideoMAE: {one_line(e)}") from e


def parse_sizes(config: dict[str, Any]) -> VideoSizes:
    """Return the sizes in a configuration of transformers, for the settings that ours has too.

    Raises
    ------
    ValueError, TypeError
        If it has other ones.
    """
    # what the library leaves out has its default
    for key, wanted in (("model_type", "videomae"), ("hidden_act", "gelu"), ("num_channels", 3)):
        if config.get(key, wanted) != wanted:
            raise ValueError(f"{key} is {config[key]}, not {wanted}")
    # an older name of the library
    known = {"qkv_bias": config.get("qv_bias", True), **config}
    names = {field.name for field in dataclasses.fields(VideoSizes)}
    sizes = VideoSizes(**{key: value for key, value in known.items() if key in names})
    if sizes.region_size is not None:
        time, height, width = sizes.region_size
        sizes = dataclasses.replace(sizes, region_size=(time, height, width))
    check_sizes(sizes)
    return sizes


def check_sizes(sizes: VideoSizes) -> None:
    """Refuse sizes that fit no grid.

    Raises
    ------
    ValueError, TypeError
        For the first one.
    """
    grid = sizes.grid(sizes.num_frames, sizes.image_size)
    if sizes.hidden_size % sizes.num_attention_heads:
        raise ValueError(
            f"hidden_size {sizes.hidden_size} is no multiple of num_attention_heads "
            f"{sizes.num_attention_heads}"
        )
    if sizes.region_size is None:
        return
    pairs = zip(grid, sizes.region_size, strict=True)
    if any(region < 1 or own % region for own, region in pairs):
        raise ValueError(f"{grid} tubelets cannot be cut into regions of {sizes.region_size}")
    if sizes.pooled_tokens not in POOLED:
        raise ValueError(f"pooled_tokens is {sizes.pooled_tokens}, not one of {', '.join(POOLED)}")


def describe(name: str) -> BackboneInfo:
    """Return what is known of a backbone before it is built.

    Raises
    ------
    UserError
        As :func:`read_sizes`.
    """
    return BackboneInfo(
        name=name,
        image_size=read_sizes(name).image_size,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        has_text=False,
        is_video=True,
    )


def find_weights(name: str, pretrained: str) -> Path:
    """Return the weights file of a backbone on this machine.

    Parameters
    ----------
    name : str
        ``videomae:NAME``.
    pretrained : str
        ``main`` for the weights of a repository or folder, or a file.

    Raises
    ------
    UserError
        Weights that are not on this machine.
    """
    sizes = sizes_file(name)
    if pretrained == MAIN and sizes is not None:
        # The parts of a repository in the cache are in one folder.
        for file in WEIGHTS:
            if sizes.with_name(file).is_file():
                return sizes.with_name(file)
        raise UserError(
            f"the weights of {name} are not on this machine: there is no {' or '.join(WEIGHTS)} "
            f"next to {sizes}; `dfer fetch-weights {name} {MAIN}` downloads those of the Hub"
        )
    path = Path(pretrained).expanduser()
    if not path.is_file():
        known = "" if sizes is None else f"{MAIN}, "
        raise UserError(
            f"'{pretrained}' is no weights file of {name}: set model.pretrained to {known}a file "
            "that `dfer convert videomae` wrote, or none"
        )
    return path


def download(name: str, tag: str) -> Path:
    """Download settings and weights of a repository into the cache of :func:`find_weights`.

    Raises
    ------
    UserError
        A name or tag that the Hub does not have.
    """
    repository = name.removeprefix(PREFIX)
    if repository in SIZES or tag != MAIN:
        raise UserError(
            f"{name} {tag} cannot be downloaded: give {PREFIX} and a repository of the Hub, such "
            f"as {PREFIX}MCG-NJU/videomae-base, and the tag {MAIN}"
        )
    hf_hub_download(repository, CONFIG)
    with suppress(EntryNotFoundError):
        return Path(hf_hub_download(repository, WEIGHTS[0]))
    return Path(hf_hub_download(repository, WEIGHTS[1]))


def load(
    info: BackboneInfo, weights: Path | None, image_size: int, num_frames: int | None = None
) -> Backbone:
    """Return the video tower of a backbone.

    Parameters
    ----------
    weights : Path, optional
        Random weights without it.
    image_size : int
        Side of the frames, pixels.
    num_frames : int, optional
        Of a clip; by default as the weights were trained.

    Raises
    ------
    UserError
        If the file holds weights of another model, or clips cannot be cut into its tubelets.
    """
    sizes = read_sizes(info.name)
    num_frames = num_frames or sizes.num_frames
    _check_clips(info.name, sizes, num_frames, image_size)
    trunk: VideoViT
    if sizes.region_size is None:
        trunk = VideoViT(sizes, num_frames, image_size)
    else:
        trunk = RegionViT(sizes)
    if weights is not None:
        _load_weights(trunk, weights, info.name)
    digest = sha256_file(weights) if weights else None
    return Backbone(info=info, image=TimmTower(trunk), sha256=digest)


def _check_clips(name: str, sizes: VideoSizes, num_frames: int, image_size: int) -> None:
    if num_frames % sizes.tubelet_size:
        raise UserError(
            f"data.num_frames={num_frames}: {name} reads {sizes.tubelet_size} frames at a time: "
            f"set a multiple of {sizes.tubelet_size}"
        )
    check_size(image_size, sizes.patch_size)
    own = (sizes.num_frames, sizes.image_size)
    if sizes.region_size is not None and own != (num_frames, image_size):
        raise UserError(
            f"data.num_frames={num_frames} and data.image_size={image_size}: {name} has a learned "
            f"token for each region of a clip: set {own[0]} and {own[1]}"
        )


def _load_weights(trunk: VideoViT, path: Path, name: str) -> None:
    try:
        state = rename(_read(path))
        check_state(state, trunk.state_dict())
    except UserError as e:
        raise UserError(f"{path} does not hold weights of {name}: {e}") from e
    trunk.load_state_dict(state, strict=False)


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that tensors are exactly those of a tower.

    The norm after the mean may be missing, as in a pretrained model: it starts as it was
    initialized.

    Raises
    ------
    UserError
        For the first one that is not.
    """
    for key, own in wanted.items():
        if key not in state and not key.startswith("fc_norm."):
            raise UserError(f"it has no {key}")
        if key in state and state[key].shape != own.shape:
            raise UserError(f"{key} is {list(state[key].shape)}, not {list(own.shape)}")
    unexpected = sorted(state.keys() - wanted.keys())
    if unexpected:
        raise UserError(f"{unexpected[0]} has no place in it")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    # torch, pickle and safetensors raise many kinds.
    except Exception as e:
        raise UserError(
            f"{unreadable_weights(e)}; "
            "`dfer convert videomae` reads checkpoints of training programs"
        ) from e
