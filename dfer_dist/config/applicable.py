"""Which settings can matter, given a run's other settings: LoRA's rank only where there is LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dfer_dist.config.schema import Config, flatten

Settings = dict[str, Any]


def _uses(kind: str) -> Callable[[Settings], bool]:
    return lambda s: kind in (s["model.image"], s["model.text_tower"])


# Settings that matter only under a condition on the others; all others always do.
_CONDITIONS: tuple[tuple[str, Callable[[Settings], object]], ...] = (
    ("data.cache data.cache_gb", lambda s: "://" in s["data.shards"]),
    ("data.stride", lambda s: s["data.sampling"] == "dense"),
    ("data.descriptions", lambda s: s["train.objective"] != "labels"),
    ("model.text", lambda s: s["model.sentences"] is None),
    (
        "model.negative_sentences model.negative_weight",
        lambda s: s["model.text_polarity"] == "both",
    ),
    (
        "model.class_specific model.token_position optim.lr_prompt",
        lambda s: s["model.context_tokens"],
    ),
    ("model.image_blocks", lambda s: s["model.image"] == "last"),
    ("optim.lr_image", lambda s: s["model.image"] in ("all", "last", "norms")),
    ("model.lora_rank model.lora_alpha optim.lr_lora", _uses("lora")),
    ("model.adapter_ratio model.adapter_scale optim.lr_adapters", _uses("adapters")),
    ("model.adapter_time", lambda s: s["model.image"] == "adapters"),
    ("model.modality_ratio model.video_weight", lambda s: s["model.modalities"]),
    (
        "model.description_ratio train.description_weight",
        lambda s: s["train.objective"] == "both",
    ),
    (
        "model.temporal_layers model.temporal_heads model.temporal_head_dim model.temporal_mlp "
        "model.checkpoint_temporal optim.lr_temporal",
        lambda s: s["model.temporal"] == "transformer",
    ),
    ("optim.momentum", lambda s: s["optim.name"] == "sgd"),
    ("optim.milestones optim.gamma", lambda s: s["optim.schedule"] == "step"),
    ("train.val_fraction", lambda s: s["train.selection"] == "best_val"),
)


def applicable_settings(config: Config) -> Settings:
    """Return the settings that can matter, as :func:`~dfer_dist.config.schema.flatten` does."""
    settings = flatten(config)
    idle = {k for keys, holds in _CONDITIONS if not holds(settings) for k in keys.split()}
    return {key: value for key, value in settings.items() if key not in idle}
