"""Stochastic depth of image towers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from dfer_dist.config.schema import ImageTuning, TemporalKind, TextTuning
from dfer_dist.models.attention import use_explicit_attention
from dfer_dist.models.cpu_kernels import LastBlock
from dfer_dist.models.layers import blocks_of
from dfer_dist.models.towers.drop_path import DropPath, add_drop_path
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.models.towers.video_vit import RegionViT, VideoSizes, VideoViT
from tests.helpers.models.tiny_models import tiny

CPU = torch.device("cpu")
KEYS = ["a", "b", "c"]


class PlainBlock(nn.Module):
    """A pre-norm block with the factors [2, N, 1, 1] of its branches."""

    def __init__(self, block: nn.Module, scales: Tensor) -> None:
        super().__init__()
        self.block, self.scales = block, scales

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        block, (first, second) = self.block, self.scales
        if hasattr(block, "ln_1"):
            x = x + first * block.attention(block.ln_1(x))
            return x + second * block.mlp(block.ln_2(x))
        x = x + first * block.attn(block.norm1(x))
        return x + second * block.mlp(block.norm2(x))


def open_clip_tower() -> nn.Module:
    return build_clip(TINY, 64).visual


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"img_size": 64, "embed_dim": 24, "num_heads": 2, "num_classes": 8}
        self.trunk = timm.create_model("vit_tiny_patch16_224", depth=2, **sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)


class VideoTower(nn.Module):
    def __init__(self, region_size: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        sizes = VideoSizes(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=64,
            num_frames=2,
            region_size=region_size,
        )
        self.trunk = RegionViT(sizes) if region_size else VideoViT(sizes, 2, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x.unflatten(0, (-1, 2)))


@pytest.mark.parametrize("make", [open_clip_tower, Trunk, VideoTower])
def test_branches_are_those_of_a_plain_block(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    tower = make().train()
    pixels = torch.rand(2 * len(KEYS), 3, 64, 64)
    plain, without = copy.deepcopy(tower), tower(pixels)
    drop_path = add_drop_path(tower, 0.6, inputs=1)
    assert torch.equal(tower(pixels), without), "nothing is dropped before branches are sampled"
    drop_path.sample(KEYS, seed=0, epoch=0, device=CPU)
    assert drop_path.scales is not None and {0.0, 1.0} < set(drop_path.scales.unique().tolist())
    rows = 1 if make is VideoTower else 2
    scales = drop_path.scales.repeat_interleave(rows, 1)[:, :, None, None]
    blocks = blocks_of(plain)
    path = next(name for name, m in plain.named_modules() if list(m.children()) == blocks)
    for i, block in enumerate(blocks):
        plain.get_submodule(path)[i] = PlainBlock(block, scales[2 * i : 2 * i + 2])
    torch.testing.assert_close(tower(pixels), plain(pixels))
    assert not torch.allclose(tower(pixels), without)
    tower.eval()
    assert torch.equal(tower(pixels), without), "a test drops nothing"


def test_rates_grow_linearly_and_the_mean_stays() -> None:
    drop_path = DropPath(0.5, layers=3, inputs=1)
    assert drop_path.rates.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5]
    drop_path.sample([str(i) for i in range(4000)], seed=0, epoch=0, device=CPU)
    scales = drop_path.scales
    assert scales is not None and scales.shape == (6, 4000)
    np.testing.assert_allclose((scales == 0).float().mean(1), drop_path.rates, atol=0.03)
    np.testing.assert_allclose(scales.mean(1), 1, atol=0.06)
    assert (scales[4] != scales[5]).any(), "branches of a block are dropped on their own"


def test_branches_depend_on_seed_epoch_and_key_alone() -> None:
    drop_path, drawn = DropPath(0.5, layers=8, inputs=1), {}
    for seed, epoch, keys in [(0, 0, "abcd"), (0, 0, "dc"), (0, 1, "abcd"), (1, 0, "abcd")]:
        drop_path.sample(list(keys), seed, epoch, CPU)
        assert drop_path.scales is not None
        drawn[seed, epoch, keys] = drop_path.scales
    first = drawn[0, 0, "abcd"]
    assert torch.equal(first[:, [3, 2]], drawn[0, 0, "dc"])
    assert not torch.equal(first, drawn[0, 1, "abcd"])
    assert not torch.equal(first, drawn[1, 0, "abcd"])


def test_all_frames_and_modalities_of_a_clip_are_alike() -> None:
    drop_path = DropPath(0.5, layers=1, inputs=2)
    drop_path.scales = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    out = drop_path.scale(0, nn.Identity(), (), torch.ones(2 * 2 * 3, 5, 4))
    # two modalities of two clips of three frames
    assert out[:, 0, 0].tolist() == [0, 0, 0, 2, 2, 2] * 2


def model_of(rate: float, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    given = {"image": ImageTuning.all, "text_tower": TextTuning.frozen} | settings
    return tiny(temporal=TemporalKind.mean, drop_path=rate, **given).train()


def test_recomputed_activations_have_the_same_gradients() -> None:
    frames = torch.randint(0, 256, (3, 4, 3, 64, 64), dtype=torch.uint8)
    gradients = []
    for recompute in (False, True):
        model = model_of(0.9, checkpoint_image=recompute)
        model.drop_path.sample(KEYS, 0, 0, CPU)
        model(frames).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_model_without_drop_path_has_no_hook() -> None:
    image = model_of(0.0).image
    assert not any(m._forward_hooks for m in image.modules())
    assert sum(len(m._forward_hooks) for m in model_of(0.1).image.modules()) == 4


def test_adapters_are_dropped_and_the_given_branches_are_not() -> None:
    """As in AIM: x + drop(A3(…)), x + a + A1(a), x + MLP(m) + drop(scale A2(m))."""
    model = model_of(0.5, image=ImageTuning.adapters, adapter_time=True)
    for adapter in (m for m in model.modules() if type(m).__name__ == "Adapter"):
        nn.init.normal_(adapter.up.weight)
        nn.init.normal_(adapter.up.bias)
    block, frames = blocks_of(model.image)[1], 4
    x = torch.rand(2 * frames, 5, 64)
    model.drop_path.scales = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0], [2.0, 0.0]])
    time, mlp = (s.repeat_interleave(frames).view(-1, 1, 1) for s in model.drop_path.scales[2:])
    with torch.no_grad():
        seen = block(x)
        model.drop_path.scales = None
        normed = block.ln_1(x).unflatten(0, (2, frames)).transpose(1, 2).flatten(0, 1)
        along = block.time_adapter(block.attn(normed, normed, normed)[0])
        y = x + time * along.unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 1)
        normed = block.ln_1(y)
        attended = block.attn(normed, normed, normed)[0]
        y = y + attended + block.attn_adapter(attended)
        normed = block.ln_2(y)
        y = y + block.mlp(normed) + mlp * block.scale * block.mlp_adapter(normed)
    torch.testing.assert_close(seen, y)


def test_branches_of_a_block_on_regions() -> None:
    """Its three attentions and its MLP are dropped one by one, for all regions of a clip."""
    torch.manual_seed(0)
    tower = VideoTower(region_size=(1, 2, 4)).train()
    block = tower.trunk.blocks[1]
    drop_path = add_drop_path(tower, 0.6, inputs=1)
    drop_path.sample(KEYS, seed=0, epoch=0, device=CPU)
    assert drop_path.scales is not None and drop_path.scales.shape == (8, 3)
    assert drop_path.rates.tolist() == [0] * 4 + [0.6] * 4
    x = torch.rand(3, 2, 9, 24)
    own, scales = block(x), drop_path.scales
    drop_path.scales = None
    local, among, exchange, mlp = scales[4:].unsqueeze(-1).unsqueeze(-1)
    x = x + local[..., None] * block.local_attn(block.local_norm(x).flatten(0, 1)).view_as(x)
    regions, patches = x[:, :, 0], x[:, :, 1:].flatten(1, 2)
    regions = regions + among * block.global_attn(block.global_norm(regions))
    context = block.region_norm(regions)
    patches = patches + exchange * block.exchange_attn(block.patch_norm(patches), context)
    x = torch.cat([regions[:, :, None], patches.unflatten(1, (2, -1))], 2)
    torch.testing.assert_close(own, x + mlp[..., None] * block.mlp(block.norm2(x)))


def test_last_block_of_a_wide_tower_drops_its_branches() -> None:
    torch.manual_seed(0)
    tower = open_clip_tower()
    use_explicit_attention(tower.transformer)
    blocks = tower.transformer.resblocks
    blocks[-1] = LastBlock(blocks[-1])
    tower.train()
    drop_path = add_drop_path(tower, 0.5, inputs=1)
    drop_path.scales = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    x = torch.rand(2, 5, 64)
    y = blocks[-1](x)
    assert torch.equal(y[0], x[0, :1]) and not torch.equal(y[1], x[1, :1])


def test_unknown_blocks_are_refused() -> None:
    tower = nn.Module()
    tower.trunk = nn.Module()
    tower.trunk.blocks = nn.ModuleList([nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="Linear has none of the branches"):
        add_drop_path(tower, 0.1, 1)
