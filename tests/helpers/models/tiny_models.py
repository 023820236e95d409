"""FineCLIPER at a size that a test can afford."""

from __future__ import annotations

import torch

from dfer_dist.config.schema import (
    ClassText,
    ImageTuning,
    ModelConfig,
    TemporalKind,
    TextPolarity,
    TextTuning,
)
from dfer_dist.models.adapters import Adapter, FramePositions
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from tests.helpers.paths import HELPERS

ENGINE = HELPERS / "ranks" / "tuned_engine.py"


CLASSES = ["happiness", "sadness", "fear"]


FRAMES = 4


FINE = {
    "text": ClassText.person,
    "text_polarity": TextPolarity.both,
    "context_tokens": 0,
    "image": ImageTuning.adapters,
    "text_tower": TextTuning.adapters,
    "temporal": TemporalKind.mean,
    "normalize": True,
}


def tiny(**settings: object) -> DFERCLIP:
    torch.manual_seed(0)
    cfg = ModelConfig(backbone="tiny", pretrained="none", **{**FINE, **settings})  # type: ignore[arg-type]
    return build_model(cfg, CLASSES, FRAMES, 64)


def perturb(model: DFERCLIP, only: str = "") -> DFERCLIP:
    """Add noise to adapters and frame positions with ``only`` in their names."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (Adapter, FramePositions)) and only in name:
                for p in module.parameters():
                    p += 0.2 * torch.randn_like(p)
    return model


B16 = "dfew_finecliper_vitb16"
