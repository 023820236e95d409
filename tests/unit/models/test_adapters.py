"""Adapters and both polarities of FineCLIPER, on a tiny backbone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer

from dfer_dist.config.checks import check_values
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import (
    ClassText,
    Config,
    ImageTuning,
    ModelConfig,
    TemporalKind,
    TextPolarity,
    TextTuning,
)
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.models.adapters import Adapter, FramePositions, adapter_names
from dfer_dist.models.build import build_model
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.models.flops import build_meta_model
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.models.tuning import param_groups, trained_line
from dfer_dist.training.losses import Objective
from dfer_dist.utils.errors import UserError
from tests.helpers.models.tiny_models import B16, CLASSES, FINE, FRAMES, perturb, tiny


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (3, FRAMES, 3, 64, 64),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )


@torch.no_grad()
@pytest.mark.parametrize("time", [False, True])
def test_training_starts_from_exactly_the_frozen_clip(clips: torch.Tensor, time: bool) -> None:
    """Zero-shot as open_clip computes it: mean over frames, both sentences of each class."""
    torch.manual_seed(0)
    clip = build_clip(TINY, 64).eval()
    pixels = (
        clips.flatten(0, 1) / 255 - torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]
    ) / torch.tensor(OPENAI_DATASET_STD)[:, None, None]
    video = F.normalize(clip.encode_image(pixels).unflatten(0, (3, FRAMES)).mean(1), dim=-1)
    texts = [f"a person with an expression of {no}{name}" for no in ("", "no ") for name in CLASSES]
    text = clip.encode_text(SimpleTokenizer()(texts), normalize=True)
    positive, negative = (100 * video @ text.t()).chunk(2, dim=1)
    model = tiny(adapter_time=time)
    assert any(isinstance(m, FramePositions) for m in model.modules()) == time
    for mode in (model.train(), model.eval()):
        outputs = mode.outputs(clips)
        torch.testing.assert_close(outputs.positive, positive, rtol=0, atol=1e-4)
        torch.testing.assert_close(outputs.negative, -negative, rtol=0, atol=1e-4)
        torch.testing.assert_close(mode(clips), (positive - negative) / 2, rtol=0, atol=1e-4)
    assert (perturb(model)(clips) - (positive - negative) / 2).abs().max() > 0.1


def test_only_adapters_are_trained_and_all_of_them(clips: torch.Tensor) -> None:
    model = tiny(adapter_time=True)
    (group,) = param_groups(model).items()
    assert group[0] == "adapters"
    names = {name for name, _ in group[1]}
    per_block = {"attn_adapter", "mlp_adapter"}
    assert {
        n.split(".")[-3] for n in names if n.startswith("image") and "adapter" in n
    } == per_block | {"time_adapter"}
    assert {n.split(".")[-5] for n in names if n.startswith("text")} == per_block
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective, optimizer = (
        Objective(Config(), [], torch.device("cpu")),
        torch.optim.SGD([p for _, p in group[1]], lr=0.1),
    )
    for step in range(2):
        optimizer.zero_grad()
        objective(
            model.outputs(clips), torch.arange(3), torch.ones(3, dtype=torch.bool)
        ).sum().backward()
        graded = {
            name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
        ups = {name for name in names if ".down." not in name}
        assert graded == (names if step else ups), "below a zero layer there is no gradient"
        optimizer.step()
    assert {
        name for name, p in model.named_parameters() if not torch.equal(p, before[name])
    } == names


def test_given_weights_keep_their_names_and_values() -> None:
    plain = tiny(image=ImageTuning.none, text_tower=TextTuning.frozen).state_dict()
    model = tiny(adapter_time=True)
    assert set(model.state_dict()) - set(plain) == adapter_names(model)
    assert all(torch.equal(model.state_dict()[name], w) for name, w in plain.items())


def test_a_block_by_hand(clips: torch.Tensor) -> None:
    """The formula in the module's docstring, with the frozen parts of a block called one by one."""
    model = perturb(tiny(adapter_time=True, adapter_scale=0.3))
    block = model.image.transformer.resblocks[1]
    x = torch.randn(2 * FRAMES, 5, 64)

    def attend(z: torch.Tensor) -> torch.Tensor:
        return block.attn(z, z, z, need_weights=False)[0]

    def adapter(a: Adapter, z: torch.Tensor) -> torch.Tensor:
        assert a.down.out_features == 16
        return F.gelu(z @ a.down.weight.t() + a.down.bias) @ a.up.weight.t() + a.up.bias

    y = x.clone()
    for clip in range(2):
        own = slice(clip * FRAMES, (clip + 1) * FRAMES)
        for token in range(5):
            y[own, token] += adapter(block.time_adapter, attend(block.ln_1(x[own, token])[None])[0])
    a = attend(block.ln_1(y))
    y = y + a + adapter(block.attn_adapter, a)
    m = block.ln_2(y)
    y = y + block.mlp(m) + 0.3 * adapter(block.mlp_adapter, m)
    torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_negative_logits_by_hand(clips: torch.Tensor) -> None:
    """A video feature along an axis, and texts at known angles to it."""
    model, width = tiny(temperature=0.1, negative_weight=0.5), 64
    model.temporal = torch.nn.Module()
    model.temporal.forward = lambda x: (
        F.one_hot(torch.zeros(len(x), dtype=torch.long), width).float() * 7
    )  # type: ignore[method-assign]
    cosines = torch.tensor(
        [0.6, 0.0, 0.8, -0.6, 1.0, 0.28]
    )  # positive texts of the three classes, then negative ones
    text = torch.zeros(6, width)
    text[:, 0], text[:, 1] = cosines, (1 - cosines**2).sqrt()
    outputs = model.outputs(clips[:1], text)
    assert outputs.positive[0].tolist() == pytest.approx([6.0, 0.0, 8.0])
    assert outputs.negative[0].tolist() == pytest.approx([6.0, -10.0, -2.8]), (
        "class 0 has the lowest cosine, and so the highest logit"
    )
    combined = [(6.0 + 3.0) / 1.5, (0.0 - 5.0) / 1.5, (8.0 - 1.4) / 1.5]
    assert model(clips[:1], text)[0].tolist() == pytest.approx(combined)
    model.negative_weight = 0.0
    assert model(clips[:1], text)[0].tolist() == pytest.approx([6.0, 0.0, 8.0])


def test_training_separates_both_polarities(
    clips: torch.Tensor,
) -> None:
    model, labels = tiny(temperature=0.07), torch.tensor([2, 0, 1])
    objective = Objective(Config(), [], torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for _, p in param_groups(model)["adapters"]], lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        objective(model.outputs(clips), labels, torch.ones(3, dtype=torch.bool)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        text = model.text_features()
        video = F.normalize(
            model.image(model._preprocess(clips.flatten(0, 1))).unflatten(0, (3, FRAMES)).mean(1),
            dim=-1,
        )
    positive, negative = (video @ text.t()).chunk(2, dim=1)
    assert positive.argmax(1).tolist() == negative.argmin(1).tolist() == labels.tolist()


@torch.no_grad()
def test_each_polarity_has_own_adapters() -> None:
    plain = tiny().text_features().chunk(2)
    for side, (changed, same) in {"positive": (0, 1), "negative": (1, 0)}.items():
        seen = perturb(tiny(), f"parts.{side}").text_features().chunk(2)
        assert (seen[changed] - plain[changed]).abs().max() > 1e-3
        torch.testing.assert_close(seen[same], plain[same], rtol=0, atol=1e-6)
    alone = tiny(text_polarity=TextPolarity.positive)
    assert alone.text_features().shape == (3, 64)
    outputs = alone.outputs(torch.zeros(1, FRAMES, 3, 64, 64))
    assert outputs.positive is not None and outputs.negative is None
    uneven = tiny(
        negative_sentences={
            "fear": ["calm.", "at ease."],
            "happiness": ["glum."],
            "sadness": ["glad."],
        }
    )
    perturb(uneven, "parts.negative")
    torch.testing.assert_close(uneven.text_features()[:3], plain[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_only_time_adapter_sees_order_of_frames(
    clips: torch.Tensor,
) -> None:
    shuffled = clips[:, [2, 0, 3, 1]]
    blind, seeing = perturb(tiny()), perturb(tiny(adapter_time=True))
    torch.testing.assert_close(blind(shuffled), blind(clips), rtol=0, atol=1e-4)
    assert (seeing(shuffled) - seeing(clips)).abs().max() > 0.05
    reversed_batch = seeing(clips.flip(0)).flip(0)
    torch.testing.assert_close(
        reversed_batch, seeing(clips), rtol=0, atol=1e-4
    )  # frames are mixed with those of their own clip only


def test_recomputing_activations_changes_no_gradient(clips: torch.Tensor) -> None:
    grads = []
    for recompute in (False, True):
        model = perturb(tiny(adapter_time=True, checkpoint_image=recompute))
        calls: list[int] = []
        model.image.transformer.resblocks[0].time_adapter.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        F.cross_entropy(model(clips), torch.arange(3)).backward()
        assert len(calls) == 1 + recompute
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() == adapter_names(model)
    for name, g in grads[0].items():
        assert g.any(), name
        torch.testing.assert_close(grads[1][name], g, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_close(clips: torch.Tensor) -> None:
    model = perturb(tiny(adapter_time=True))
    assert (
        model(clips) - copy.deepcopy(model).bfloat16()(clips)
    ).abs().max() < 2.0  # as for the plain model


def test_adapters_serve_dfer_clip_as_well(clips: torch.Tensor) -> None:
    """Learned prompts, a transformer over time and adapters; negative prompts of their own."""
    model = tiny(
        text_polarity=TextPolarity.positive, context_tokens=8, temporal=TemporalKind.transformer
    )
    assert list(param_groups(model)) == ["temporal", "prompt", "adapters"]
    F.cross_entropy(model(clips), torch.arange(3)).backward()
    assert all(p.grad is not None for group in param_groups(model).values() for _, p in group)
    both = tiny(context_tokens=8, text_tower=TextTuning.lora, image=ImageTuning.all)
    assert both.prompt.context is not None and both.prompt.context.shape[0] == 6
    assert list(param_groups(both)) == ["image", "prompt", "lora"]
    assert both(clips).shape == (3, 3)


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        ([], 13.42),
        (["model.text_polarity=positive"], 10.26),
        (["model.text_tower=frozen"], 7.10),
        (["model.image=none"], 6.32),
        (["model.adapter_time=true"], 16.99),
        (["model.adapter_ratio=0.125"], 6.73),
    ],
)
def test_tunable_parameters_on_vit_b_16(overrides: list[str], millions: float) -> None:
    """An adapter of width D and bottleneck D/4 has D^2/2 + 5/4 D parameters; the paper has 13 M."""
    config = load_config(B16, overrides)
    assert trained_line(build_meta_model(config, SEVEN)).startswith(f"trained: {millions:.2f} of ")
    image, text = (768**2 // 2 + 960), (512**2 // 2 + 640)
    if not overrides:
        assert trained_line(build_meta_model(config, SEVEN)).endswith(
            f"(adapters {12 * 2 * (image + 2 * text) / 1e6:.2f})"
        )


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [
        ("ViT-B-32-quickgelu", 224, 12),
        ("ViT-B-16-quickgelu", 224, 12),
        ("ViT-L-14-quickgelu", 224, 16),
        ("ViT-L-14-336-quickgelu", 336, 16),
        ("ViT-H-14-quickgelu", 224, 16),
        ("ViT-H-14-378-quickgelu", 378, 16),
        ("ViT-g-14", 224, 16),
        ("ViT-bigG-14-quickgelu", 224, 16),
        ("ViT-L-14", 224, 16),
    ],
)
def test_every_backbone_takes_adapters(name: str, size: int, heads: int) -> None:
    cfg = ModelConfig(backbone=name, pretrained="none", adapter_time=True, **FINE)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = build_model(cfg, CLASSES, 2, size)
    blocks = model.image.transformer.resblocks
    assert all(b.time_adapter is not None and b.attn.num_heads == heads for b in blocks)
    assert len(
        {
            name.split(".resblocks.")[1].split(".")[0]
            for name in adapter_names(model)
            if name.startswith("image")
        }
    ) == len(blocks)
    # All blocks of a tower have the same shapes: two of them show that a clip passes.
    for tower in (model.image.transformer, model.text.transformer):
        del tower.resblocks[2:]
    with torch.device("meta"):
        assert model(torch.zeros(1, 2, 3, size, size, dtype=torch.uint8)).shape == (1, 3)


def test_mistakes_are_named() -> None:
    cfg = ModelConfig(
        text_polarity=TextPolarity.both,
        text=ClassText.names,
        negative_sentences={"fear": ["calm."]},
    )
    with pytest.raises(UserError, match=r"model\.negative_sentences has nothing for class 'joy'"):
        polarity_texts(["fear", "joy"], cfg)
    for key, value in {
        "adapter_ratio": 0.0,
        "adapter_scale": -1.0,
        "negative_weight": -0.5,
        "context_tokens": -1,
    }.items():
        with pytest.raises(UserError, match=rf"model\.{key}"):
            check_values(Config(model=ModelConfig(**{key: value})))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model\.negative_sentences\.fear="):
        check_values(Config(model=ModelConfig(negative_sentences={"fear": [" "]})))
