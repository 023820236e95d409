"""Which settings can matter, given the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dfer_dist.config.applicable import _CONDITIONS, applicable_settings
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, flatten
from dfer_dist.models.build import build_model
from tests.helpers.paths import ROOT

CLASSES = ("happiness", "sadness")
IDLE_MODEL_SETTINGS = [
    "model.image_blocks=1",
    "model.lora_rank=2",
    "model.adapter_ratio=0.5",
    "model.adapter_time=true",
    "model.modality_ratio=0.5",
    "model.class_specific=false",
    "model.token_position=middle",
    "model.temporal_pool=mean",
    "model.temporal_layers=2",
    "model.temporal_heads=2",
    "model.temporal_head_dim=8",
    "model.temporal_mlp=8",
]
PLAIN = ["model.image=norms", "model.temporal=mean", "model.context_tokens=0"]


def demo(*overrides: str) -> Config:
    return load_config("demo", ["data.shards=x", *overrides])


def idle(config: Config) -> set[str]:
    return flatten(config).keys() - applicable_settings(config).keys()


def test_conditions_are_on_settings_that_exist() -> None:
    conditional = [key for keys, _ in _CONDITIONS for key in keys.split()]
    assert set(conditional) < flatten(Config()).keys()
    assert len(set(conditional)) == len(conditional)


def test_settings_of_one_choice_matter_with_it_only() -> None:
    sgd = idle(demo("optim.name=sgd", "optim.schedule=step", "train.selection=best_val"))
    settings = {"optim.momentum", "optim.milestones", "optim.gamma", "train.val_fraction"}
    assert settings <= idle(demo()) and not settings & sgd
    assert {"optim.betas", "optim.min_lr"} <= sgd and not {"optim.betas"} & idle(
        demo("optim.name=adamw")
    )
    assert "optim.layer_decay" in idle(demo("model.image=lora"))
    assert "optim.decay_all" in idle(demo("optim.weight_decay=0"))
    lora = {"model.lora_rank", "model.lora_alpha", "optim.lr_lora"}
    assert lora <= idle(demo())
    assert not lora & idle(demo("model.text_tower=lora"))
    assert "optim.lr_image" in idle(demo("model.image=lora"))
    frames, clips = demo(), demo("model.backbone=videomae:tiny", "model.head=linear")
    own = {key for key in flatten(frames) if "temporal" in key}
    assert own <= idle(clips) and not own & idle(frames)
    remote = idle(demo("data.shards=s3://bucket/x"))
    assert "data.cache_gb" in idle(demo()) and "data.cache_gb" not in remote


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "configs").glob("*.yaml")) if p.stem != "published"],
    ids=lambda p: p.stem,
)
def test_settings_of_an_experiment_can_matter(path: Path) -> None:
    written = {
        f"{group}.{key}"
        for group, settings in yaml.safe_load(path.read_text()).items()
        for key in settings
    }
    # the demo has them ready for model.image=lora and adapters
    ready = {"optim.lr_lora", "optim.lr_adapters"}
    assert not written & idle(load_config(str(path), ["data.shards=x"])) - ready


def test_idle_settings_change_no_parameter() -> None:
    def shapes(*overrides: str) -> dict[str, tuple[int, ...]]:
        model = build_model(demo(*PLAIN, *overrides).model, CLASSES, 4, 64)
        return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}

    assert {key.partition("=")[0] for key in IDLE_MODEL_SETTINGS} <= idle(demo(*PLAIN))
    assert shapes() == shapes(*IDLE_MODEL_SETTINGS)
