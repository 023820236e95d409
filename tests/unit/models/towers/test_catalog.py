"""The list of backbones: what is stored is what is counted, and what open_clip publishes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfer_dist.models.towers.catalog import (
    _stored,
    count,
    find,
    names_of_open_clip,
    names_of_timm,
)
from dfer_dist.utils.errors import UserError
from tests.helpers.cli import invoke

SOME = (
    "tiny",
    "ViT-B-32-quickgelu",
    "ViT-S-16-alt",
    "coca_ViT-B-32",
    "EVA02-B-16",
    "PE-Core-S-16-384",
    "MobileCLIP-B",
    "vit_relpos_medium_patch16_cls_224",
    "timm:vit_small_patch16_dinov3",
    "timm:vit_base_patch14_dinov2",
    "timm:vit_large_patch16_224",
)
# Million parameters of the towers and 10^9 operations of a frame, from docs/model_profile.csv in
# the repository of open_clip.
PUBLISHED = {
    "ViT-B-16": (86.19, 63.43, 35.13),
    "ViT-L-14-336": (304.29, 123.65, 381.92),
    "ViT-bigG-14": (1844.91, 694.66, 967.5),
    "ViT-L-14-CLIPA": (303.96, 110.25, 162.03),
    "coca_base": (86.4, 134.66, 46.47),
    "EVA01-g-14": (1012.59, 123.85, 534.06),
    "EVA02-E-14-plus": (4350.56, 694.33, 2264.33),
    "ViT-B-16-SigLIP-512": (93.52, 110.27, 216.24),
    "ViT-SO400M-14-SigLIP-384": (428.23, 449.73, 670.35),
    "vit_medium_patch16_gap_256": (38.61, 63.43, 21.14),
}


@pytest.mark.parametrize("name", SOME)
def test_stored_sizes_are_those_counted(name: str) -> None:
    assert _stored()[name] == count(name)


def test_sizes_are_those_published() -> None:
    for name, (image, text, gflops) in PUBLISHED.items():
        own = _stored()[name]
        assert own.image_parameters / 1e6 == pytest.approx(image, abs=0.006), name
        assert own.text_parameters is not None
        assert own.text_parameters / 1e6 == pytest.approx(text, abs=0.006), name
        # The last block of open_clip's towers computes the class token alone.
        assert 0.9 * gflops < own.gflops / 16 < 1.001 * gflops, name


def test_every_name_has_stored_sizes() -> None:
    """After an update of open_clip or timm: ``python -m tests.helpers.models.backbone_sizes``."""
    entries = {entry.name: entry for entry in find(None)}
    assert list(entries) == names_of_open_clip()
    accepted = {name for name, entry in entries.items() if entry.refusal is None}
    assert accepted | set(names_of_timm()) == set(_stored())
    assert len(accepted) == 1 + 101
    assert all(
        entry.sizes is None and not entry.tags for n, entry in entries.items() if n not in accepted
    )


def test_lists_tags_that_fit_and_reasons() -> None:
    assert [entry.name for entry in find("vit-b-32-QUICK")] == ["ViT-B-32-quickgelu"]
    (quick,) = find("ViT-B-32-quickgelu")
    assert "openai" in quick.tags
    plain = next(entry for entry in find("ViT-B-32") if entry.name == "ViT-B-32")
    assert "openai" not in plain.tags and "laion2b_s34b_b79k" in plain.tags
    (resnet,) = find("RN50x16-quickgelu")
    assert resnet.refusal == "has a ResNet as image tower, not a ViT"
    dino, qkvb = find("timm:*base*16_dinov3")
    assert dino.name == "timm:vit_base_patch16_dinov3"
    assert not dino.has_text and dino.tags == ["lvd1689m"]
    assert qkvb.name == "timm:vit_base_patch16_dinov3_qkvb"
    (mae_dfer,) = find("videomae:mae")
    assert mae_dfer.sizes is not None and not mae_dfer.has_text
    assert (mae_dfer.sizes.image_size, mae_dfer.sizes.patch) == (160, 16)
    (plain_vit,) = find("videomae:vit_base_160")
    assert plain_vit.sizes is not None
    # its abstract: about 38 % fewer operations than VideoMAE's ViT-B
    assert mae_dfer.sizes.gflops / plain_vit.sizes.gflops == pytest.approx(0.62, abs=0.005)
    with pytest.raises(UserError, match=r"contains 'ViT-X'; did you mean"):
        find("ViT-X")


def test_prints_and_writes_a_list(tmp_path: Path) -> None:
    done = invoke("backbones", "SigLIP2", "--json", "list.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "use one: model.backbone=NAME model.pretrained=TAG" in done.stdout
    stored = json.loads((tmp_path / "list.json").read_text())
    assert len(stored) == 15
    assert stored[0]["name"] == "ViT-B-16-SigLIP2" and stored[0]["tags"] == ["webli"]
    assert stored[0]["sizes"]["image_parameters"] == _stored()["ViT-B-16-SigLIP2"].image_parameters
    assert "without a text tower" not in done.stdout and "Text M" in done.stdout
    done = invoke("backbones", "timm:*dinov3", cwd=tmp_path)
    assert "Text M" not in done.stdout
    assert "also set model.head=linear" in done.stdout
    done = invoke("backbones", "convnext_tiny", cwd=tmp_path)
    reason = "refused, each has a ConvNeXt as image tower, not a ViT: convnext_tiny"
    assert reason in done.stdout and "use one" not in done.stdout


def test_video_towers_are_listed() -> None:
    base, *others = find("videomae:vit_base")
    assert [entry.name for entry in others] == ["videomae:vit_base_160"]
    assert base.sizes is not None and not base.has_text and base.tags == []
    assert (base.sizes.image_size, base.sizes.patch) == (224, 16)
    assert base.sizes.gflops == pytest.approx(vit_base_gflops(8 * 14 * 14), rel=1e-3)
    (tiny,) = find("videomae:tiny")
    assert tiny.sizes is not None and tiny.sizes.image_size == 64
    sizes = others[0].sizes
    assert sizes is not None
    assert sizes.gflops == pytest.approx(vit_base_gflops(8 * 10 * 10), rel=1e-3)


def vit_base_gflops(tokens: int) -> float:
    """By hand: embedding, and 12 blocks of 12 D^2 weights and two products of attention."""
    width = 768
    embedding = 2 * tokens * 3 * 2 * 16 * 16 * width
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return (embedding + 12 * block) / 1e9
