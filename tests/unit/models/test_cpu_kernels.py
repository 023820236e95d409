"""Faster parts give what open_clip's give, and their gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from dfer_dist.bench.matrix_products import MatrixProducts
from dfer_dist.config.schema import ModelConfig
from dfer_dist.models.adapters import adapt_image
from dfer_dist.models.backbone import load_backbone
from dfer_dist.models.cpu_kernels import (
    MIN_WIDTH,
    MLP,
    FusedQuickGELU,
    LastBlock,
    Linear,
    PatchEmbedding,
    has_fast_linear,
    linear,
    transpose,
)
from dfer_dist.models.lora import LoRALinear, add_lora
from dfer_dist.models.towers.image import tower_parts
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from tests.helpers.models.kernels import assert_equal_layers, replace_layers

BF16 = torch.bfloat16


def rounded(
    own: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    x: Tensor,
    *weights: Tensor,
    tolerance: float = 0.01,
) -> None:
    """Assert that ``own`` in bf16 is ``theirs`` in float32; 0.4 % is one rounding."""
    halves = [w.to(BF16) for w in (x, *weights)]
    seen = []
    for work, kind in ((own, BF16), (theirs, torch.float32)):
        leaves = [w.detach().to(kind).requires_grad_() for w in halves]
        out = work(*leaves)
        g = torch.linspace(-1, 1, out.numel()).to(BF16).reshape(out.shape)
        seen.append([out, *torch.autograd.grad(out, leaves, g.to(kind))])
    for a, b in zip(*seen, strict=True):
        assert a.shape == b.shape and (a.float() - b).norm() <= tolerance * b.norm()


def test_patches_as_a_product_are_the_convolution() -> None:
    for bias in (False, True):
        conv = nn.Conv2d(3, 24, 8, stride=8, bias=bias)
        own = PatchEmbedding(conv)
        assert dict(own.named_parameters()) == dict(conv.named_parameters())
        weights = tuple(conv.parameters())
        assert_equal_layers(own, conv, torch.randn(2, 3, 32, 51), weights=weights)


def test_quick_gelu_by_silu() -> None:
    assert_equal_layers(FusedQuickGELU(), QuickGELU(), 4 * torch.randn(5, 7, 11))


def test_both_towers_have_them() -> None:
    backbone = load_backbone("tiny", "none", 64)
    for tower in (backbone.image.transformer, backbone.text.transformer):
        assert not any(isinstance(m, (QuickGELU, nn.MultiheadAttention)) for m in tower.modules())
    assert isinstance(backbone.image.conv1, PatchEmbedding)


WIDE_TOWER = {
    **TINY,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "width": MIN_WIDTH,
        "layers": 2,
        "head_width": 64,
    },
}


def wide_clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    return build_clip(WIDE_TOWER, 32)


@pytest.mark.parametrize("train", ["all", "lora", "adapters", "along time"])
def test_last_block_equals_block_on_all_tokens(train: str) -> None:
    """As the same tower whose last block passes every token through all of it."""
    seen, frames = [], torch.randn(6, 3, 32, 32)
    for whole in (False, True):
        clip = wide_clip()
        names = list(clip.state_dict())
        replace_layers(clip)
        assert list(clip.state_dict()) == names
        blocks = clip.visual.transformer.resblocks
        assert isinstance(blocks[-1], LastBlock) and not isinstance(blocks[0], LastBlock)
        if whole:
            blocks[-1].num_queries = None
        if train == "lora":
            add_lora(blocks, 2, 2.0)
        elif train != "all":
            adapt_image(
                tower_parts(clip.visual), ModelConfig(adapter_time=train == "along time"), 3
            )
        torch.manual_seed(1)
        for p in clip.visual.parameters():  # adapters and LoRA's factors start with zeros
            p.data += 0.02 * torch.randn_like(p)
        after: list[Tensor] = []
        blocks[-1].register_forward_hook(lambda *call, after=after: after.append(call[2]))
        out = clip.visual(frames)
        g = torch.linspace(-1, 1, out.numel()).view(out.shape)
        seen.append([out, *torch.autograd.grad(out, tuple(clip.visual.parameters()), g)])
        assert after[0].shape == (6, 5 if whole else 1, MIN_WIDTH)
    for own, wanted in zip(*seen, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_wide_tower_is_open_clips() -> None:
    clips = [wide_clip(), wide_clip()]
    replace_layers(clips[0])
    frames = torch.randn(4, 3, 32, 32)
    assert_equal_layers(clips[0].visual, clips[1].visual, frames)
    assert isinstance(clips[0].visual.transformer.resblocks[-1], LastBlock)


def test_who_reads_every_token_gets_it() -> None:
    clip = wide_clip()
    clip.visual.pool_type = "avg"
    replace_layers(clip)
    assert not isinstance(clip.visual.transformer.resblocks[-1], LastBlock)


@pytest.mark.parametrize("shape", [(7, MIN_WIDTH), (2, 5, MIN_WIDTH), (3, 50, 2 * MIN_WIDTH)])
@pytest.mark.parametrize("outputs", [MIN_WIDTH // 8, MIN_WIDTH, 6 * MIN_WIDTH])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.7, 1.0), (1.0, 1.7), (0.7, 1.7)])
def test_layers_in_bf16(shape: tuple[int, ...], outputs: int, factors: tuple[float, float]) -> None:
    before, after = factors
    x, weight, bias = torch.randn(shape), torch.randn(outputs, shape[-1]) / 16, torch.randn(outputs)
    assert has_fast_linear(x.to(BF16)) and not has_fast_linear(x)
    rounded(
        lambda x, w, b: linear(x, w, b, *factors),
        lambda x, w, b: after * (before * F.linear(x, w) + b),
        x,
        weight,
        bias,
    )


def test_layers_in_float32_and_narrow_ones_are_torchs() -> None:
    for kind, inputs in ((torch.float32, MIN_WIDTH), (BF16, MIN_WIDTH - 1)):
        x, weight, bias = (
            torch.randn(shape).to(kind) for shape in ((5, inputs), (9, inputs), (9,))
        )
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(linear(x, weight, bias, 0.5, 2.0), 2 * F.linear(0.5 * x, weight, bias))


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_a_layer_that_is_frozen_in_part(trained: str) -> None:
    x, weight, bias = (
        torch.randn(shape).to(BF16) for shape in ((5, MIN_WIDTH), (9, MIN_WIDTH), (9,))
    )
    own = {"x": x, "weight": weight, "bias": bias}
    leaf = own[trained].requires_grad_()
    linear(**own).sum().backward()
    wanted = {"x": weight.sum(0), "weight": x.sum(0), "bias": torch.tensor(5.0, dtype=BF16)}[
        trained
    ]
    torch.testing.assert_close(leaf.grad, wanted.expand_as(leaf), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("trained", [True, False])
def test_a_frozen_layer_does_not_keep_its_input(trained: bool) -> None:
    """Nor does torch's own: with adapters, that is most of what there is to keep."""
    base = nn.Linear(MIN_WIDTH, 9, dtype=BF16).requires_grad_(trained)
    x, kept = torch.randn(5, MIN_WIDTH, dtype=BF16, requires_grad=True), list[tuple[int, ...]]()

    def note(t: Tensor) -> Tensor:
        kept.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = Linear(base)(x)
    assert (tuple(x.shape) in kept) == trained
    out.sum().backward()
    assert x.grad is not None and (base.weight.grad is not None) == trained


def test_a_layer_without_a_bias() -> None:
    rounded(
        lambda x, w: linear(x, w, None, 0.7),
        lambda x, w: 0.7 * F.linear(x, w),
        torch.randn(9, MIN_WIDTH),
        torch.randn(5, MIN_WIDTH),
    )


def test_a_layer_takes_over_its_weights() -> None:
    base = nn.Linear(MIN_WIDTH, 8)
    own = Linear(base)
    assert (
        own.weight is base.weight
        and own.bias is base.bias
        and list(own.state_dict()) == ["weight", "bias"]
    )


@pytest.mark.parametrize("rows", [1, 127, 300])
def test_transposing(rows: int) -> None:
    x = torch.randn(rows, 11)
    assert torch.equal(transpose(x, x.new_empty(11, rows)), x.t())


def blocks_mlp(width: int) -> nn.Sequential:
    parts = {
        "c_fc": nn.Linear(width, 4 * width),
        "gelu": QuickGELU(),
        "c_proj": nn.Linear(4 * width, width),
    }
    return nn.Sequential(OrderedDict(parts))


def test_a_blocks_mlp_in_bf16() -> None:
    base = blocks_mlp(MIN_WIDTH)
    names = [name for name, _ in base.named_parameters()]
    own = MLP(base)
    assert [name for name, _ in own.named_parameters()] == names

    def of(module: nn.Module) -> Callable[..., Tensor]:
        return lambda x, *weights: torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x,)
        )

    rounded(of(own), of(base), torch.randn(3, 7, MIN_WIDTH), *base.parameters(), tolerance=0.02)


@pytest.mark.parametrize("rows", [4 * MIN_WIDTH - 1, 4 * MIN_WIDTH])
def test_a_blocks_mlp_without_a_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From as many rows as a layer has outputs on, SiLU is part of the product."""
    base = blocks_mlp(MIN_WIDTH).to(BF16)
    x, calls, silu = torch.randn(rows, MIN_WIDTH, dtype=BF16), [], F.silu
    monkeypatch.setattr(F, "silu", lambda x: calls.append(x) or silu(x))
    own = MLP(base)
    with torch.no_grad():
        seen = own(x).float()
    is_fused = rows == 4 * MIN_WIDTH and has_fast_linear(x)
    assert len(calls) == (not is_fused)
    expected = base.float()(x.float())
    assert (seen - expected).norm() <= 0.005 * expected.norm()


def test_a_blocks_mlp_in_float32_and_with_lora() -> None:
    base = blocks_mlp(MIN_WIDTH)
    assert_equal_layers(
        MLP(base), base, torch.randn(3, MIN_WIDTH), weights=tuple(base.parameters())
    )
    own = MLP(base)
    own.c_fc = LoRALinear(own.c_fc, rank=2, alpha=4.0)
    own.to(BF16)
    x = torch.randn(3, MIN_WIDTH, dtype=BF16)
    torch.testing.assert_close(own(x).float(), base.float()(x.float()), rtol=0.05, atol=0.02)


def test_products_are_taken_down_as_those_of_torchs_layer() -> None:
    """The lower bound counts what torch's own passes multiply."""
    x, weight, bias = (
        torch.randn(shape).to(BF16).requires_grad_()
        for shape in ((40, MIN_WIDTH), (4 * MIN_WIDTH, MIN_WIDTH), (4 * MIN_WIDTH,))
    )
    seen = []
    for layer in (linear, F.linear):
        with MatrixProducts() as products:
            layer(x, weight, bias).square().sum().backward()
        seen.append(sorted((p.left[0], p.right[0]) for p in products.counts.elements()))
    assert seen[0] == seen[1] and len(seen[0]) == 3


def test_private_functions_of_torch_have_known_signatures() -> None:
    schemas = [
        torch.ops.mkldnn._linear_pointwise.default,
        torch.ops.aten._softmax_backward_data.default,
        torch.ops.aten.silu_backward.grad_input,
    ]
    assert [str(op._schema) for op in schemas] == [
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
        "str? algorithm) -> Tensor Y",
        "aten::_softmax_backward_data(Tensor grad_output, Tensor output, int dim, "
        "ScalarType input_dtype) -> Tensor",
        "aten::silu_backward.grad_input(Tensor grad_output, Tensor self, *, "
        "Tensor(a!) grad_input) -> Tensor(a!)",
    ]
