"""Parts of CLIP's towers that are computed in a faster way than open_clip's, to equal results; docs/background/benchmarks.md has what each gives."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from dfer_dist.models.attention import SelfAttention
from dfer_dist.models.linear import WIDE, Linear, is_fast

QUICK = 1.702


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its width, whose weight this takes over, as one matrix product: on the CPU, convolution's
    backward pass takes twenty times as long."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.size = base.weight, base.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, D, H / P, W / P]."""
        rows = x.shape[-2] // self.size
        patches = rearrange(x, "n c (h p) (w q) -> n (h w) (c p q)", p=self.size, q=self.size)
        return F.linear(patches, self.weight.flatten(1)).transpose(1, 2).unflatten(2, (rows, -1))


class FusedQuickGELU(nn.Module):
    """x sigmoid(1.702 x), which is silu(1.702 x) / 1.702: torch has silu and its derivative as one kernel each."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = QUICK * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / QUICK)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradients[0], scaled)


class _SiLU(torch.autograd.Function):
    """Overwrites its gradient, which in :class:`MLP` nobody else holds: a third less goes through memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), (g,) = ctx.saved_tensors, gradients
        return torch.ops.aten.silu_backward.grad_input(g, x, grad_input=g)


class MLP(nn.Sequential):
    """A block's two layers, which this takes over, and QuickGELU between them, whose two factors are left to the layers' products."""

    def __init__(self, base: nn.Sequential) -> None:
        assert isinstance(base.c_fc, nn.Linear) and isinstance(base.c_proj, nn.Linear)
        super().__init__(
            OrderedDict(c_fc=Linear(base.c_fc), gelu=FusedQuickGELU(), c_proj=Linear(base.c_proj))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if is_fast(x) and isinstance(self.c_fc, Linear) and isinstance(self.c_proj, Linear):
            return self.c_proj(_SiLU.apply(self.c_fc(x, after=QUICK)), before=1 / QUICK)
        return super().forward(x)


class LastBlock(ResidualAttentionBlock):
    """The last block of an image tower, whose parts this takes over, for the class token alone: nothing else of its result is read.

    Other tokens are attended to, and spared what comes after: nine of twelve products of a block. The demo's tower is too small to gain by it.
    """

    read = 1

    def __init__(self, base: ResidualAttentionBlock) -> None:
        nn.Module.__init__(self)
        self.ln_1, self.attn, self.ls_1 = base.ln_1, base.attn, base.ls_1
        self.ln_2, self.mlp, self.ls_2 = base.ln_2, base.mlp, base.ls_2

    def forward(
        self, x: Tensor, key: None = None, value: None = None, attn_mask: None = None
    ) -> Tensor:
        """[N, L, D] -> [N, 1, D]."""
        normed = self.ln_1(x)
        x = x[:, : self.read] + self.ls_1(self.attn(normed, normed, normed, read=self.read)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def speed_up(image: VisionTransformer, text: Transformer) -> None:
    """Put the faster parts in the place of open_clip's, under the names that its weights have; blocks that are not built as
    those of OpenAI's CLIP stay as they are."""
    if image.conv1.stride == image.conv1.kernel_size and image.conv1.bias is None:
        image.conv1 = PatchEmbedding(image.conv1)
    for block in (*image.transformer.resblocks, *text.resblocks):
        if isinstance(block, ResidualAttentionBlock):
            block.attn = SelfAttention(block.attn)
            block.attn.out_proj = Linear(block.attn.out_proj)
            if isinstance(block.mlp.gelu, QuickGELU):
                block.mlp = MLP(block.mlp)
    blocks = image.transformer.resblocks
    class_token_only = (
        image.attn_pool is None and image.pool_type == "tok" and not image.output_tokens
    )
    if (
        class_token_only
        and isinstance(blocks[-1], ResidualAttentionBlock)
        and image.transformer.width >= WIDE
    ):
        blocks[-1] = LastBlock(blocks[-1])
