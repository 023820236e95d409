"""Video towers: against transformers, every way of training, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, Head, ImageTuning, ModelConfig
from dfer_dist.models.backbone import describe_backbone, fetch_weights, find_weights, load_backbone
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.layers import layer_of, num_layers
from dfer_dist.models.towers.image import tower_parts
from dfer_dist.models.towers.video_vit import VideoSizes, position_table
from dfer_dist.models.towers.videomae import SIZES
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.step_costs import count_step
from dfer_dist.training.parameter_groups import is_decayed
from dfer_dist.utils.errors import UserError
from tests.helpers.models.small_backbones import SMALL_VIDEO, write_small_video

CLASSES = ("happiness", "sadness", "neutral")
REGIONS: dict[str, Any] = {"region_size": (1, 2, 4)}
KINDS = pytest.mark.parametrize("settings", [{}, REGIONS], ids=["all tokens", "regions"])


def build(backbone: str, **settings: Any) -> DFERCLIP:
    torch.manual_seed(0)
    cfg = ModelConfig(
        backbone=backbone,
        pretrained="none",
        head=Head.linear,
        image_blocks=1,
        normalize=True,
        **settings,
    )
    model = build_model(cfg, CLASSES, 4, 32)
    # the head starts with zeros
    assert model.head is not None
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    return model


def clips(count: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(1)
    shape = (count, frames, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded)


@pytest.fixture
def theirs(tmp_path: Path) -> VideoMAEForVideoClassification:
    """A model of transformers, saved in ``tmp_path``."""
    torch.manual_seed(0)
    model = VideoMAEForVideoClassification(VideoMAEConfig(**SMALL_VIDEO)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model.classifier = torch.nn.Identity()
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("is_old", [False, True])
@torch.no_grad()
def test_features_are_those_of_transformers(
    theirs: VideoMAEForVideoClassification, is_old: bool, tmp_path: Path
) -> None:
    """Files of either version: the library renamed the biases in its version 5."""
    state = load_file(tmp_path / "model.safetensors")
    for new, old in (("query.bias", "q_bias"), ("value.bias", "v_bias")):
        source, target = (new, old) if is_old else (old, new)
        state = {name.replace(source, target): tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    backbone = load_backbone(f"videomae:{tmp_path}", "main", 32, num_frames=4)
    x = torch.randn(3, 4, 3, 32, 32)
    own, wanted = backbone.image(x), theirs(x).logits
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)
    assert backbone.image.output_dim == 64 and backbone.info.is_video


@torch.no_grad()
def test_a_file_of_pytorch_loads_too(
    theirs: VideoMAEForVideoClassification, tmp_path: Path
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    image = load_backbone(f"videomae:{tmp_path}", "main", 32).image
    x = torch.randn(1, 4, 3, 32, 32)
    torch.testing.assert_close(image(x), theirs(x).logits, rtol=0, atol=1e-5)


def test_a_repository_in_the_cache_is_found(
    theirs: VideoMAEForVideoClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--some--videomae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    theirs.save_pretrained(repository / "snapshots" / "abc")
    assert describe_backbone("videomae:some/videomae").image_size == 32
    assert load_backbone("videomae:some/videomae", "main", 32).sha256 is not None


@KINDS
def test_every_way_of_training(settings: dict[str, Any], tmp_path: Path) -> None:
    """Each trained parameter gets a gradient, and all start from the same model."""
    name, start = write_small_video(tmp_path, **settings), None
    tunings = [ImageTuning(t) for t in ("all", "last", "norms", "lora", "adapters", "none")]
    for tuning in tunings:
        if settings and tuning is ImageTuning.adapters:
            continue
        model = build(name, image=tuning)
        logits = model(clips())
        assert logits.shape == (2, 3)
        start = logits if start is None else start
        torch.testing.assert_close(logits, start, rtol=1e-4, atol=1e-4)
        logits.square().sum().backward()
        groups = param_groups(model)
        without = [n for own in groups.values() for n, p in own if p.grad is None]
        assert not without, f"{tuning}: {without}"
        assert (tuning.name == "none") == (set(groups) == {"head"})


@KINDS
def test_lora_is_in_every_linear_layer(settings: dict[str, Any], tmp_path: Path) -> None:
    model = build(write_small_video(tmp_path, **settings), image=ImageTuning.lora)
    names = {n.rpartition(".lora")[0] for n, _ in param_groups(model)["lora"]}
    attention = ("attn",) if not settings else ("local_attn", "global_attn", "exchange_attn")
    layers = [f"{a}.{own}" for a in attention for own in ("query", "key", "value", "proj")]
    wanted = [f"{block}.{own}" for block in (0, 1) for own in [*layers, "mlp.fc1", "mlp.fc2"]]
    assert names == {f"image.trunk.blocks.{own}" for own in wanted}


@KINDS
def test_recomputed_activations_change_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    name, gradients = write_small_video(tmp_path, **settings), []
    for recompute in (False, True):
        model = build(name, image=ImageTuning.all, checkpoint_image=recompute)
        calls: list[object] = []
        for block in model.image.trunk.blocks:
            block.norm2.register_forward_hook(lambda *call, calls=calls: calls.append(call))
        model(clips()).square().sum().backward()
        assert len(calls) == (4 if recompute else 2), "forward, and again in the backward pass"
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for own, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(own, wanted)


@KINDS
def test_nothing_is_random_in_training(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = build(write_small_video(tmp_path, **settings)).train()
    assert torch.equal(model(clips()), model(clips()))


@KINDS
def test_parts_and_layers(settings: dict[str, Any], tmp_path: Path) -> None:
    image = build(write_small_video(tmp_path, **settings)).image
    parts = tower_parts(image)
    assert len(parts.blocks) == num_layers(image) == 2 and parts.width == 64
    assert image.trunk.fc_norm in parts.tail
    layers: dict[int, set[str]] = {}
    for name, p in image.named_parameters():
        layers.setdefault(layer_of(f"image.{name}", 2), set()).add(name)
        assert is_decayed(name, p) == (name.endswith("weight") and p.ndim > 1), name
    assert layers[0] == {"trunk.patch_embed.weight", "trunk.patch_embed.bias"}
    tail = {"trunk.fc_norm.weight", "trunk.fc_norm.bias"}
    assert layers[3] == tail | ({"trunk.region_tokens"} if settings else set())


def test_positions_of_other_clips_are_interpolated() -> None:
    sizes = VideoSizes(hidden_size=8, num_frames=8, image_size=32, patch_size=16)
    own = position_table(sizes, (4, 2, 2))
    assert own[5, 0] == torch.tensor(5.0).sin() and own[5, 1] == torch.tensor(5.0).cos()
    halves = own.view(2, 2, 4, 8).mean(1).flatten(0, 1)
    torch.testing.assert_close(position_table(sizes, (2, 2, 2)), halves)
    larger = position_table(sizes, (4, 4, 4)).view(4, 4, 4, 8)
    assert larger.shape == (4, 4, 4, 8)
    # the middle of a frame stays where it was
    middle = own.view(4, 4, 8).mean(1)
    torch.testing.assert_close(larger.mean((1, 2)), middle, rtol=0, atol=0.05)


def test_other_clips_than_in_training_run(tmp_path: Path) -> None:
    name = write_small_video(tmp_path)
    image = load_backbone(name, "none", 48, num_frames=6).image
    assert image(torch.randn(2, 6, 3, 48, 48)).shape == (2, 64)


@KINDS
def test_a_step_is_counted_on_meta(settings: dict[str, Any], tmp_path: Path) -> None:
    config = Config()
    config.model = ModelConfig(
        backbone=write_small_video(tmp_path, **settings), pretrained="none", head=Head.linear
    )
    config.data.num_frames, config.data.image_size = 4, 32
    fused = count_step(config, CLASSES, fused_attention=True)
    plain = count_step(config, CLASSES, fused_attention=False)
    assert fused.flops(2) == plain.flops(2) > 0
    assert fused.live(2).max() < plain.live(2).max(), "a fused kernel keeps no scores"
    model = build_model(config.model, CLASSES, 4, 32)
    assert fused.trained == sum(p.numel() for p in model.parameters())


def test_known_sizes_have_their_numbers_of_parameters() -> None:
    """By hand, without biases and norms: 12 D^2 a block, 20 D^2 with three attentions."""
    wanted = {
        "vit_small": 12 * 12 * 384**2,
        "vit_base": 12 * 12 * 768**2,
        "vit_large": 24 * 12 * 1024**2,
        "vit_huge": 32 * 12 * 1280**2,
        "mae_dfer": 16 * 20 * 512**2,
    }
    for name, blocks in wanted.items():
        with torch.device("meta"):
            image = load_backbone(f"videomae:{name}", "none", SIZES[name].image_size).image
        embedding = 3 * 2 * 16 * 16 * SIZES[name].hidden_size
        count = sum(p.numel() for p in image.parameters())
        assert count == pytest.approx(blocks + embedding, rel=5e-3), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "model_type is vit, not videomae"),
        ({"hidden_act": "relu"}, "hidden_act is relu, not gelu"),
        ({"num_attention_heads": 3}, "hidden_size 64 is no multiple"),
        ({"region_size": [1, 3, 4]}, "cannot be cut into regions"),
        ({"region_size": [1, 2]}, "does not describe a VideoMAE"),
        ({"region_size": [1, 2, 4], "pooled_tokens": "cls"}, "pooled_tokens is cls, not one of"),
        ({"image_size": [32, 32]}, "does not describe a VideoMAE"),
    ],
)
def test_other_configurations_are_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        describe_backbone(write_small_video(tmp_path, **config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "size", "frames", "message"),
    [
        ({}, 32, 5, "data.num_frames=5: .* reads 2 frames at a time: set a multiple of 2"),
        ({}, 30, 4, "data.image_size=30 is not a multiple"),
        (REGIONS, 32, 6, "a learned token for each region of a clip: set 4 and 32"),
        (REGIONS, 48, 4, "a learned token for each region of a clip: set 4 and 32"),
    ],
)
def test_clips_that_do_not_fit_are_refused(
    settings: dict[str, Any], size: int, frames: int, message: str, tmp_path: Path
) -> None:
    name = write_small_video(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        load_backbone(name, "none", size, num_frames=frames)


def test_unknown_names_and_weights_are_refused(tmp_path: Path) -> None:
    name = write_small_video(tmp_path)
    (tmp_path / "bad.safetensors").write_text("no weights")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    for backbone, pretrained, message in (
        ("videomae:vit_bas", "none", "no backbone 'videomae:vit_bas' on this machine: give"),
        ("videomae:MCG-NJU/none", "none", "`dfer fetch-weights videomae:MCG-NJU/none main`"),
        ("videomae:a:b/c//d", "none", "no backbone"),
        (name, "main", "there is no model.safetensors or pytorch_model.bin next to"),
        (name, "openai", "'openai' is no weights file of .*: set model.pretrained to main, a file"),
        ("videomae:vit_base", "main", "set model.pretrained to a file that `dfer convert video"),
        (name, str(tmp_path / "bad.safetensors"), "`dfer convert videomae` reads checkpoints"),
        (name, str(tmp_path / "other.safetensors"), "it has no patch_embed.weight"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_backbone(backbone, pretrained, 32)
        assert "\n" not in str(error.value)
    assert find_weights("videomae:vit_base", "none") is None


def test_fetching_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="give videomae: and a repository of the Hub"):
        fetch_weights("videomae:vit_base", "main")
    with pytest.raises(UserError, match="give videomae: and a repository of the Hub"):
        fetch_weights("videomae:MCG-NJU/videomae-base", "openai")
    with pytest.raises(UserError, match="videomae:MCG-NJU/videomae-base main cannot be down"):
        fetch_weights("videomae:MCG-NJU/videomae-base", "main")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.head=text"], "has no text tower, which model.head=text needs"),
        (
            ["model.image=adapters", "model.modalities=[parsing]"],
            "is a video tower, which sees frames alone",
        ),
    ],
)
def test_settings_that_a_video_tower_lacks_are_refused(overrides: list[str], message: str) -> None:
    base = ["model.backbone=videomae:vit_base", "model.head=linear"]
    with pytest.raises(UserError, match=message):
        load_config("demo", base + overrides)


def test_adapters_that_the_blocks_cannot_have_are_refused(tmp_path: Path) -> None:
    plain = write_small_video(tmp_path / "plain")
    with pytest.raises(UserError, match=r"model\.adapter_time=true needs"):
        build(plain, image=ImageTuning.adapters, adapter_time=True)
    with pytest.raises(UserError, match="blocks cannot have adapters"):
        build(write_small_video(tmp_path / "b", **REGIONS), image=ImageTuning.adapters)


def test_sizes_can_be_a_json_file(tmp_path: Path) -> None:
    write_small_video(tmp_path)
    file = (tmp_path / "config.json").rename(tmp_path / "sizes.json")
    assert describe_backbone(f"videomae:{file}").image_size == 32
    assert json.loads(file.read_text())["model_type"] == "videomae"
