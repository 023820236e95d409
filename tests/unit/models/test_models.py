from __future__ import annotations

import copy
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from dfer_dist.config.schema import ClassText, Config, ModelConfig, TokenPosition
from dfer_dist.models.backbone import fetch_weights, load_backbone
from dfer_dist.models.build import build_model, resolve_image_size
from dfer_dist.models.class_texts import DESCRIPTIONS, class_texts
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.prompt import PromptLearner
from dfer_dist.models.tokenizer import clip_tokenizer
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError

SEVEN = list(DESCRIPTIONS)[:7]


def tiny(seed: int = 0, num_frames: int = 4, **settings: object) -> DFERCLIP:
    torch.manual_seed(seed)
    return build_model(
        ModelConfig(backbone="tiny", pretrained="none", **settings), SEVEN, num_frames, 64
    )


@pytest.fixture(scope="module")
def model() -> DFERCLIP:
    return tiny()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def gradients(model: DFERCLIP, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(model(clips), torch.arange(len(clips))).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_shapes_and_cosines(model: DFERCLIP, clips: torch.Tensor) -> None:
    logits = model(clips)
    assert logits.shape == (3, 7) and logits.dtype == torch.float32
    assert logits.abs().max() <= 100 * (1 + 1e-5), "a cosine over a temperature of 0.01"
    assert torch.allclose(model.text_features().norm(dim=-1), torch.ones(7))
    warmer = tiny(temperature=0.05)
    assert torch.allclose(warmer(clips), logits / 5, rtol=1e-5, atol=1e-5)


def test_text_features_may_be_given(model: DFERCLIP, clips: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(model(clips, model.text_features()), model(clips))
        assert torch.allclose(
            model(clips, model.text_features()[:2]), model(clips)[:, :2], atol=1e-4
        )


def test_float_pixels_and_normalization(model: DFERCLIP, clips: torch.Tensor) -> None:
    assert torch.equal(model(clips.float() / 255), model(clips))
    normalizing = tiny(normalize=True)
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    assert torch.allclose(normalizing(clips), model((clips / 255 - mean) / std), atol=1e-4)
    assert not torch.allclose(normalizing(clips), model(clips), atol=1e-2)


def test_one_seed_one_model() -> None:
    a, b, c = tiny(0).state_dict(), tiny(0).state_dict(), tiny(1).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    for name in (
        "temporal.cls",
        "temporal.pos",
        "prompt.context",
        "image.proj",
        "text.token_embedding.weight",
    ):
        assert not torch.equal(a[name], c[name])
    assert 0.9 < a["temporal.pos"].std() < 1.1 and 0.018 < a["prompt.context"].std() < 0.022


def test_groups_are_all_that_is_trained(model: DFERCLIP, clips: torch.Tensor) -> None:
    groups = param_groups(model)
    assert list(groups) == ["temporal", "image", "prompt"]
    assert [name for name, _ in groups["prompt"]] == ["prompt.context"]
    grads = gradients(model, clips)
    assert set(grads) == {name for group in groups.values() for name, _ in group}
    assert all(g.abs().max() > 0 for g in grads.values()), (
        "a trained parameter that gets no gradient"
    )
    assert not any(name.startswith("text.") for name in grads)
    assert not {k for k in model.state_dict() if k.endswith(("prefix", "suffix"))}


def test_short_prompts_equal_padded_prompts(model: DFERCLIP) -> None:
    short = model.prompt()
    padding = model.text.token_embedding(torch.zeros(7, 77 - short.shape[1], dtype=torch.long))
    whole = model.text(torch.cat([short, padding], dim=1), model.prompt.eot)
    assert short.shape[1] == model.prompt.eot.max() + 1 < 40
    assert torch.allclose(model.text(short, model.prompt.eot), whole, atol=1e-6)
    assert not torch.allclose(model.text(short, model.prompt.eot - 1), whole, atol=1e-3)


def test_the_text_tower_is_open_clips() -> None:
    torch.manual_seed(0)
    clip = build_clip(TINY, 64)
    model = tiny(context_tokens=2)
    with torch.no_grad():
        model.prompt.context.copy_(
            model.text.token_embedding(torch.full((7, 2), SimpleTokenizer().encode("x")[0]))
        )
        theirs = clip.encode_text(
            SimpleTokenizer()([f"x x {DESCRIPTIONS[c]}" for c in SEVEN]), normalize=True
        )
        assert torch.allclose(model.text_features(), theirs, atol=1e-6)


@pytest.mark.parametrize("context", [4, 5])
@pytest.mark.parametrize("position", list(TokenPosition))
def test_layout_of_the_prompt(position: TokenPosition, context: int) -> None:
    embedding = torch.nn.Embedding(49408, 1)
    embedding.weight.data.copy_(
        torch.arange(49408.0)[:, None]
    )  # an embedding that is the token's id
    cfg = ModelConfig(context_tokens=context, token_position=position)
    prompt = PromptLearner([["fear."], ["a wide open mouth."]], embedding, clip_tokenizer(), cfg)
    prompt.context.data.copy_(-torch.arange(1.0, 1 + context)[:, None].expand(2, -1, 1))
    sot, eot = 49406, 49407
    half = context // 2
    for row, text in zip(
        prompt()[..., 0].int().tolist(), ["fear.", "a wide open mouth."], strict=True
    ):
        text_tokens, learned = SimpleTokenizer().encode(text), [-i for i in range(1, 1 + context)]
        expected = {
            TokenPosition.end: [sot, *learned, *text_tokens, eot],
            TokenPosition.middle: [sot, *learned[:half], *text_tokens, *learned[half:], eot],
            TokenPosition.front: [sot, *text_tokens, *learned, eot],
        }[position]
        assert row == expected + [0] * (len(row) - len(expected))
        assert expected.index(eot) in prompt.eot.tolist()


def test_a_shared_context_is_the_same_for_all_classes(clips: torch.Tensor) -> None:
    model = tiny(class_specific=False, context_tokens=3)
    assert model.prompt.context.shape == (3, 64)
    prompts = model.prompt()
    assert torch.equal(prompts[0, 1:4], prompts[6, 1:4])
    assert gradients(model, clips)["prompt.context"].shape == (3, 64)


def test_prompts_follow_a_loaded_token_embedding(model: DFERCLIP, clips: torch.Tensor) -> None:
    other = tiny(seed=5)
    assert not torch.allclose(other(clips), model(clips), atol=1e-2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(clips), model(clips))
    assert torch.equal(copy.deepcopy(other)(clips), model(clips))


@pytest.mark.parametrize("which", ["image", "temporal"])
def test_recomputing_activations_changes_no_gradient(
    model: DFERCLIP, clips: torch.Tensor, which: str
) -> None:
    other = tiny(**{f"checkpoint_{which}": True})
    part = other.image.transformer.resblocks[0] if which == "image" else other.temporal.blocks[0]
    calls = []
    part.register_forward_pre_hook(lambda *_: calls.append(1))
    ours, theirs = gradients(other, clips), gradients(model, clips)
    assert len(calls) == 2, "the block was not run again in the backward pass"
    assert ours.keys() == theirs.keys()
    for name, g in theirs.items():
        assert torch.allclose(ours[name], g, rtol=1e-5, atol=1e-7), name


def test_bfloat16_is_close(model: DFERCLIP, clips: torch.Tensor) -> None:
    low = copy.deepcopy(model).to(torch.bfloat16)
    exact, rough = model(clips), low(clips)
    assert rough.dtype == torch.float32
    # Eight bits of mantissa: cosines move by some thousandths, logits are a hundred times that.
    assert (exact - rough).abs().max() < 2.0
    rough_grads, grads = gradients(low, clips), gradients(model, clips)
    for name in ("prompt.context", "temporal.blocks.0.qkv.weight", "image.conv1.weight"):
        assert (
            F.cosine_similarity(rough_grads[name].float().flatten(), grads[name].flatten(), dim=0)
            > 0.9
        ), name


def test_temporal_order_matters(model: DFERCLIP, clips: torch.Tensor) -> None:
    assert not torch.allclose(model(clips.flip(1)), model(clips), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [
        ("ViT-B-32-quickgelu", 512, 224),
        ("ViT-B/16", 512, 224),
        ("ViT-L-14-quickgelu", 768, 224),
        ("ViT-L-14-336", 768, 336),
        ("ViT-L-14-336-quickgelu", 768, 336),
        ("ViT-H-14", 1024, 224),
        ("ViT-H-14-378-quickgelu", 1024, 378),
        ("ViT-g-14", 1024, 224),
        ("ViT-bigG-14-quickgelu", 1280, 224),
    ],
)
def test_larger_backbones_have_the_published_sizes(name: str, width: int, size: int) -> None:
    config = Config(model=ModelConfig(backbone=name, pretrained="none", temporal_layers=2))
    assert resolve_image_size(config) == config.data.image_size == size
    with torch.device("meta"):
        model = build_model(config.model, SEVEN, 16, size)
        logits = model(torch.zeros(2, 16, 3, size, size, dtype=torch.uint8))
    assert logits.shape == (2, 7)
    assert (
        model.temporal.blocks[0].qkv.weight.shape == (3 * 8 * 64, width)
        and len(model.temporal.blocks) == 2
    )
    assert model.temporal.blocks[0].mlp[0].weight.shape == (1024, width)
    assert model.temporal.pos.shape == (1, 17, width)


def test_names_and_descriptions() -> None:
    assert class_texts(["fear", "joy"], ClassText.names) == [["fear."], ["joy."]]
    assert len(DESCRIPTIONS) == 11 and len(set(DESCRIPTIONS.values())) == 11
    with pytest.raises(UserError, match=r"'joy'.*model\.text=sentence"):
        class_texts(["fear", "joy"], ClassText.descriptions)


@pytest.mark.parametrize(
    ("name", "pretrained", "size", "says"),
    [
        ("ViT-B-32-quickgelu", "openai", 224, "run `dfer fetch-weights ViT-B-32-quickgelu openai`"),
        ("ViT-B-32", "openai", 224, "model.backbone=ViT-B-32-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", 224, "model.backbone=ViT-B-32$"),
        ("ViT-B-32-quickgelu", "opanai", 224, "one of openai"),
        ("ViT-B-32-quickgelu", "/no/such/file.pt", 224, "nor a file"),
        ("ViT-B-32-quickgelu", "none", 225, "set 224"),
        ("tiny", "openai", 64, "weights file or none"),
        ("ViT-B-23", "none", 224, "did you mean"),
        ("RN50", "none", 224, "backbone 'RN50' has a ResNet as image tower"),
        ("ViTamin-S", "none", 224, "ViTamin, whose first stages are convolutions"),
        (
            "timm:vit_tiny_patch16_224",
            "augreg",
            224,
            "to one of augreg_in21k, augreg_in21k_ft_in1k",
        ),
        ("timm:vit_tiny_patch17_224", "none", 224, "did you mean 'timm:vit_tiny_patch16_224'"),
        ("timm:resnet18", "none", 224, r"is no ViT \(resnet\)"),
        ("timm:vit_tiny_patch16_224", "none", 225, "set 224"),
    ],
)
def test_mistakes_are_explained(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    pretrained: str,
    size: int,
    says: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=says):
        load_backbone(name, pretrained, size)


def test_cached_weights_are_found_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "open_clip_model.safetensors").write_bytes(b"damaged")
    with (
        pytest.raises(UserError, match=r"open_clip_model\.safetensors does not hold weights"),
        torch.device("meta"),
    ):
        load_backbone("ViT-B-32-quickgelu", "openai", 224)


def test_fetching_refuses_what_does_not_exist() -> None:
    for name, tag in [
        ("ViT-B-32", "openai"),
        ("tiny", "openai"),
        ("ViT-B-32-quickgelu", "nothing"),
    ]:
        with pytest.raises(UserError):
            fetch_weights(name, tag)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ["safetensors", "pt", "torchscript"])
def test_a_weights_file_is_loaded_and_named_by_its_hash(tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(9)
    clip = build_clip(TINY, 64)
    path = tmp_path / f"tiny.{form.replace('torchscript', 'pt')}"
    if form == "safetensors":
        save_file(clip.state_dict(), path)
    elif form == "pt":
        torch.save(clip.state_dict(), path)
    else:  # OpenAI's own files are TorchScript archives
        torch.jit.save(torch.jit.script(clip), path)
    backbone = load_backbone("tiny", str(path), 64)
    assert backbone.sha256 is not None and len(backbone.sha256) == 64
    assert torch.equal(backbone.image.proj, clip.visual.proj)
    assert torch.equal(backbone.text.token_embedding.weight, clip.token_embedding.weight)
    larger = load_backbone("tiny", str(path), 96).image
    assert larger.positional_embedding.shape == (37, TINY["vision_cfg"]["width"]), (
        "position embeddings are resized to the frames"
    )
    torch.save({"other": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match="does not hold weights of this backbone"):
        load_backbone("tiny", str(tmp_path / "wrong.pt"), 64)
