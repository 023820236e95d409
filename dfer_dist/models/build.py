"""Build a model from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dfer_dist.config.schema import Config, Head, HeadInit, ModelConfig, Precision
from dfer_dist.models.backbone import describe_backbone, load_backbone
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.models.dferclip import DFERCLIP

_DTYPES = {
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
    Precision.fp32: torch.float32,
}


def resolve_image_size(config: Config) -> int:
    """Return ``data.image_size``; if it is not set, set it to the backbone's own size.

    Raises
    ------
    UserError
        An unknown backbone.
    """
    if config.data.image_size is None:
        model = config.model
        config.data.image_size = describe_backbone(model.backbone, model.pretrained).image_size
    return config.data.image_size


def model_dtype(precision: Precision) -> torch.dtype:
    """Return the number format of the weights in training."""
    return _DTYPES[precision]


def inference_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of the weights when a model predicts on ``device``.

    Where a processor has no float16 units, float16 becomes float32, which is 100 times as fast.
    """
    has_fp16 = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if precision is Precision.fp16 and not has_fp16:
        return torch.float32
    return model_dtype(precision)


def build_model(
    cfg: ModelConfig,
    classes: Sequence[str],
    num_frames: int,
    image_size: int,
    with_weights: bool = True,
) -> DFERCLIP:
    """Build the model in float32 on the default device, initialized by torch's global seed.

    Parameters that are not trained are frozen (:func:`~dfer_dist.models.tuning.param_groups`).

    Parameters
    ----------
    classes : sequence of C str
        In label order.
    num_frames, image_size : int
        Frames of a clip and their side in pixels.
    with_weights : bool
        False for random weights in place of ``model.pretrained``.

    Raises
    ------
    UserError
        A class without a text, an unknown backbone, missing weights, or more blocks to train than
        the backbone has.
    """
    texts = polarity_texts(classes, cfg)
    with_text = cfg.head is Head.text or cfg.head_init is HeadInit.text
    backbone = load_backbone(
        cfg.backbone, cfg.pretrained, image_size, with_text, with_weights, num_frames
    )
    return DFERCLIP(cfg, backbone, texts, num_frames)


def build_untrained(config: Config, classes: Sequence[str]) -> DFERCLIP:
    """Build the model of ``config`` as :func:`build_model` does, without its pretrained weights."""
    model = replace(config.model)
    # a classifier that is loaded needs no text tower to begin with
    if model.head_init is HeadInit.text:
        model.head_init = HeadInit.zeros
    size = resolve_image_size(config)
    return build_model(model, classes, config.data.num_frames, size, with_weights=False)
