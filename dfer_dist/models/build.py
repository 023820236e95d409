"""Build a model from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dfer_dist.config.schema import Config, ModelConfig, Precision
from dfer_dist.models.backbone import clip_config, load_backbone
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.models.dferclip import DFERCLIP


def resolve_image_size(config: Config) -> int:
    """Return ``data.image_size``; if it is not set, set it to the backbone's own size.

    Raises
    ------
    UserError
        An unknown backbone.
    """
    config.data.image_size = config.data.image_size or int(
        clip_config(config.model.backbone)["vision_cfg"]["image_size"]
    )
    return config.data.image_size


def model_dtype(precision: Precision) -> torch.dtype:
    """Return the number format of the weights when a model predicts."""
    if precision is Precision.bf16:
        return torch.bfloat16
    return torch.float32


def build_model(
    cfg: ModelConfig, classes: Sequence[str], num_frames: int, image_size: int
) -> DFERCLIP:
    """Build the model in float32 on the default device, initialized by torch's global seed.

    Parameters that are not trained are frozen (:func:`~dfer_dist.models.tuning.param_groups`).

    Parameters
    ----------
    classes : sequence of C str
        In label order.
    num_frames, image_size : int
        Frames of a clip and their side in pixels.

    Raises
    ------
    UserError
        A class without a text, an unknown backbone, missing weights, or more blocks to train than
        the backbone has.
    """
    texts = polarity_texts(classes, cfg)
    image, text, sha256 = load_backbone(cfg.backbone, cfg.pretrained, image_size)
    return DFERCLIP(cfg, image, text, texts, num_frames, sha256)


def build_untrained(config: Config, classes: Sequence[str]) -> DFERCLIP:
    """Build the model of ``config`` as :func:`build_model` does, without its pretrained weights."""
    model = replace(config.model, pretrained="none")
    return build_model(model, classes, config.data.num_frames, resolve_image_size(config))
