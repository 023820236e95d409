"""Which file describes the backbone of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest

from dfer_dist.config.schema import Head, ModelConfig
from dfer_dist.inference.portable_backbone import write_backbone
from dfer_dist.models.backbone import describe_backbone
from dfer_dist.models.towers.open_clip_models import clip_config
from tests.helpers.models.small_backbones import fill_hub_cache

# in place of a model with a text tower, and of one with a linear head, which has none
TEXT: Any = SimpleNamespace(text="tower", temperature=0.05, logit_bias=-9.0)
LINEAR: Any = SimpleNamespace(text=None, temperature=1.0, logit_bias=0.0)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_hub_cache(tmp_path / "hub", monkeypatch)


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"hub"}


@pytest.mark.parametrize(
    ("name", "settings", "model"),
    [
        ("ViT-B-32-quickgelu", {"normalize": True}, TEXT),
        # its pixels are read in 0..1, and no text
        ("ViT-B-16-SigLIP2", {"head": Head.linear}, LINEAR),
        ("roberta-ViT-B-32", {"head": Head.linear, "normalize": True}, LINEAR),
        ("timm:vit_base_patch16_dinov3", {"head": Head.linear, "normalize": True}, LINEAR),
    ],
)
def test_name_says_all(name: str, settings: dict[str, Any], model: Any, tmp_path: Path) -> None:
    assert write_backbone(tmp_path, ModelConfig(backbone=name, **settings), model) == name
    assert not written(tmp_path)


def test_tokenizer_scale_and_pixels_are_written(tmp_path: Path) -> None:
    cfg = ModelConfig(backbone="ViT-B-16-SigLIP2", pretrained="webli", normalize=True)
    cfg.temperature = None
    assert write_backbone(tmp_path, cfg, TEXT) == "backbone.json"
    assert written(tmp_path) == {"backbone.json", "tokenizer"}
    stored = json.loads((tmp_path / "backbone.json").read_text())
    assert stored["text_cfg"]["hf_tokenizer_name"] == "tokenizer"
    assert stored["init_logit_scale"] == pytest.approx(2.9957, abs=1e-4)
    assert stored["init_logit_bias"] == -9.0
    info = describe_backbone(str(tmp_path / "backbone.json"))
    assert info.mean == info.std == (0.5, 0.5, 0.5)
    own, known = (
        clip_config(str(tmp_path / "backbone.json")),
        open_clip.get_model_config(cfg.backbone),
    )
    assert own["text_cfg"].pop("hf_tokenizer_name") == str(tmp_path / "tokenizer")
    known["text_cfg"].pop("hf_tokenizer_name")
    assert (own["vision_cfg"], own["text_cfg"]) == (known["vision_cfg"], known["text_cfg"])


def test_settings_of_a_text_tower_are_written(tmp_path: Path) -> None:
    cfg = ModelConfig(backbone="roberta-ViT-B-32", pretrained="laion2b_s12b_b32k")
    write_backbone(tmp_path, cfg, TEXT)
    assert written(tmp_path) == {"backbone.json", "tokenizer", "text_config"}
    assert (tmp_path / "text_config" / "config.json").is_file()


def test_linear_head_keeps_pixels_and_no_text(tmp_path: Path) -> None:
    cfg = ModelConfig(backbone="ViT-B-16-SigLIP2", normalize=True, head=Head.linear)
    assert write_backbone(tmp_path, cfg, LINEAR) == "backbone.json"
    assert written(tmp_path) == {"backbone.json"}
    assert json.loads((tmp_path / "backbone.json").read_text())["text_cfg"] == {}
