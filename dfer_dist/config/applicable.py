"""Which settings can matter, given a run's other settings: LoRA's rank only where there is LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dfer_dist.config.schema import Config, flatten

Settings = dict[str, Any]
Condition = Callable[[Settings], object]

# Backbones that read clips begin so.
VIDEO = "videomae:"


def _is(key: str, *values: object) -> Condition:
    return lambda s: s[key] in values


def _has(key: str) -> Condition:
    return lambda s: s[key]


def _reads_urls(s: Settings) -> bool:
    shards = s["data.shards"]
    return any("://" in own for own in ([shards] if isinstance(shards, str) else shards))


def _learns_context(s: Settings) -> object:
    return s["model.head"] == "text" and s["model.context_tokens"]


def _reads_texts(s: Settings) -> object:
    return s["model.head"] == "text" or s["model.head_init"] == "text"


def _reads_frames(s: Settings) -> bool:
    return not s["model.backbone"].startswith(VIDEO)


def _has_temporal(s: Settings) -> bool:
    return _reads_frames(s) and s["model.temporal"] == "transformer"


def _tunes_with(kind: str) -> Condition:
    return lambda s: kind in (s["model.image"], s["model.text_tower"])


# Settings that matter only under a condition on the others; all others always do.
_CONDITIONS: tuple[tuple[str, Condition], ...] = (
    ("data.cache data.cache_gb", _reads_urls),
    ("data.mixture data.extra_classes", lambda s: isinstance(s["data.shards"], list)),
    ("data.folds data.folds_hash", _has("data.folds")),
    ("data.augment.rand_magnitude", _has("data.augment.rand_augment")),
    ("data.stride", _is("data.sampling", "dense")),
    ("data.descriptions", _is("train.objective", "descriptions", "both")),
    ("data.ambiguous", _is("train.target", "votes")),
    ("train.target", _is("train.objective", "labels", "both")),
    ("model.text", lambda s: _reads_texts(s) and s["model.sentences"] is None),
    ("model.sentences model.temperature", _reads_texts),
    ("model.context_tokens", _is("model.head", "text")),
    ("model.head_init optim.lr_head", _is("model.head", "linear")),
    ("model.negative_sentences model.negative_weight", _is("model.text_polarity", "both")),
    ("model.class_specific model.token_position optim.lr_prompt", _learns_context),
    ("model.image_blocks", _is("model.image", "last")),
    ("model.lora_rank model.lora_alpha optim.lr_lora", _tunes_with("lora")),
    ("model.adapter_ratio model.adapter_scale optim.lr_adapters", _tunes_with("adapters")),
    ("model.adapter_time", _is("model.image", "adapters")),
    ("model.modality_ratio model.video_weight", _has("model.modalities")),
    ("model.description_ratio train.description_weight", _is("train.objective", "both")),
    ("model.temporal", _reads_frames),
    ("model.temporal_layers model.temporal_heads", _has_temporal),
    ("model.temporal_pool", _has_temporal),
    ("model.temporal_head_dim model.temporal_mlp", _has_temporal),
    ("model.checkpoint_temporal optim.lr_temporal", _has_temporal),
    ("optim.lr_image optim.layer_decay", _is("model.image", "all", "last", "norms")),
    ("optim.momentum", _is("optim.name", "sgd")),
    ("optim.betas", _is("optim.name", "adamw")),
    ("optim.decay_all", _has("optim.weight_decay")),
    ("optim.min_lr", _is("optim.schedule", "cosine")),
    ("optim.milestones optim.gamma", _is("optim.schedule", "step")),
    ("train.val_fraction", _is("train.selection", "best_val")),
    ("eval.each_epoch", _is("train.selection", "last")),
)


def applicable_settings(config: Config) -> Settings:
    """Return the settings that can matter, as :func:`~dfer_dist.config.schema.flatten` does."""
    settings = flatten(config)
    idle = idle_settings(settings)
    return {key: value for key, value in settings.items() if key not in idle}


def idle_settings(settings: Settings) -> set[str]:
    """Return those of all settings that cannot matter."""
    return {k for keys, holds in _CONDITIONS if not holds(settings) for k in keys.split()}
