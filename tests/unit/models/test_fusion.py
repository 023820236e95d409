"""Parsing maps and landmarks in the model: adapters of their own, fused features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.checks import check_values
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, ImageTuning, ModelConfig, TemporalKind
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.models.adapters import adapter_names
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.flops import build_meta_model
from dfer_dist.models.temporal import Fusion
from dfer_dist.models.tuning import param_groups, trained_line
from dfer_dist.planning.estimate import loader_bytes
from dfer_dist.planning.step_costs import count_step
from dfer_dist.training.losses import Objective
from dfer_dist.utils.errors import UserError
from tests.helpers.models.tiny_models import B16, FRAMES, perturb, tiny

BOTH = ["parsing", "landmarks"]


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Three clips: frames, then two modalities."""
    return torch.randint(
        0,
        256,
        (3, 3 * FRAMES, 3, 64, 64),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(4),
    )


def video(model: DFERCLIP, clips: torch.Tensor) -> torch.Tensor:
    return model.video_features(clips)


def test_weights_by_hand() -> None:
    features = F.normalize(torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 1.0]]]), dim=-1)
    learned = Fusion(3, None)
    assert learned.scores is not None and learned.weights().tolist() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        learned.scores.copy_(torch.tensor([math.log(2), 0.0, 0.0]))
    assert learned.weights().tolist() == pytest.approx([0.5, 0.25, 0.25])
    want = np.array([0.5 * 0.6 + 0.25, 0.5 * 0.8 + 0.25])
    np.testing.assert_allclose(learned(features).detach()[0], want / np.hypot(*want), rtol=1e-6)
    assert Fusion(3, 0.9).weights().tolist() == pytest.approx([0.9, 0.05, 0.05]) and not list(
        Fusion(3, 0.9).parameters()
    )
    assert Fusion(2, 0.1).weights().tolist() == pytest.approx([0.1, 0.9])


@torch.no_grad()
@pytest.mark.parametrize("time", [False, True])
def test_each_modality_starts_as_frozen_clip(pictures: torch.Tensor, time: bool) -> None:
    plain, model = tiny(adapter_time=time), tiny(modalities=BOTH, adapter_time=time)
    want = [video(plain, own) for own in pictures.chunk(3, 1)]
    torch.testing.assert_close(
        video(model, pictures), F.normalize(sum(want), dim=-1), rtol=0, atol=1e-5
    )
    for weight, level in ((1.0, 0), (0.0, None)):
        alone = want[0] if level == 0 else F.normalize(want[1] + want[2], dim=-1)
        torch.testing.assert_close(
            video(tiny(modalities=BOTH, video_weight=weight), pictures),
            alone,
            rtol=0,
            atol=1e-5,
        )


@torch.no_grad()
def test_each_modality_has_own_adapters(pictures: torch.Tensor) -> None:
    """What an adapter of one level does shows in that level's feature alone, along time too."""
    for i, name in enumerate(("video", *BOTH)):
        model = tiny(modalities=BOTH, adapter_time=True)
        features: list[torch.Tensor] = []
        assert model.fusion is not None
        model.fusion.register_forward_pre_hook(lambda _, args, kept=features: kept.append(args[0]))
        video(model, pictures)
        video(perturb(model, f"parts.{name}"), pictures)
        changed = [(a - b).abs().max().item() > 1e-3 for a, b in zip(*features, strict=True)]
        assert changed == [j == i for j in range(3)]


def test_only_adapters_and_fusion_weights_are_trained(pictures: torch.Tensor) -> None:
    model = tiny(modalities=BOTH, adapter_time=True)
    (group,) = param_groups(model).items()
    names = {name for name, _ in group[1]}
    assert group[0] == "adapters" and names == adapter_names(model) and "fusion.scores" in names
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name not in names}
    assert (
        set(tiny(image=ImageTuning.none, modalities=[]).state_dict()) - set(model.state_dict())
        == set()
    )
    perturb(model)
    objective, optimizer = (
        Objective(Config(), [], torch.device("cpu")),
        torch.optim.SGD([p for _, p in group[1]], lr=0.1),
    )
    objective(
        model.outputs(pictures), torch.arange(3), torch.ones(3, dtype=torch.bool)
    ).sum().backward()
    assert {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    } == names
    optimizer.step()
    assert all(
        torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen
    )
    assert model.fusion is not None and len(set(model.fusion.weights().tolist())) == 3
    assert (
        model.image.transformer.resblocks[0].attn_adapter.parts["parsing"].down.out_features == 6
    )  # a tenth of 64
    assert model.image.transformer.resblocks[0].attn_adapter.parts["video"].down.out_features == 16


def test_modalities_work_with_temporal_transformer(pictures: torch.Tensor) -> None:
    model = tiny(modalities=["landmarks"], temporal=TemporalKind.transformer, context_tokens=4)
    assert model(pictures[:, : 2 * FRAMES]).shape == (3, 3) and list(param_groups(model)) == [
        "temporal",
        "prompt",
        "adapters",
    ]
    with pytest.raises(ValueError, match="not a multiple of its 2 inputs"):
        model(pictures[:, : 2 * FRAMES - 1])


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        (["model.modalities=[parsing,landmarks]"], 19.07),
        (["model.modalities=[landmarks]"], 16.25),
        (["model.modalities=[parsing,landmarks]", "model.modality_ratio=0.25"], 27.62),
        (["model.modalities=[parsing,landmarks]", "model.modality_ratio=0.125"], 20.54),
    ],
)
def test_tunable_parameters_on_vit_b_16(overrides: list[str], millions: float) -> None:
    """The paper has 19 million with parsing maps and landmarks, 13 million without."""
    assert trained_line(build_meta_model(load_config(B16, overrides), SEVEN)).startswith(
        f"trained: {millions:.2f} of "
    )


def test_plan_counts_images_of_modalities() -> None:
    overrides = ["data.image_size=32", "data.num_frames=2", "model.image=adapters"]
    plain, modalities = (
        load_config("demo", [*overrides, *more])
        for more in ([], ["model.modalities=[parsing,landmarks]"])
    )
    assert loader_bytes(modalities, 4) == 3 * loader_bytes(plain, 4)
    tower = [
        count_step(config, SEVEN, fused_attention=False).flops.clip
        for config in (plain, modalities)
    ]
    assert 2.5 < tower[1] / tower[0] < 3.2


def test_mistakes_are_named() -> None:
    adapters = {"image": ImageTuning.adapters}
    for settings, message in (
        ({"modalities": ["parsing"]}, "need adapters: set model.image=adapters"),
        (
            {**adapters, "modalities": ["depth"]},
            r"model\.modalities=\['depth'\]: give parsing and landmarks once",
        ),
        ({**adapters, "modalities": ["parsing", "parsing"]}, "once at most"),
        ({**adapters, "video_weight": 0.5}, "needs model.modalities"),
        (
            {**adapters, "modalities": ["parsing"], "video_weight": 1.5},
            "must be at least 0 and at most 1",
        ),
        ({**adapters, "modality_ratio": 0.0}, r"model\.modality_ratio"),
    ):
        with pytest.raises(UserError, match=message):
            check_values(Config(model=ModelConfig(**settings)))  # type: ignore[arg-type]
    check_values(
        load_config(
            "demo",
            ["model.image=adapters", "model.modalities=[landmarks]", "model.video_weight=0.3"],
        )
    )
