"""Image towers of timm, which have no text tower: ``model.backbone=timm:NAME``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from dfer_dist.models.towers.image import TimmTower, prepare_image
from dfer_dist.models.towers.open_clip_models import VIT_MODULES, resize_timm
from dfer_dist.models.towers.tower import (
    Backbone,
    BackboneInfo,
    suggest,
    unreadable_weights,
)
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

PREFIX = "timm:"
# What timm looks for in a repository, the first one first.
_FILES = ("model.safetensors", "pytorch_model.bin")


def _checked(name: str) -> str:
    """Return timm's name of a backbone.

    Raises
    ------
    UserError
        If timm has no such model, or it is no ViT.
    """
    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        raise UserError(f"no backbone '{name}'{suggest(model, timm.list_models(), PREFIX)}")
    if not is_vit(model):
        raise UserError(
            f"backbone '{name}' is no ViT ({_module(model)}): "
            f"choose one such as {PREFIX}vit_base_patch16_dinov3"
        )
    return model


def is_vit(model: str) -> bool:
    """Return whether a model of timm is a ViT."""
    return _module(model) in VIT_MODULES


def _module(model: str) -> str:
    return timm.models.model_entrypoint(model).__module__.rpartition(".")[2]


def tags(name: str) -> list[str]:
    """Return the tags of a model's weights on the Hugging Face Hub."""
    model = _checked(name).partition(".")[0]
    listed = [own for own in timm.list_pretrained(f"{model}*") if own.partition(".")[0] == model]
    return [own.partition(".")[2] for own in listed if _record(own).hf_hub_id]


def describe(name: str, pretrained: str) -> BackboneInfo:
    """Return what is known of a model before it is built.

    Raises
    ------
    UserError
        If timm has no such ViT.
    """
    settings = _settings(name, pretrained)
    return BackboneInfo(
        name=name,
        image_size=settings.input_size[-1],
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        has_text=False,
    )


def _settings(name: str, pretrained: str) -> Any:
    """Return timm's record of a model and its weights."""
    return _record(_known_or_default(name, pretrained))


def _record(model: str) -> Any:
    return timm.get_pretrained_cfg(model)


def _known_or_default(name: str, pretrained: str) -> str:
    model = _checked(name).partition(".")[0]
    return f"{model}.{pretrained}" if pretrained in tags(name) else model


def hub_files(name: str, tag: str) -> list[tuple[str, str]] | None:
    """Return repository and file of published weights, the preferred one first; None if unknown."""
    if tag not in tags(name):
        return None
    settings = _settings(name, tag)
    files = [settings.hf_hub_filename] if settings.hf_hub_filename else _FILES
    return [(settings.hf_hub_id, file) for file in files]


def download(files: list[tuple[str, str]]) -> Path:
    """Download the first of :func:`hub_files` that is there into the cache."""
    for repository, file in files[:-1]:
        with suppress(RemoteEntryNotFoundError):
            return Path(hf_hub_download(repository, file))
    return Path(hf_hub_download(*files[-1]))


def load(info: BackboneInfo, pretrained: str, weights: Path | None, image_size: int) -> Backbone:
    """Return the image tower of a model.

    Parameters
    ----------
    weights : Path, optional
        Random weights without it.
    image_size : int
        Side of the frames, pixels; pretrained position embeddings are resized to it.

    Raises
    ------
    UserError
        If the file holds weights of another model, or frames cannot be cut into patches.
    """
    model = _known_or_default(info.name, pretrained)
    if weights is None:
        trunk = timm.create_model(model, num_classes=0)
    else:
        trunk = _create_with_weights(info.name, model, weights)
    resize_timm(trunk, image_size)
    tower = TimmTower(trunk)
    prepare_image(tower)
    return Backbone(info=info, image=tower, sha256=sha256_file(weights) if weights else None)


def _create_with_weights(name: str, model: str, weights: Path) -> Any:
    # Otherwise timm takes weights that were first published as .npz for such a file.
    settings = {"file": str(weights), "custom_load": weights.suffix == ".npz"}
    try:
        with _require_all_weights():
            return timm.create_model(
                model, pretrained=True, pretrained_cfg_overlay=settings, num_classes=0
            )
    # torch, pickle, safetensors and timm raise many kinds.
    except Exception as e:
        raise UserError(
            f"{weights} does not hold weights of {name}: {unreadable_weights(e)}"
        ) from e


@contextmanager
def _require_all_weights() -> Iterator[None]:
    """Refuse files that lack weights of the model; without a classifier, timm only logs them.

    Raises
    ------
    ValueError
        If weights were missing.
    """
    logger = logging.getLogger(timm.models.load_pretrained.__module__)
    missing: list[str] = []

    def read(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Missing keys ("):
            missing.append(re.split("[(,)]", message)[1])
        return record.levelno >= level

    level = logger.getEffectiveLevel()
    own = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(read)
    try:
        yield
    finally:
        logger.removeFilter(read)
        logger.setLevel(own)
    if missing:
        raise ValueError(f"it has no {missing[0]}")
