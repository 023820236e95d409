"""Low-rank adaptation (LoRA: Hu et al., ICLR 2022, section 4.1) of the blocks of a tower.

A frozen linear layer becomes y = W x + b + (alpha / rank) B A x. A and B are trained, and B is zero
at the start, so that training starts from exactly the given model. Every linear layer of a block is
adapted: query, key and value each with factors of their own, the attention's output, and both
layers of the MLP.

The factors are added to the layer's output, never to its weight: ZeRO-3 gathers a weight only
during the layer's own forward pass, and recomputed activations need the weights of the first pass.
That needs explicit layers (:mod:`~dfer_dist.models.attention`). Names of all given weights stay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from dfer_dist.models.attention import SelfAttention
from dfer_dist.models.cpu_kernels import linear
from dfer_dist.utils.errors import UserError


class LowRank(nn.Module):
    """(alpha / rank) B A x, the trained part of a linear layer.

    Parameters
    ----------
    parts : int
        Layers of equal size whose outputs are concatenated; each has factors of its own.

    Attributes
    ----------
    down : Parameter, [parts * rank, inputs]
        A of each part, from N(0, 1 / inputs).
    up : Parameter, [outputs, rank]
        B of each part, zeros.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, parts: int = 1) -> None:
        super().__init__()
        self.parts, self.scale = parts, alpha / rank
        self.down = nn.Parameter(torch.randn(parts * rank, inputs) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return the low-rank part: [..., inputs] -> [..., outputs]."""
        low = F.linear(x, self.down).unflatten(-1, (self.parts, -1))
        up = self.up.unflatten(0, (self.parts, -1))
        return self.scale * torch.einsum("...pr,por->...po", low, up).flatten(-2)


class LoRALinear(nn.Module):
    """A linear layer with a low-rank part; it takes over the weight and bias of ``base``.

    ``parts`` is as for :class:`LowRank`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, parts: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.lora = LowRank(base.in_features, base.out_features, rank, alpha, parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: [..., inputs] -> [..., outputs]."""
        return linear(x, self.weight, self.bias) + self.lora(x)


class LoRAAttention(SelfAttention):
    """Self-attention with a low-rank part for each of its layers."""

    def __init__(
        self, base: nn.MultiheadAttention | SelfAttention, rank: int, alpha: float
    ) -> None:
        super().__init__(base)
        outputs, inputs = base.in_proj_weight.shape
        self.in_proj_lora = LowRank(inputs, outputs, rank, alpha, parts=3)
        assert isinstance(base.out_proj, nn.Linear)
        self.out_proj = LoRALinear(base.out_proj, rank, alpha)

    def project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values: [B, N, D] -> [B, N, 3 D]."""
        return super().project(x) + self.in_proj_lora(x)


def add_lora(blocks: nn.ModuleList, rank: int, alpha: float) -> None:
    """Adapt every linear layer of every block of a tower, in place.

    Given weights keep their names and whether they are trained.

    Raises
    ------
    UserError
        If the blocks have a layer that cannot be adapted.
    """
    for block in blocks:
        if isinstance(block, ResidualAttentionBlock):
            block.attn = LoRAAttention(block.attn, rank, alpha)
            block.mlp.c_fc = LoRALinear(block.mlp.c_fc, rank, alpha)
            block.mlp.c_proj = LoRALinear(block.mlp.c_proj, rank, alpha)
        else:
            _adapt_linear_layers(block, rank, alpha)


def _adapt_linear_layers(block: nn.Module, rank: int, alpha: float) -> None:
    """Adapt the linear layers of a block of timm or transformers."""
    layers = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    if any(isinstance(m, nn.MultiheadAttention) for m in block.modules()) or not layers:
        raise UserError(
            "this backbone's blocks have layers that LoRA cannot adapt: choose another "
            "model.image or a backbone such as ViT-B-32-quickgelu"
        )
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        # queries, keys and values in one layer
        parts = 3 if own == "qkv" else 1
        setattr(block.get_submodule(parent), own, LoRALinear(layer, rank, alpha, parts))


def lora_names(model: nn.Module) -> set[str]:
    """Return the names of the low-rank factors of a model."""
    found = [name for name, module in model.named_modules() if isinstance(module, LowRank)]
    return {f"{name}.{factor}" for name in found for factor in ("down", "up")}
