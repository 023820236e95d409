from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfer_dist.checkpoints.portable import frozen_checksum
from dfer_dist.config.schema import ImageTuning, ModelConfig, TemporalKind, TextTuning
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.lora import LowRank
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError
from tests.helpers.paths import HELPERS

CLASSES = ["happiness", "sadness", "fear"]
ENGINE = HELPERS / "ranks" / "tuned_engine.py"
LINEAR = ("attn.in_proj_lora", "attn.out_proj.lora", "mlp.c_fc.lora", "mlp.c_proj.lora")


def tiny(**settings: object) -> DFERCLIP:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone="tiny", pretrained="none", **settings), CLASSES, 4, 64)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="module")
def plain() -> DFERCLIP:
    return tiny()


def changed(model: DFERCLIP, clips: torch.Tensor, steps: int = 1) -> set[str]:
    """Names of the parameters that so many steps of SGD over all groups changed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(
        [{"params": [p for _, p in group]} for group in param_groups(model).values()], lr=0.1
    )
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(clips), torch.arange(3)).backward()
        optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def names(model: DFERCLIP, *starts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


def factors(tower: str, *ends: str) -> set[str]:
    return {
        f"{tower}.transformer.resblocks.{i}.{linear}.{end}"
        for i in (0, 1)
        for linear in LINEAR
        for end in ends
    }


def perturb(model: DFERCLIP) -> None:
    """Give every B some values, so that the factors count."""
    torch.manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRank):
                module.up.normal_(std=0.05)


LAST = "image.transformer.resblocks.1.", "image.ln_post.", "image.proj"
NORMS = (
    "image.ln_pre.",
    "image.ln_post.",
    *(f"image.transformer.resblocks.{i}.ln_{j}." for i in (0, 1) for j in (1, 2)),
)


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({"image": ImageTuning.all}, ("image.",)),
        ({"image": ImageTuning.last, "image_blocks": 1}, LAST),
        ({"image": ImageTuning.last, "image_blocks": 2}, (*LAST, "image.transformer.resblocks.0.")),
        ({"image": ImageTuning.norms}, NORMS),
        ({"image": ImageTuning.none}, ()),
    ],
)
def test_step_changes_only_chosen_image_weights(
    clips: torch.Tensor, settings: dict[str, object], starts: tuple[str, ...]
) -> None:
    model = tiny(**settings)
    chosen = names(model, *starts) if starts else set()
    assert changed(model, clips) == chosen | names(model, "temporal.", "prompt.")
    groups = param_groups(model)
    assert list(groups) == ["temporal", "image", "prompt"] if starts else ["temporal", "prompt"]
    assert {name for name, _ in groups.get("image", [])} == chosen
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for g in groups.values() for n, _ in g
    }


@pytest.mark.parametrize(
    ("settings", "towers"),
    [
        ({"image": ImageTuning.lora}, ["image"]),
        ({"image": ImageTuning.none, "text_tower": TextTuning.lora}, ["text"]),
        ({"image": ImageTuning.lora, "text_tower": TextTuning.lora}, ["image", "text"]),
    ],
)
def test_lora_trains_its_factors_and_no_weight_of_the_tower(
    clips: torch.Tensor, settings: dict[str, object], towers: list[str]
) -> None:
    model = tiny(**settings)
    both = {name for tower in towers for name in factors(tower, "down", "up")}
    groups = param_groups(model)
    assert list(groups) == ["temporal", "prompt", "lora"]
    assert {name for name, _ in groups["lora"]} == both
    rest = names(model, "temporal.", "prompt.")
    assert changed(model, clips) == rest | {name for name in both if name.endswith("up")}, (
        "A has no gradient while B is zero"
    )
    assert changed(model, clips) == rest | both


def test_groups_keep_their_order_with_all_four_present(clips: torch.Tensor) -> None:
    model = tiny(text_tower=TextTuning.lora)
    assert list(param_groups(model)) == ["temporal", "image", "prompt", "lora"]
    assert changed(model, clips, 2) == names(model, "temporal.", "image.", "prompt.") | factors(
        "text", "down", "up"
    )


def test_mean_over_time_ignores_order_of_frames(clips: torch.Tensor) -> None:
    model = tiny(temporal=TemporalKind.mean)
    assert list(param_groups(model)) == ["image", "prompt"] and not names(model, "temporal")
    torch.testing.assert_close(model(clips.flip(1)), model(clips), rtol=0, atol=1e-4)
    with torch.no_grad():
        video = F.normalize(
            model.image(clips.flatten(0, 1) / 255).unflatten(0, (3, 4)).mean(1), dim=-1
        )
        torch.testing.assert_close(
            model(clips), video @ model.text_features().t() / 0.01, rtol=0, atol=1e-4
        )
    assert changed(model, clips) == names(model, "image.", "prompt.")


def test_lora_starts_from_exactly_the_given_model(plain: DFERCLIP, clips: torch.Tensor) -> None:
    model = tiny(image=ImageTuning.lora, text_tower=TextTuning.lora)
    theirs, ours = plain.state_dict(), model.state_dict()
    assert theirs.keys() <= ours.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert set(ours) - set(theirs) == factors("image", "down", "up") | factors("text", "down", "up")
    torch.testing.assert_close(
        model(clips), plain(clips), rtol=0, atol=1e-4
    )  # logits are cosines times 100
    perturb(model)
    assert (model(clips) - plain(clips)).abs().max() > 0.1


def test_low_rank_is_the_papers_formula_for_each_part() -> None:
    torch.manual_seed(0)
    layer, x = LowRank(10, 3 * 6, rank=2, alpha=5, parts=3), torch.randn(4, 7, 10)
    assert not layer(x).any()
    nn.init.normal_(layer.up)
    each = [
        5 / 2 * x @ a.t() @ b.t()
        for a, b in zip(layer.down.split(2), layer.up.split(6), strict=True)
    ]
    torch.testing.assert_close(layer(x), torch.cat(each, dim=-1))


def test_recomputing_activations_changes_no_gradient_of_lora(clips: torch.Tensor) -> None:
    grads = []
    for recompute in (False, True):
        model = tiny(image=ImageTuning.lora, checkpoint_image=recompute)
        perturb(model)
        calls: list[int] = []
        model.image.transformer.resblocks[0].mlp.c_fc.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        F.cross_entropy(model(clips), torch.arange(3)).backward()
        assert len(calls) == 1 + recompute
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() >= factors("image", "down", "up")
    for name, g in grads[0].items():
        assert g.any(), name
        torch.testing.assert_close(grads[1][name], g, rtol=1e-5, atol=1e-7)


def test_lora_in_bfloat16_is_close(clips: torch.Tensor) -> None:
    model = tiny(image=ImageTuning.lora, text_tower=TextTuning.lora, temporal=TemporalKind.mean)
    perturb(model)
    assert (
        model(clips) - copy.deepcopy(model).bfloat16()(clips)
    ).abs().max() < 2.0  # as for the plain model


def test_one_seed_one_frozen_model_whatever_is_trained(plain: DFERCLIP) -> None:
    """Frozen weights, and so their checksum in a checkpoint, follow from seed and settings."""
    models = [tiny(image=ImageTuning.lora, text_tower=TextTuning.lora) for _ in range(2)]
    trained = [{name: p for group in param_groups(m).values() for name, p in group} for m in models]
    first, again = (frozen_checksum(m, t) for m, t in zip(models, trained, strict=True))
    assert first == again
    with torch.no_grad():
        models[1].image.transformer.resblocks[0].attn.in_proj_weight[0, 0] += 1
    assert frozen_checksum(models[1], trained[1]) != first
    for other in (tiny(image=ImageTuning.none), models[0]):
        theirs = dict(other.named_parameters())
        assert all(torch.equal(p, theirs[name]) for name, p in plain.named_parameters())


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match=r"model\.image_blocks=3: tiny has 2 blocks"):
        tiny(image=ImageTuning.last, image_blocks=3)


def test_lora_fits_a_large_tower() -> None:
    with torch.device("meta"):
        cfg = ModelConfig(
            backbone="ViT-L-14-quickgelu",
            pretrained="none",
            image=ImageTuning.lora,
            text_tower=TextTuning.lora,
        )
        model = build_model(cfg, CLASSES, 2, 224)
        assert model(torch.zeros(1, 2, 3, 224, 224, dtype=torch.uint8)).shape == (1, 3)
    count = sum(p.numel() for _, p in param_groups(model)["lora"])
    # a block of width D: q, k, v and out have 2 r D each, the MLP's layers 5 r D each
    assert count == 8 * 18 * (24 * 1024 + 12 * 768)
