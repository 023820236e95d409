"""The towers of a model, by the name of a backbone. Only :func:`fetch_weights` uses the network.

==========================  =================================================================
``model.backbone``          from
==========================  =================================================================
``NAME`` or ``FILE.json``   open_clip, with the text tower: :mod:`.towers.open_clip_models`
``timm:NAME``               timm, without a text tower: :mod:`.towers.timm_models`
``videomae:NAME``           VideoMAE, a video tower: :mod:`.towers.videomae`
==========================  =================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from dfer_dist.models.tokenizer import TextTokenizer
from dfer_dist.models.towers import hub, open_clip_models, timm_models, videomae
from dfer_dist.models.towers.open_clip_models import clip_config
from dfer_dist.models.towers.tower import Backbone, BackboneInfo, one_line
from dfer_dist.utils.errors import UserError

# Weights that come with this package, by backbone and tag, made by `dfer pretrain-demo`.
SHIPPED = {("tiny", "demo"): Path(__file__).parents[1] / "demo" / "tiny_demo.safetensors"}


def describe_backbone(name: str, pretrained: str = "none") -> BackboneInfo:
    """Return what is known of a backbone before it is built.

    Parameters
    ----------
    name, pretrained : str
        As for :func:`load_backbone`.

    Raises
    ------
    UserError
        Unknown name, or a model whose image tower is no ViT.
    """
    family, colon, rest = name.partition(":")
    prefixes = (timm_models.PREFIX, videomae.PREFIX)
    if f"{family.lower()}{colon}" in prefixes and f"{family}{colon}" not in prefixes:
        raise UserError(f"no backbone '{name}'; did you mean '{family.lower()}:{rest}'?")
    if name.startswith(timm_models.PREFIX):
        return timm_models.describe(name, pretrained)
    if name.startswith(videomae.PREFIX):
        return videomae.describe(name)
    return open_clip_models.describe(name, pretrained)


def load_backbone(
    name: str,
    pretrained: str,
    image_size: int,
    with_text: bool = True,
    with_weights: bool = True,
    num_frames: int | None = None,
) -> Backbone:
    """Return the towers of a backbone.

    Parameters
    ----------
    name : str
        ``tiny``, a model of open_clip with a ViT image tower, a ``.json`` file that describes such
        a model in the format of open_clip, ``timm:NAME`` or ``videomae:NAME``.
    pretrained : str
        A tag of open_clip or timm whose file is in the local cache, ``demo`` for ``tiny``, ``main``
        for a video tower, a weights file, or ``none``: random weights from torch's global seed, and
        no sha256.
    image_size : int
        Side of the frames, pixels; pretrained position embeddings are resized to it.
    with_text : bool
        Whether the text tower is wanted, if there is one.
    with_weights : bool
        False for random weights in place of ``pretrained``, on the same mean and deviation.
    num_frames : int, optional
        Of a clip, for a video tower; by default as its weights were trained.

    Raises
    ------
    UserError
        Unknown name or tag, weights not in the cache, or weights of another model.
    """
    info = describe_backbone(name, pretrained)
    weights = find_weights(name, pretrained) if with_weights else None
    if name.startswith(timm_models.PREFIX):
        return timm_models.load(info, pretrained, weights, image_size)
    if name.startswith(videomae.PREFIX):
        return videomae.load(info, weights, image_size, num_frames)
    if with_text:
        check_hub_files(name)
    return open_clip_models.load(info, weights, image_size, with_text)


def load_tokenizer(name: str) -> TextTokenizer:
    """Return how the text tower of a backbone of open_clip reads a text.

    Raises
    ------
    UserError
        Unknown name, or a tokenizer of the Hub that is not on this machine.
    """
    check_hub_files(name)
    return open_clip_models.text_tokenizer(clip_config(name)["text_cfg"])


def check_hub_files(name: str) -> None:
    """Refuse a text tower whose tokenizer or settings are not on this machine.

    Raises
    ------
    UserError
        If they are not.
    """
    text_cfg = clip_config(name)["text_cfg"]
    # Planning does without.
    if torch.get_default_device().type == "meta":
        text_cfg.pop("hf_tokenizer_name", None)
    for repository in sorted(hub.repositories(text_cfg)):
        hub.find_folder(repository, name)


def fetch_weights(name: str, tag: str) -> Path:
    """Download weights of a backbone into the cache that :func:`load_backbone` reads.

    Tokenizer and settings of a text tower from the Hub are downloaded too. Weights that came with
    this package are not.

    Parameters
    ----------
    tag : str
        Of the weights; ``none`` for what the text tower needs alone.

    Returns
    -------
    Path
        The weights, or a folder if there are none.

    Raises
    ------
    UserError
        Unknown name or tag, a QuickGELU mismatch, or no connection.
    """
    if (name, tag) in SHIPPED:
        return SHIPPED[name, tag]
    try:
        return _download(name, tag)
    except UserError:
        raise
    # huggingface_hub, urllib and the operating system raise many kinds.
    except Exception as e:
        raise UserError(f"{name} {tag} cannot be downloaded: {one_line(e)}") from e


def _download(name: str, tag: str) -> Path:
    if name.startswith(videomae.PREFIX):
        return videomae.download(name, tag)
    files, repositories = _hub_files(name, tag), list[str]()
    if not name.startswith(timm_models.PREFIX):
        repositories = sorted(hub.repositories(clip_config(name)["text_cfg"]))
    without_weights = tag == "none" and repositories
    if files is None and not without_weights:
        raise UserError(_no_such_weights(name, tag))
    folders = [hub.fetch_folder(repository) for repository in repositories]
    if files is None:
        return folders[0]
    if name.startswith(timm_models.PREFIX):
        return timm_models.download(files)
    return Path(open_clip.download_pretrained(_published(name, clip_config(name), tag)))


def find_weights(name: str, pretrained: str) -> Path | None:
    """Return the weights file of a backbone on this machine; None for random weights.

    Parameters
    ----------
    name, pretrained : str
        As for :func:`load_backbone`.

    Raises
    ------
    UserError
        Unknown name or tag, weights that are not on this machine or need another activation.
    """
    if pretrained == "none":
        return None
    if (name, pretrained) in SHIPPED:
        return SHIPPED[name, pretrained]
    if name.startswith(videomae.PREFIX):
        return videomae.find_weights(name, pretrained)
    files = _hub_files(name, pretrained)
    if files is None:
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise UserError(_no_such_weights(name, pretrained))
        return path
    for file in files:
        cached = try_to_load_from_cache(*file)
        if isinstance(cached, str):
            return Path(cached)
    raise UserError(
        f"the weights '{pretrained}' of {name} are not on this machine: run "
        f"`dfer fetch-weights {name} {pretrained}` on a machine with network access"
    )


def _hub_files(name: str, tag: str) -> list[tuple[str, str]] | None:
    """Return repository and file of published weights, the preferred one first; None if unknown."""
    if name.startswith(timm_models.PREFIX):
        return timm_models.hub_files(name, tag)
    published = _published(name, clip_config(name), tag)
    if published is None:
        return None
    repository, _, file = published["hf_hub"].rpartition("/")
    files = [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return [(repository, own) for own in files]


def _published(name: str, config: dict[str, Any], tag: str) -> dict[str, Any] | None:
    """Return open_clip's entry for the weights, or None; refuse another activation."""
    model = name.replace("/", "-")
    found = open_clip.get_pretrained_cfg(model, tag)
    if found and bool(found.get("quick_gelu")) != bool(config.get("quick_gelu")):
        raise UserError(
            f"the weights '{tag}' were trained with QuickGELU, {name} has GELU: "
            f"set model.backbone={model}-quickgelu"
        )
    plain = model.removesuffix("-quickgelu")
    if not found and plain != model and open_clip.get_pretrained_cfg(plain, tag):
        raise UserError(
            f"the weights '{tag}' were trained with GELU, {name} has QuickGELU: "
            f"set model.backbone={plain}"
        )
    return found or None


def published_tags(name: str) -> list[str]:
    """Return the tags of weights that a backbone can have, without those of another activation.

    Raises
    ------
    UserError
        As :func:`describe_backbone`.
    """
    if name.startswith(timm_models.PREFIX):
        return timm_models.tags(name)
    if name.startswith(videomae.PREFIX):
        return [] if videomae.sizes_file(name) is None else [videomae.MAIN]
    model, quick = name.replace("/", "-"), bool(clip_config(name).get("quick_gelu"))
    return [
        tag
        for tag in open_clip.list_pretrained_tags_by_model(model)
        if bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")) == quick
    ] + [tag for own, tag in SHIPPED if own == name]


def _no_such_weights(name: str, pretrained: str) -> str:
    tags = published_tags(name)
    known = f"one of {', '.join(tags)}, " if tags else ""
    return (
        f"'{pretrained}' is neither published weights of {name} nor a file: "
        f"set model.pretrained to {known}a weights file or none"
    )
