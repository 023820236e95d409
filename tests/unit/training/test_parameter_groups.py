"""Parameter groups by learning rate, layer and weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfer_dist.config.schema import ImageTuning, OptimConfig, Optimizer, TemporalKind, TextTuning
from dfer_dist.models.dferclip import OutputsModule
from dfer_dist.models.tuning import param_groups
from dfer_dist.training.engine import _optimizer
from dfer_dist.training.parameter_groups import optimizer_groups
from tests.helpers.models.tiny_models import tiny

BLOCK = "image.transformer.resblocks"


def groups_of(optim: OptimConfig) -> list[dict[str, object]]:
    """Groups of a tiny model of which everything but the text tower is trained."""
    model = tiny(
        image=ImageTuning.all,
        text_tower=TextTuning.frozen,
        temporal=TemporalKind.transformer,
        context_tokens=2,
    )
    groups = optimizer_groups(OutputsModule(model), param_groups(model), optim)
    names = {id(p): name for name, p in model.named_parameters()}
    return [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]


def settings_of(groups: list[dict[str, object]]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    return {
        name: (group["lr"], group["weight_decay"]) for group in groups for name in group["params"]
    }


def test_default_has_one_group_for_each_name() -> None:
    groups = groups_of(OptimConfig())
    assert [(g["name"], g["lr"], g["lr_scale"], g["weight_decay"]) for g in groups] == [
        ("temporal", 1e-2, 1.0, 1e-4),
        ("image", 1e-5, 1.0, 1e-4),
        ("prompt", 1e-3, 1.0, 1e-4),
    ]


def test_layer_decay_is_that_of_mae() -> None:
    groups = groups_of(OptimConfig(layer_decay=0.5))
    rates = {name: rate for name, (rate, _) in settings_of(groups).items()}
    # MAE's lrd.py: num_layers is the number of blocks + 1.
    num_layers, scales = 3, [0.5**3, 0.5**2, 0.5, 1.0]
    assert scales == [0.5 ** (num_layers - i) for i in range(num_layers + 1)]
    for name, layer in {
        "image.conv1.weight": 0,
        "image.positional_embedding": 0,
        f"{BLOCK}.0.attn.in_proj_weight": 1,
        f"{BLOCK}.1.mlp.c_proj.bias": 2,
        "image.ln_post.weight": 3,
        "image.proj": 3,
    }.items():
        assert rates[name] == 1e-5 * scales[layer], name
    assert {rates[n] for n in rates if n.startswith("temporal.")} == {1e-2}
    assert rates["prompt.context"] == 1e-3
    assert [(g["name"], g["lr_scale"]) for g in groups].count(("image", 0.25)) == 1


def test_norms_biases_and_positions_are_not_decayed() -> None:
    decays = {n: d for n, (_, d) in settings_of(groups_of(OptimConfig(decay_all=False))).items()}
    decayed = {
        "image.conv1.weight",
        "image.proj",
        "prompt.context",
        *(f"temporal.blocks.0.{n}.weight" for n in ("qkv", "out", "mlp.0", "mlp.2")),
        *(f"{BLOCK}.{i}.attn.in_proj_weight" for i in (0, 1)),
        *(f"{BLOCK}.{i}.attn.out_proj.weight" for i in (0, 1)),
        *(f"{BLOCK}.{i}.mlp.{n}.weight" for i in (0, 1) for n in ("c_fc", "c_proj")),
    }
    assert {name for name, decay in decays.items() if decay} == decayed
    assert decays["temporal.cls"] == decays["temporal.pos"] == 0
    assert set(decays.values()) == {0.0, 1e-4}


def test_every_parameter_is_in_one_group() -> None:
    optim = OptimConfig(layer_decay=0.7, decay_all=False)
    names = [name for group in groups_of(optim) for name in group["params"]]
    assert sorted(names) == sorted(settings_of(groups_of(OptimConfig())))


@pytest.mark.parametrize("betas", [[0.9, 0.999], [0.8, 0.95]])
def test_adamw_has_the_betas(betas: list[float]) -> None:
    weight = nn.Parameter(torch.zeros(2))
    group = {"params": [weight], "lr": 1.0, "weight_decay": 0.0, "name": "image"}
    optimizer = _optimizer([group], OptimConfig(name=Optimizer.adamw, betas=betas))
    weight.grad = torch.ones(2)
    optimizer.step()
    state = optimizer.state[weight]
    assert torch.allclose(state["exp_avg"], torch.tensor(1 - betas[0]))
    assert torch.allclose(state["exp_avg_sq"], torch.tensor(1 - betas[1]))
