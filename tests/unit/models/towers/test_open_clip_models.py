"""Every model of open_clip with a ViT image tower, against open_clip's own code."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dfer_dist.models.backbone import describe_backbone, load_backbone, load_tokenizer
from dfer_dist.models.towers.image import tower_parts
from dfer_dist.models.towers.open_clip_models import build_clip, clip_config
from dfer_dist.utils.errors import UserError
from tests.helpers.models.small_backbones import FAMILIES, fill_hub_cache, write_small

TEXTS = ["a face at rest", "a wide open mouth"]
REFUSED = {
    "RN": "a ResNet",
    "convnext": "a ConvNeXt",
    "MobileCLIP": "a FastViT",
    "swin": "a Swin transformer",
    "ViTamin": "a ViTamin",
}
ACCEPTED = [
    "coca_base",
    "coca_roberta-ViT-B-32",
    "coca_ViT-B-32",
    "coca_ViT-L-14",
    "EVA01-g-14",
    "EVA01-g-14-plus",
    "EVA02-B-16",
    "EVA02-E-14",
    "EVA02-E-14-plus",
    "EVA02-L-14",
    "EVA02-L-14-336",
    "MobileCLIP2-B",
    "MobileCLIP2-L-14",
    "MobileCLIP-B",
    "mt5-base-ViT-B-32",
    "mt5-xl-ViT-H-14",
    "nllb-clip-base",
    "nllb-clip-base-siglip",
    "nllb-clip-large",
    "nllb-clip-large-siglip",
    "PE-Core-B-16",
    "PE-Core-bigG-14-448",
    "PE-Core-L-14-336",
    "PE-Core-S-16-384",
    "PE-Core-T-16-384",
    "roberta-ViT-B-32",
    "ViT-B-16",
    "ViT-B-16-plus",
    "ViT-B-16-plus-240",
    "ViT-B-16-quickgelu",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "ViT-B-16-SigLIP2-256",
    "ViT-B-16-SigLIP2-384",
    "ViT-B-16-SigLIP2-512",
    "ViT-B-16-SigLIP-256",
    "ViT-B-16-SigLIP-384",
    "ViT-B-16-SigLIP-512",
    "ViT-B-16-SigLIP-i18n-256",
    "ViT-B-32",
    "ViT-B-32-256",
    "ViT-B-32-plus-256",
    "ViT-B-32-quickgelu",
    "ViT-B-32-SigLIP2-256",
    "ViT-bigG-14",
    "ViT-bigG-14-CLIPA",
    "ViT-bigG-14-CLIPA-336",
    "ViT-bigG-14-quickgelu",
    "ViT-bigG-14-worldwide",
    "ViT-bigG-14-worldwide-378",
    "ViT-e-14",
    "ViT-g-14",
    "ViT-gopt-16-SigLIP2-256",
    "ViT-gopt-16-SigLIP2-384",
    "ViT-H-14",
    "ViT-H-14-378",
    "ViT-H-14-378-quickgelu",
    "ViT-H-14-CLIPA",
    "ViT-H-14-CLIPA-336",
    "ViT-H-14-quickgelu",
    "ViT-H-14-worldwide",
    "ViT-H-14-worldwide-378",
    "ViT-H-14-worldwide-quickgelu",
    "ViT-H-16",
    "ViT-L-14",
    "ViT-L-14-280",
    "ViT-L-14-336",
    "ViT-L-14-336-quickgelu",
    "ViT-L-14-CLIPA",
    "ViT-L-14-CLIPA-336",
    "ViT-L-14-quickgelu",
    "ViT-L-14-worldwide",
    "ViT-L-14-worldwide-quickgelu",
    "ViT-L-16",
    "ViT-L-16-320",
    "ViT-L-16-SigLIP2-256",
    "ViT-L-16-SigLIP2-384",
    "ViT-L-16-SigLIP2-512",
    "ViT-L-16-SigLIP-256",
    "ViT-L-16-SigLIP-384",
    "ViT-M-16",
    "ViT-M-16-alt",
    "ViT-M-32",
    "ViT-M-32-alt",
    "ViT-S-16",
    "ViT-S-16-alt",
    "ViT-S-32",
    "ViT-S-32-alt",
    "ViT-SO400M-14-SigLIP",
    "ViT-SO400M-14-SigLIP2",
    "ViT-SO400M-14-SigLIP2-378",
    "ViT-SO400M-14-SigLIP-378",
    "ViT-SO400M-14-SigLIP-384",
    "ViT-SO400M-16-SigLIP2-256",
    "ViT-SO400M-16-SigLIP2-384",
    "ViT-SO400M-16-SigLIP2-512",
    "ViT-SO400M-16-SigLIP-i18n-256",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "xlm-roberta-base-ViT-B-32",
    "xlm-roberta-large-ViT-H-14",
]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_hub_cache(tmp_path / "hub", monkeypatch)


@pytest.mark.parametrize("name", ACCEPTED)
def test_builds_with_its_own_sizes(name: str) -> None:
    size = describe_backbone(name).image_size
    with torch.device("meta"):
        backbone = load_backbone(name, "none", size)
        features = backbone.image(torch.zeros(1, 3, size, size))
        tokens = torch.zeros(2, backbone.tokenizer.context_length, dtype=torch.int64)
        embedded = backbone.text.token_embedding(tokens)
        texts = backbone.text(embedded, torch.zeros(2, dtype=torch.int64))
    width = open_clip.get_model_config(name)["embed_dim"]
    assert features.shape == (1, width) and texts.shape == (2, width)
    assert backbone.image.output_dim == width
    vision = open_clip.get_model_config(name)["vision_cfg"]
    parts = tower_parts(backbone.image)
    assert len(parts.blocks) == vision.get("layers", len(parts.blocks)) > 1


def test_all_others_are_refused_with_their_reason() -> None:
    others = [name for name in open_clip.list_models() if name not in ACCEPTED]
    assert len(ACCEPTED) == 101 and len(others) == 43
    for name in others:
        reason = next(text for start, text in REFUSED.items() if name.startswith(start))
        with pytest.raises(UserError, match=f"backbone '{name}' has {reason}"):
            clip_config(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_open_clip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, pixels and tokens through both give the same logits and gradients."""
    path = write_small(name, tmp_path, monkeypatch)
    size = describe_backbone(path).image_size
    torch.manual_seed(0)
    theirs = build_clip(clip_config(path), size).eval()
    for p in theirs.parameters():
        p.data += 0.02 * torch.randn_like(p)
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, weights)

    backbone = load_backbone(path, str(weights), size)
    ours, text, tokenizer = backbone.image.eval(), backbone.text.eval(), backbone.tokenizer
    pixels = torch.randn(2, 3, size, size)
    rows = [[*tokenizer.start, *tokenizer.encode(t), *tokenizer.end] for t in TEXTS]
    tokens, eot = tokenizer.stack(rows), torch.tensor([len(row) - 1 for row in rows])
    assert text.find_eot(tokens).tolist() == eot.tolist() or tokenizer.fills_context
    assert_close(ours(pixels), theirs.encode_image(pixels, normalize=False))
    padded = torch.full((2, tokenizer.context_length), tokenizer.pad)
    padded[:, : tokens.shape[1]] = tokens
    assert_close(
        text(text.token_embedding(tokens), eot), theirs.encode_text(padded, normalize=False)
    )
    # nothing is random in training either
    assert_close(ours.train()(pixels), ours.eval()(pixels))
    scale = theirs.logit_scale.exp().item()
    assert backbone.temperature == pytest.approx(1 / scale)
    bias = 0.0 if theirs.logit_bias is None else theirs.logit_bias.item()
    assert backbone.logit_bias == pytest.approx(bias)


def assert_close(own: torch.Tensor, theirs: torch.Tensor) -> None:
    assert own.shape == theirs.shape
    assert (own - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_sizes_are_known_without_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop without the Hub's files can plan memory, but not train."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with torch.device("meta"):
        backbone = load_backbone("ViT-B-16-SigLIP2", "none", 224)
    assert backbone.tokenizer.stack([[1], [2, 3]]).shape == (2, 64)
    with pytest.raises(UserError, match="run `dfer fetch-weights ViT-B-16-SigLIP2 none`"):
        load_tokenizer("ViT-B-16-SigLIP2")
