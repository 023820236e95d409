"""Everything that a model can do, on a small tower of each family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dfer_dist.config.schema import ClassText, ImageTuning, ModelConfig
from dfer_dist.models.backbone import describe_backbone
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.layers import layer_of, num_layers
from dfer_dist.models.towers.image import tower_parts
from dfer_dist.models.tuning import param_groups
from tests.helpers.models.small_backbones import FAMILIES, fill_hub_cache, write_small

CLASSES = ("a face", "at rest", "wide open mouth")
TUNINGS = ("all", "last", "norms", "lora", "adapters", "none")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_hub_cache(tmp_path / "hub", monkeypatch)


def model_config(backbone: str, **settings: object) -> ModelConfig:
    return ModelConfig(
        backbone=backbone,
        pretrained="none",
        text=ClassText.names,
        context_tokens=4,
        image_blocks=1,
        normalize=True,
        **settings,  # type: ignore[arg-type]
    )


def build(cfg: ModelConfig, size: int) -> DFERCLIP:
    torch.manual_seed(0)
    return build_model(cfg, CLASSES, 2, size)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_of_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass; each trained parameter gets a gradient, and only those change."""
    path = write_small(name, tmp_path, monkeypatch)
    size = describe_backbone(path).image_size
    clips = torch.randint(0, 256, (2, 2, 3, size, size), dtype=torch.uint8)
    start = None
    for tuning in TUNINGS:
        model = build(model_config(path, image=ImageTuning(tuning)), size)
        logits = model(clips)
        assert logits.shape == (2, 3) and logits.isfinite().all()
        # LoRA and adapters start from exactly the given model
        start = logits if start is None else start
        torch.testing.assert_close(logits, start, rtol=1e-4, atol=1e-4)
        logits.square().sum().backward()
        trained = {n: p for group in param_groups(model).values() for n, p in group}
        without = [n for n, p in trained.items() if p.grad is None]
        assert not without, f"{tuning}: {without}"
        assert (tuning == "none") == (not any(n.startswith("image") for n in trained))


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_activations_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_small(name, tmp_path, monkeypatch)
    size = describe_backbone(path).image_size
    clips = torch.randint(0, 256, (2, 2, 3, size, size), dtype=torch.uint8)
    gradients = []
    for recompute in (False, True):
        cfg = model_config(path, image=ImageTuning.lora, checkpoint_image=recompute)
        model = build(cfg, size)
        # LoRA starts with zeros
        for p in model.parameters():
            p.data += 0.02 * torch.randn_like(p)
        model(clips).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for own, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_and_branches_are_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_small(name, tmp_path, monkeypatch)
    size = describe_backbone(path).image_size
    model = build(model_config(path, drop_path=0.5), size).train()
    parts, layers = tower_parts(model.image), num_layers(model.image)
    assert layers == len(parts.blocks)
    layer = {n: layer_of(f"image.{n}", layers) for n, _ in model.image.named_parameters()}
    of_tail = {id(p) for part in parts.tail if part is not None for p in parameters_of(part)}
    for n, p in model.image.named_parameters():
        assert (layer[n] == layers + 1) == (id(p) in of_tail), n
    assert set(range(1, layers + 1)) <= set(layer.values())
    # Without any branch, blocks change nothing.
    assert model.drop_path
    model.drop_path.scales = torch.zeros(2 * layers, 2)
    model(torch.randint(0, 256, (2, 2, 3, size, size), dtype=torch.uint8)).square().sum().backward()
    for n, p in model.image.named_parameters():
        assert p.grad is not None, n
        assert not p.grad.any() or not 1 <= layer[n] <= layers, n


def parameters_of(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())
