"""Models of open_clip with a ViT image tower: their configurations, and how they are built."""

from __future__ import annotations

import copy
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import resize_pos_embed
from torch import nn

from dfer_dist.models.tokenizer import CONTEXT, TextTokenizer, clip_tokenizer
from dfer_dist.models.towers import hub
from dfer_dist.models.towers.image import prepare_image
from dfer_dist.models.towers.text import HubTextTower, TextTower, prepare_text
from dfer_dist.models.towers.tower import (
    Backbone,
    BackboneInfo,
    one_line,
    suggest,
    unreadable_weights,
)
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

# A CLIP small enough to train on one core, for tests and the demo. open_clip has no weights of it.
TINY: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
# Modules of timm whose models are ViTs.
VIT_MODULES = ("beit", "deit", "eva", "vision_transformer", "vision_transformer_relpos")
_HYBRID_VITS = ("vit_base_mci_224",)  # with a stem of convolutions
_OTHERS = {
    "convnext": "a ConvNeXt",
    "fastvit": "a FastViT, which is made of convolutions,",
    "swin_transformer": "a Swin transformer",
    "vitamin": "a ViTamin, whose first stages are convolutions,",
}
# Entries of a TorchScript archive that are no weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def clip_config(name: str) -> dict[str, Any]:
    """Return a copy of the sizes of a model, in open_clip's format.

    Parameters
    ----------
    name : str
        ``tiny``, a model of open_clip, or a ``.json`` file in its format. Paths of tokenizers in a
        file are relative to it.

    Raises
    ------
    UserError
        Unknown name, a file that cannot be read, or a model whose image tower is no ViT.
    """
    if name == "tiny":
        return copy.deepcopy(TINY)
    config = _read_file(Path(name)) if name.endswith(".json") else _known(name)
    if config is None:
        known = ["tiny", *open_clip.list_models()]
        raise UserError(f"no backbone '{name}'{suggest(name, known)}")
    if fault := refusal(config):
        raise UserError(f"backbone '{name}' {fault}: choose one such as ViT-B-32-quickgelu")
    return config


def _known(name: str) -> dict[str, Any] | None:
    config: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    return config


def refusal(config: dict[str, Any]) -> str | None:
    """Return why a model cannot be a backbone, such as ``has a ResNet as image tower``."""
    vision = config["vision_cfg"]
    name = vision.get("timm_model_name")
    if name is None:
        is_vit = isinstance(vision.get("layers"), int)
        return None if is_vit else "has a ResNet as image tower, not a ViT"
    if not timm.is_model(name):
        return f"has an image tower that timm does not know, {name}"
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    if module in VIT_MODULES or name in _HYBRID_VITS:
        return None
    return f"has {_OTHERS.get(module, module)} as image tower, not a ViT"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"backbone {path} cannot be read: {one_line(e)}") from e
    if missing:
        raise UserError(
            f"backbone {path} does not describe a model of open_clip: "
            f"it has no {sorted(missing)[0]}"
        )
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = config["text_cfg"].get(key)
        if name and (path.parent / name).is_dir():
            config["text_cfg"][key] = str(path.parent / name)
    return config


def describe(name: str, pretrained: str) -> BackboneInfo:
    """Return what is known of a model before it is built.

    Raises
    ------
    UserError
        As :func:`clip_config`.
    """
    config = clip_config(name)
    # Not all weights of a model were trained on pixels of the same mean.
    model = name.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(model)
    tag = pretrained if pretrained in tags else next(iter(tags), "")
    pixels = open_clip.get_pretrained_cfg(model, tag) or {}
    pixels = {**pixels, **config.get("preprocess_cfg", {})}
    return BackboneInfo(
        name=name,
        image_size=int(config["vision_cfg"].get("image_size", 224)),
        mean=tuple(pixels.get("mean", OPENAI_DATASET_MEAN)),
        std=tuple(pixels.get("std", OPENAI_DATASET_STD)),
        has_text=True,
    )


def build_clip(config: dict[str, Any], image_size: int) -> Any:
    """Return a randomly initialized model of open_clip for frames of ``image_size`` pixels.

    It is a ``CLIP``, ``CustomTextCLIP`` or ``CoCa``.
    """
    config = copy.deepcopy(config)
    config.pop("preprocess_cfg", None)
    vision, text = config["vision_cfg"], config["text_cfg"]
    # What is dropped at random depends on ranks: model.drop_path does without that.
    vision |= {"patch_dropout": 0.0, "timm_drop": 0.0, "timm_drop_path": 0.0}
    if "timm_model_name" not in vision:
        check_size(image_size, vision["patch_size"])
        vision["image_size"] = image_size
    if "hf_model_name" in text:
        hub.import_transformers()
        text |= {"hf_model_name": str(hub.find_folder(text["hf_model_name"]))}
        text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    if "multimodal_cfg" in config:
        return open_clip.CoCa(**config)
    return open_clip.CustomTextCLIP(**config) if custom else open_clip.CLIP(**config)


def check_size(image_size: int, patch: int) -> None:
    """Check that frames can be cut into patches.

    Raises
    ------
    UserError
        If not.
    """
    if image_size % patch:
        down = max(patch, image_size // patch * patch)
        raise UserError(
            f"data.image_size={image_size} is not a multiple of the backbone's patch of {patch} "
            f"pixels: set {down}"
        )


def load(info: BackboneInfo, weights: Path | None, image_size: int, with_text: bool) -> Backbone:
    """Return the towers of a model.

    Parameters
    ----------
    weights : Path, optional
        Random weights without it.
    image_size : int
        Side of the frames, pixels; pretrained position embeddings are resized to it.
    with_text : bool
        Whether to keep the text tower.

    Raises
    ------
    UserError
        If the file holds weights of another model, or frames cannot be cut into patches.
    """
    config = clip_config(info.name)
    if weights is None and not with_text:
        # Nothing of the text tower is read: it may need files of the Hub.
        config["text_cfg"] = dict(TINY["text_cfg"])
    clip = build_clip(config, image_size)
    if weights is not None:
        load_weights(clip, weights, config.get("quick_gelu", False))
    visual = clip.visual
    if "timm_model_name" in config["vision_cfg"]:
        visual.output_dim = config["embed_dim"]
        resize_timm(visual.trunk, image_size)
    prepare_image(visual)
    text = tokenizer = None
    if with_text:
        text = _text_tower(clip, config["text_cfg"])
        tokenizer = text_tokenizer(config["text_cfg"], sizes_only=clip.logit_scale.is_meta)
    return Backbone(
        info=info,
        image=visual,
        text=text,
        tokenizer=tokenizer,
        sha256=sha256_file(weights) if weights else None,
        temperature=math.exp(-_number(clip.logit_scale, config.get("init_logit_scale"))),
        logit_bias=_number(clip.logit_bias, config.get("init_logit_bias")),
    )


def _number(parameter: nn.Parameter | None, initial: float | None) -> float:
    """Return the value of a scalar parameter; on the meta device its initial one."""
    if parameter is None or parameter.is_meta:
        return initial or 0.0
    return float(parameter.detach())


def build_text(config: dict[str, Any]) -> TextTower | HubTextTower:
    """Return the randomly initialized text tower of a model.

    Raises
    ------
    UserError
        If its settings are on the Hub and not on this machine.
    """
    small = copy.deepcopy(TINY["vision_cfg"])
    return _text_tower(build_clip({**config, "vision_cfg": small}, 64), config["text_cfg"])


def _text_tower(clip: Any, text_cfg: dict[str, Any]) -> TextTower | HubTextTower:
    if "hf_model_name" in text_cfg:
        return HubTextTower(clip.text, text_cfg.get("context_length", CONTEXT))
    tower = TextTower(clip if isinstance(clip, open_clip.CLIP) else clip.text)
    prepare_text(tower)
    return tower


def text_tokenizer(text_cfg: dict[str, Any], sizes_only: bool = False) -> TextTokenizer:
    """Return how a text tower reads a text.

    Parameters
    ----------
    text_cfg : dict
        Of the backbone, in open_clip's format.
    sizes_only : bool
        Return one of similar numbers of tokens where that of the Hub is not on this machine, as to
        plan memory.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.models.towers.hub.hub_tokenizer`.
    """
    # such a tower sees the padding
    fills_context = bool(text_cfg.get("no_causal_mask") or text_cfg.get("embed_cls"))
    if text_cfg.get("hf_tokenizer_name"):
        try:
            return hub.hub_tokenizer(text_cfg, fills_context)
        except UserError:
            if not sizes_only:
                raise
    return clip_tokenizer(text_cfg.get("context_length", CONTEXT), fills_context)


def resize_timm(trunk: Any, image_size: int) -> None:
    """Resize the positions of a ViT of timm to frames of ``image_size`` pixels."""
    # Some were trained on frames that are no multiple of their patch.
    if trunk.patch_embed.img_size == (image_size, image_size):
        return
    check_size(image_size, max(trunk.patch_embed.patch_size))
    trunk.set_input_size((image_size, image_size))


def load_weights(clip: Any, path: Path, quick_gelu: bool) -> None:
    """Load a file of weights into a model of open_clip.

    Raises
    ------
    UserError
        If it holds weights of another model.
    """
    # Only OpenAI's own files are TorchScript archives.
    is_archive = _is_torchscript(path)
    if is_archive and not quick_gelu:
        raise UserError(
            f"{path} was trained with QuickGELU: use the backbone's name with -quickgelu"
        )
    try:
        if not is_archive:
            open_clip.load_checkpoint(clip, str(path))
            return
        archive = torch.jit.load(str(path), map_location="cpu")
        state = {k: v.float() for k, v in archive.state_dict().items() if k not in _NOT_WEIGHTS}
        resize_pos_embed(state, clip)
        clip.load_state_dict(state)
    # torch, pickle, safetensors and open_clip raise many kinds.
    except Exception as e:
        raise UserError(
            f"{path} does not hold weights of this backbone: {unreadable_weights(e)}"
        ) from e


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())
