"""Weights of frames and heat maps against definitions worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dfer_dist.config.schema import (
    ClassText,
    ImageTuning,
    TemporalKind,
    TemporalPool,
    TextPolarity,
    TextTuning,
)
from dfer_dist.evaluation.explain import explain_clip
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.towers.image import tower_parts
from tests.helpers.models.tiny_models import FRAMES, tiny

DFER_CLIP = {
    "text": ClassText.names,
    "text_polarity": TextPolarity.positive,
    "context_tokens": 2,
    "image": ImageTuning.all,
    "text_tower": TextTuning.frozen,
    "temporal": TemporalKind.transformer,
    "temporal_layers": 2,
}


def model(**settings: object) -> DFERCLIP:
    return tiny(**{**DFER_CLIP, **settings}).eval()


def frames(inputs: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(256, (inputs * FRAMES, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize("pool", list(TemporalPool))
def test_weights_are_the_rollout_of_the_attention(pool: TemporalPool) -> None:
    """The attention matrix is what attention makes of the identity as its values."""
    net = model(temporal_pool=pool)
    found = explain_clip(net, frames())
    rollout, tokens = torch.eye(1 + FRAMES), None
    recorded: list[Tensor] = []
    for block in net.temporal.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda _, args: recorded.append(args[0]))
    with torch.no_grad():
        net(frames()[None])
        for block, tokens in zip(net.temporal.blocks, recorded, strict=True):  # type: ignore
            q, k, _ = rearrange(
                block.qkv(block.norm1(tokens)), "b n (k h d) -> k b h n d", k=3, h=block.heads
            )
            identity = torch.eye(1 + FRAMES).expand(1, block.heads, -1, -1)
            attention = F.scaled_dot_product_attention(q, k, identity)[0].mean(0)
            rollout = (attention / 2 + torch.eye(1 + FRAMES) / 2) @ rollout
    row = rollout[0] if pool is not TemporalPool.mean else rollout[1:].mean(0)
    np.testing.assert_allclose(found.weights, row[1:] / row[1:].sum(), rtol=1e-5)
    assert np.ptp(found.weights) > 1e-4


def test_heat_is_the_effect_of_making_a_patch_larger() -> None:
    """By finite differences: the tokens of one patch are scaled."""
    net = model(temporal=TemporalKind.mean)
    found = explain_clip(net, frames())
    norm = tower_parts(net.image).blocks[-1].ln_1

    def logit(frame: int, patch: int, scale: float) -> float:
        def scale_patch(_: object, args: object, tokens: Tensor) -> Tensor:
            tokens = tokens.clone()
            tokens[frame, 1 + patch] *= scale
            return tokens

        hook = norm.register_forward_hook(scale_patch)
        with torch.no_grad():
            value = float(net(frames()[None])[0, found.predicted])
        hook.remove()
        return value

    side = found.heat.shape[1]
    effects = np.array(
        [[logit(t, p, 1.2) - logit(t, p, 0.8) for p in range(side**2)] for t in range(FRAMES)]
    ).clip(0)
    expected = (effects / effects.max()).reshape(found.heat.shape)
    np.testing.assert_allclose(found.heat, expected, atol=0.01)
    assert found.heat.max() == 1 and (found.heat == 0).any()


def test_explained_class_is_the_predicted_one_and_nothing_is_left_behind() -> None:
    net = model()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    with torch.no_grad():
        logits = net(frames()[None])
    assert explain_clip(net, frames()).predicted == int(logits.argmax())
    with torch.no_grad():
        assert torch.equal(net(frames()[None]), logits)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == trained
    assert all(p.grad is None for p in net.parameters())


def test_given_class_is_explained_in_place_of_the_most_probable_one() -> None:
    net = model(temporal=TemporalKind.mean)
    best = explain_clip(net, frames())
    other = explain_clip(net, frames(), label=(best.predicted + 1) % 3)
    assert other.predicted == (best.predicted + 1) % 3
    assert not np.allclose(other.heat, best.heat)


def test_frames_weigh_the_same_without_a_transformer_and_modalities_have_no_heat() -> None:
    net = model(temporal=TemporalKind.mean, modalities=["landmarks"], image=ImageTuning.adapters)
    found = explain_clip(net, frames(inputs=2))
    assert found.weights.tolist() == [1 / FRAMES] * FRAMES
    assert len(found.heat) == FRAMES
