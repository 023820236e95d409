"""Faster CPU kernels for open_clip's towers, equal to the replaced layers up to rounding.

:func:`use_cpu_kernels` puts them into a tower; names of weights stay. It replaces

==========================  ==========================  ========================================
open_clip's or torch's      here                        why
==========================  ==========================  ========================================
``nn.Conv2d`` on patches    :class:`PatchEmbedding`     the convolution's backward pass takes
                                                        20 times as long as one product
``nn.Linear`` in bf16       :class:`Linear`             oneDNN adds the bias itself and is slow
                                                        with a transposed left factor
``QuickGELU``               :class:`FusedQuickGELU`     one kernel forward, one backward
``mlp`` of a block          :class:`MLP`                scale factors become part of products
last block of a ViT         :class:`LastBlock`          only the class token is read
==========================  ==========================  ========================================

:func:`attend_plain` computes the products of :mod:`~dfer_dist.models.attention` without copies.
``docs/background/benchmarks.md`` has the time that each saves.

Private functions of torch, tested with torch 2.14: ``torch.ops.mkldnn._linear_pointwise``,
``torch.ops.mkldnn._is_mkldnn_bf16_supported``, ``torch._softmax_backward_data``,
``torch._foreach_copy_`` and ``torch.ops.aten.silu_backward``. A test checks the signatures of the
operators.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Inputs from which on a layer's products outweigh the cost of a Python function.
MIN_WIDTH = 256
# Ratio of outputs to inputs, or of inputs to outputs, from which on it is faster to transpose the
# smaller factor first.
_TRANSPOSE_RATIO = 3
# Rows that one copy of a transposition takes; the copies run in parallel.
_TRANSPOSE_ROWS = 128
# Rows of ones that sum the gradient of a bias; the matrix unit multiplies no fewer.
_BIAS_ROWS = 16
_QUICK_GELU_SCALE = 1.702
# Ratio of inputs to weights from which on scaling the weights of an MLP costs less than it saves.
_FUSED_RATIO = 1


def use_cpu_kernels(image: VisionTransformer) -> None:
    """Replace layers of an image tower by faster ones, in place.

    Attention must be :class:`~dfer_dist.models.attention.SelfAttention`. Blocks that are not built
    as those of OpenAI's CLIP are not changed.
    """
    if image.conv1.stride == image.conv1.kernel_size:
        image.conv1 = PatchEmbedding(image.conv1)
    use_fast_blocks(image.transformer)
    reads_class_token = (
        image.attn_pool is None and image.pool_type == "tok" and not image.output_tokens
    )
    # A narrow tower does not gain by it.
    if not reads_class_token or image.transformer.width < MIN_WIDTH:
        return
    blocks = image.transformer.resblocks
    if isinstance(blocks[-1], ResidualAttentionBlock):
        blocks[-1] = LastBlock(blocks[-1])


def use_fast_blocks(tower: Transformer) -> None:
    """Replace layers in the blocks of a tower, as :func:`use_cpu_kernels` does."""
    for block in tower.resblocks:
        if isinstance(block, ResidualAttentionBlock):
            block.attn.out_proj = Linear(block.attn.out_proj)
            if isinstance(block.mlp.gelu, QuickGELU):
                block.mlp = MLP(block.mlp)


class PatchEmbedding(nn.Module):
    """A convolution with a stride of its kernel size, as one matrix product.

    It takes over the weight and bias of ``base``.
    """

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.size = base.weight, base.bias, base.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches: [N, 3, H, W] -> [N, D, H // P, W // P]."""
        rows, columns = x.shape[-2] // self.size, x.shape[-1] // self.size
        x = x[..., : rows * self.size, : columns * self.size]
        patches = rearrange(x, "n c (h p) (w q) -> n (h w) (c p q)", p=self.size, q=self.size)
        embedded = F.linear(patches, self.weight.flatten(1), self.bias)
        return embedded.transpose(1, 2).unflatten(2, (rows, -1))


class FusedQuickGELU(nn.Module):
    """x sigmoid(1.702 x), computed as silu(1.702 x) / 1.702, which is one kernel of torch."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply QuickGELU to a tensor of any shape."""
        return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = _QUICK_GELU_SCALE * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / _QUICK_GELU_SCALE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradients[0], scaled)


class _SiLU(torch.autograd.Function):
    """SiLU that overwrites the gradient of its output, which nothing else holds in :class:`MLP`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), (g,) = ctx.saved_tensors, gradients
        return torch.ops.aten.silu_backward.grad_input(g, x, grad_input=g)


class MLP(nn.Sequential):
    """The MLP of a block, with QuickGELU's two factors moved into the products of its layers.

    It takes over the layers of ``base``.
    """

    def __init__(self, base: nn.Sequential) -> None:
        assert isinstance(base.c_fc, nn.Linear) and isinstance(base.c_proj, nn.Linear)
        super().__init__(
            OrderedDict(c_fc=Linear(base.c_fc), gelu=FusedQuickGELU(), c_proj=Linear(base.c_proj))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers: [..., D] -> [..., D]."""
        first, second = self.c_fc, self.c_proj
        # LoRA replaces these layers by ones that take no scales.
        if isinstance(first, Linear) and isinstance(second, Linear) and has_fast_linear(x):
            is_large = x.numel() >= _FUSED_RATIO * first.weight.numel()
            if is_large and not torch.is_grad_enabled():
                return _mlp_without_gradient(x, first, second)
            hidden = _SiLU.apply(first(x, output_scale=_QUICK_GELU_SCALE))
            return second(hidden, input_scale=1 / _QUICK_GELU_SCALE)
        return super().forward(x)


def _mlp_without_gradient(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Return both layers with SiLU and biases in oneDNN's products, and scaled weights.

    Scaling the weights rounds them once more, as much as leaving SiLU's input in float32 saves.
    """
    product = torch.ops.mkldnn._linear_pointwise
    bias = None if first.bias is None else _QUICK_GELU_SCALE * first.bias
    hidden = product(x, _QUICK_GELU_SCALE * first.weight, bias, "swish", [], "")
    return product(hidden, second.weight * (1 / _QUICK_GELU_SCALE), second.bias, "none", [], "")


class LastBlock(ResidualAttentionBlock):
    """The last block of an image tower, for the class token alone: no other output is read.

    The class token attends to all tokens. Leaving out the other tokens after that saves nine of
    the twelve products of a block. It takes over the layers of ``base``.
    """

    num_queries = 1

    def __init__(self, base: ResidualAttentionBlock) -> None:
        nn.Module.__init__(self)
        self.ln_1, self.attn, self.ls_1 = base.ln_1, base.attn, base.ls_1
        self.ln_2, self.mlp, self.ls_2 = base.ln_2, base.mlp, base.ls_2

    def forward(
        self, x: Tensor, key: None = None, value: None = None, attn_mask: None = None
    ) -> Tensor:
        """Transform the class token: [N, L, D] -> [N, 1, D]."""
        normed = self.ln_1(x)
        attended = self.attn(normed, normed, normed, num_queries=self.num_queries)[0]
        x = x[:, : self.num_queries] + self.ls_1(attended)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Linear(nn.Linear):
    """A linear layer that computes with :func:`linear`; it takes over the weights of ``base``."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor, input_scale: float = 1.0, output_scale: float = 1.0) -> Tensor:
        """Return :func:`linear` of this layer's weights: [..., inputs] -> [..., outputs]."""
        return linear(x, self.weight, self.bias, input_scale, output_scale)


def has_fast_linear(x: Tensor) -> bool:
    """Return whether a layer on ``x``, [..., inputs], has faster products than torch's own.

    That is in bf16 on a CPU, with at least :data:`MIN_WIDTH` inputs.
    """
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.shape[-1] < MIN_WIDTH:
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_scale: float = 1.0,
    output_scale: float = 1.0,
) -> Tensor:
    """Return output_scale (input_scale x W^T + b): [..., inputs] -> [..., outputs].

    Without scales this is ``F.linear``. Where :func:`has_fast_linear`, scales cost no pass over
    memory.
    """
    if has_fast_linear(x):
        return _Linear.apply(x, weight, bias, input_scale, output_scale)
    if input_scale != 1:
        x = input_scale * x
    y = F.linear(x, weight, bias)
    if output_scale != 1:
        y = output_scale * y
    return y


class _Linear(torch.autograd.Function):
    """``F.linear`` fills the output with copies of the bias; oneDNN's product adds it itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        input_scale: float,
        output_scale: float,
    ) -> Tensor:
        # A frozen weight needs no gradient, so the input is not kept for it.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.input_scale, ctx.output_scale, ctx.shape = input_scale, output_scale, x.shape
        scale = input_scale * output_scale
        has_scales = not (input_scale == output_scale == 1)
        if bias is None or not has_scales:
            y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return y.mul_(scale) if has_scales else y
        if output_scale != 1:
            bias = output_scale * bias
        y = torch.addmm(bias, x.flatten(0, -2), weight.t(), alpha=scale)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        g = gradients[0].flatten(0, -2)
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = _product(g, weight, ctx.input_scale * ctx.output_scale).view(ctx.shape)
        if needs_weight:
            grad_weight, grad_bias = linear_gradients(
                g, x.flatten(0, -2), ctx.input_scale, ctx.output_scale
            )
        elif needs_bias:
            grad_bias = ctx.output_scale * g.sum(0)
        return grad_x, grad_weight, grad_bias if needs_bias else None, None, None


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def linear_gradients(
    g: Tensor, x: Tensor, input_scale: float, output_scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a weight and a bias.

    oneDNN is slow with a transposed left factor. It is faster to copy the smaller factor and, if
    that is x, the result. Rows of ones below x then sum g in the same product.

    Parameters
    ----------
    g : [rows, outputs]
        Gradient of the outputs.
    x : [rows, inputs]
        Inputs of the layer.

    Returns
    -------
    [outputs, inputs]
        input_scale output_scale g^T x
    [outputs]
        output_scale g^T 1
    """
    inputs, outputs, scale = x.shape[1], g.shape[1], input_scale * output_scale
    if inputs * _TRANSPOSE_RATIO <= outputs:
        left = x.new_empty(inputs + _BIAS_ROWS, len(x))
        transpose(x, left[:inputs])
        left[inputs:] = 1
        both = _product(left, g, scale)
        grad_weight = transpose(both[:inputs], x.new_empty(outputs, inputs))
        return grad_weight, both[inputs] / input_scale
    left = g.t()
    if outputs * _TRANSPOSE_RATIO <= inputs:
        left = transpose(g, g.new_empty(outputs, len(g)))
    grad_bias = g.sum(0)
    if output_scale != 1:
        grad_bias = output_scale * grad_bias
    return _product(left, x, scale), grad_bias


def transpose(x: Tensor, out: Tensor) -> Tensor:
    """Copy x [A, B] into ``out`` [B, A] with all threads; ``x.t().contiguous()`` uses one."""
    parts = [rows.t() for rows in x.split(_TRANSPOSE_ROWS)]
    torch._foreach_copy_(out.split(_TRANSPOSE_ROWS, 1), parts)
    return out


def attend_plain(qkv: Tensor, heads: int, num_queries: int | None) -> Tensor:
    """Return attention by plain products, softmax(q k^T / sqrt(d)) v, with their own derivative.

    torch's derivative copies each factor of each product; here heads are laid out once.

    Parameters
    ----------
    qkv : [B, N, 3 D]
        Queries, keys and values of each token.
    num_queries : int, optional
        Compute the output of the first tokens only.

    Returns
    -------
    [B, num_queries or N, D]
    """
    return _PlainAttention.apply(qkv, heads, num_queries)


class _PlainAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, num_queries: int | None) -> Tensor:
        by_head = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
        packed = qkv.new_empty(by_head.shape).copy_(by_head)
        packed[0].mul_(by_head.shape[-1] ** -0.5)
        q, k, v = packed.flatten(1, 2)
        weights = torch.bmm(q[:, :num_queries], k.transpose(1, 2)).softmax(-1)
        ctx.heads, ctx.num_queries = heads, num_queries
        ctx.save_for_backward(packed, weights)
        return rearrange(torch.bmm(weights, v), "(b h) n d -> b n (h d)", h=heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        packed, weights = ctx.saved_tensors
        q, k, v = packed.flatten(1, 2)
        q = q[:, : ctx.num_queries]
        width = k.shape[2]
        g = rearrange(gradients[0], "b n (h d) -> (b h) n d", h=ctx.heads)
        grad_scores = torch._softmax_backward_data(
            torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype
        )
        # Queries of the other tokens were not used: their gradient is zero.
        new = g.new_empty if ctx.num_queries is None else g.new_zeros
        grad_qkv = new((packed.shape[1], k.shape[1], 3 * ctx.heads * width))
        grad_q, grad_k, grad_v = rearrange(
            grad_qkv, "b n (three h d) -> three b h n d", three=3, h=ctx.heads, d=width
        )
        grad_q = grad_q[:, :, : ctx.num_queries]
        grad_q.copy_(torch.bmm(grad_scores, k).mul_(width**-0.5).view(grad_q.shape))
        grad_k.copy_(torch.bmm(grad_scores.transpose(1, 2), q).view(grad_k.shape))
        grad_v.copy_(torch.bmm(weights.transpose(1, 2), g).view(grad_v.shape))
        return grad_qkv, None, None
