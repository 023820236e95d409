"""Models: CLIP's towers, class text, learned prompts, the transformer over time, and DFER-CLIP, which joins them."""

from __future__ import annotations

from collections.abc import Sequence

from dfer_dist.config import ModelConfig
from dfer_dist.model.backbone import fetch_weights, load_backbone
from dfer_dist.model.dferclip import DFERCLIP, param_groups
from dfer_dist.model.text import class_texts

__all__ = ["DFERCLIP", "build_model", "fetch_weights", "param_groups"]


def build_model(
    cfg: ModelConfig, classes: Sequence[str], num_frames: int, image_size: int, sentences: Sequence[str] | None = None
) -> DFERCLIP:
    """The model of a run, in float32 on the default device; random parts follow torch's global seed.

    Parameters
    ----------
    classes : sequence of C str
        In label order.
    num_frames, image_size : int
        Frames of a clip and their side in pixels.
    sentences : sequence of C str, optional
        What the text tower reads for each class, instead of what ``cfg.text`` says.

    Raises
    ------
    UserError
        A class without a description, an unknown backbone, or weights that are not on this machine.
    """
    texts = class_texts(classes, cfg.text) if sentences is None else list(sentences)
    if len(texts) != len(classes):
        raise ValueError(f"{len(texts)} sentences for {len(classes)} classes")
    image, text, sha256 = load_backbone(cfg.backbone, cfg.pretrained, image_size)
    return DFERCLIP(cfg, image, text, texts, num_frames, sha256)
