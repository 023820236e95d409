"""Video transformers on tubelets: VideoMAE's ViT, and MAE-DFER's with attention in regions.

VideoMAE: Tong et al., NeurIPS 2022. MAE-DFER: Sun et al., ACM MM 2023. The modules are laid out as
a ViT of timm, so that :class:`~dfer_dist.models.towers.image.TimmTower` can hold them. Every
parameter is read in the forward pass of its own module, as ZeRO-3 and LoRA need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dfer_dist.models import attention

_STD = 0.02  # of random weights, as in VideoMAE's code


@dataclass(frozen=True)
class VideoSizes:
    """Sizes of a video transformer, by the names of ``VideoMAEConfig`` of transformers.

    Attributes
    ----------
    image_size, num_frames : int
        What the weights were trained on, pixels and frames.
    qkv_bias : bool
        Whether queries and values have a bias; keys have none.
    fc_norm_eps : float
        Of the norm after the mean; not in ``VideoMAEConfig``.
    region_size : tuple of 3 int, optional
        Tubelets of a region along time, height and width; None for attention among all tokens. Not
        in ``VideoMAEConfig``, as the next.
    pooled_tokens : str
        Of a transformer with regions, what is averaged: ``regions``, ``patches`` or ``all``.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 16
    tubelet_size: int = 2
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    fc_norm_eps: float = 1e-5
    region_size: tuple[int, int, int] | None = None
    pooled_tokens: str = "regions"

    def grid(self, num_frames: int, image_size: int) -> tuple[int, int, int]:
        """Return the number of tubelets of a clip along time, height and width."""
        side = image_size // self.patch_size
        return num_frames // self.tubelet_size, side, side

    @property
    def regions(self) -> tuple[int, int, int]:
        """Number of regions along time, height and width; needs ``region_size``."""
        assert self.region_size is not None
        t, h, w = self.grid(self.num_frames, self.image_size)
        return t // self.region_size[0], h // self.region_size[1], w // self.region_size[2]


def position_table(sizes: VideoSizes, grid: tuple[int, int, int]) -> Tensor:
    """Return fixed sine and cosine positions of tubelets, float32 [t h w, D].

    They are those of the grid that the weights were trained on. For another one they are
    interpolated, bicubically in space and linearly in time (as Unmasked Teacher: Li et al., ICCV
    2023), so that a pretrained model sees each place where it was.
    """
    own = sizes.grid(sizes.num_frames, sizes.image_size)
    places = torch.arange(own[0] * own[1] * own[2], dtype=torch.float64)
    channels = torch.arange(sizes.hidden_size)
    powers = 2 * (channels // 2).double() / sizes.hidden_size
    angles = places[:, None] / 10000**powers
    table = torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()
    if own[1:] != grid[1:]:
        images = rearrange(table, "(t h w) d -> t d h w", t=own[0], h=own[1])
        images = F.interpolate(images, grid[1:], mode="bicubic")
        table = rearrange(images, "t d h w -> (t h w) d")
    if own[0] != grid[0]:
        lines = rearrange(table, "(t p) d -> p d t", t=own[0])
        table = rearrange(F.interpolate(lines, grid[0], mode="linear"), "p d t -> (t p) d")
    return table


class TubeletEmbedding(nn.Module):
    """A 3-D convolution with a stride of its kernel size, as one matrix product."""

    def __init__(self, sizes: VideoSizes) -> None:
        super().__init__()
        self.kernel = (sizes.tubelet_size, sizes.patch_size, sizes.patch_size)
        base = nn.Conv3d(3, sizes.hidden_size, self.kernel)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Embed tubelets: [B, T, 3, H, W] -> [B, N, D], time first."""
        k, p, q = self.kernel
        order = "b (t k) c (h p) (w q) -> b (t h w) (c k p q)"
        return F.linear(rearrange(x, order, k=k, p=p, q=q), self.weight.flatten(1), self.bias)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context, in explicit layers."""

    def __init__(self, sizes: VideoSizes) -> None:
        super().__init__()
        width, self.num_heads = sizes.hidden_size, sizes.num_attention_heads
        self.query = nn.Linear(width, width, bias=sizes.qkv_bias)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=sizes.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend to the context, or to all of ``x``: [B, N, D], [B, M, D] -> [B, N, D]."""
        context = x if context is None else context
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.num_heads)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        return self.proj(rearrange(attention.attend(q, k, v), "b h n d -> b n (h d)"))


class Block(nn.Module):
    """A block with attention among all tokens; its residual branches end as those of timm."""

    def __init__(self, sizes: VideoSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.attn = Attention(sizes)
        self.drop_path1: nn.Module = nn.Identity()
        self.norm2 = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.mlp = Mlp(sizes.hidden_size, sizes.intermediate_size)
        self.drop_path2: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens: [B, N, D] -> [B, N, D]."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class RegionBlock(nn.Module):
    """A block of MAE-DFER's LGI-Former, on regions of a clip with a region token each.

    Tokens attend within their region, then region tokens to each other, then patches to all region
    tokens.
    """

    def __init__(self, sizes: VideoSizes) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

        self.local_norm, self.local_attn = norm(), Attention(sizes)
        self.global_norm, self.global_attn = norm(), Attention(sizes)
        self.patch_norm, self.region_norm, self.exchange_attn = norm(), norm(), Attention(sizes)
        self.norm2, self.mlp = norm(), Mlp(sizes.hidden_size, sizes.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens: [B, R, 1 + S, D] -> [B, R, 1 + S, D], the region token first."""
        x = x + self.local_attn(self.local_norm(x).flatten(0, 1)).view_as(x)
        regions, patches = x[:, :, 0], x[:, :, 1:].flatten(1, 2)
        regions = regions + self.global_attn(self.global_norm(regions))
        patches = patches + self.exchange_attn(self.patch_norm(patches), self.region_norm(regions))
        patches = patches.unflatten(1, (x.shape[1], -1))
        x = torch.cat([regions.unsqueeze(2), patches], dim=2)
        return x + self.mlp(self.norm2(x))


class VideoViT(nn.Module):
    """The ViT of VideoMAE as it is fine-tuned: the norm of the mean over the tokens.

    Parameters
    ----------
    sizes : VideoSizes
    num_frames, image_size : int
        Of the clips; multiples of a tubelet's.
    """

    pos_embed: Tensor

    def __init__(self, sizes: VideoSizes, num_frames: int, image_size: int) -> None:
        super().__init__()
        self.embed_dim = self.num_features = sizes.hidden_size
        self.grad_checkpointing = False
        self.patch_embed = TubeletEmbedding(sizes)
        grid = sizes.grid(num_frames, image_size)
        self.register_buffer("pos_embed", position_table(sizes, grid), persistent=False)
        kind = Block if sizes.region_size is None else RegionBlock
        self.blocks = nn.ModuleList(kind(sizes) for _ in range(sizes.num_hidden_layers))
        self.fc_norm = nn.LayerNorm(sizes.hidden_size, eps=sizes.fc_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of blocks in the backward pass."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """Return features of clips: [B, T, 3, H, W] -> [B, D]."""
        x = self.patch_embed(x)
        # ZeRO-3 does not cast buffers.
        return self.fc_norm(self.transform(x + self.pos_embed.to(x.dtype)).mean(1))

    def transform(self, x: Tensor) -> Tensor:
        """Return the tokens to average: [B, N, D] -> [B, N, D]."""
        return self.run_blocks(x)

    def run_blocks(self, x: Tensor) -> Tensor:
        """Apply all blocks to tokens of any shape that they take."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return x


class RegionViT(VideoViT):
    """LGI-Former of MAE-DFER: tokens in regions, with a learned token for each region.

    Parameters
    ----------
    sizes : VideoSizes
        With ``region_size``. Clips have the size that the weights were trained on.
    """

    def __init__(self, sizes: VideoSizes) -> None:
        super().__init__(sizes, sizes.num_frames, sizes.image_size)
        self.sizes = sizes
        t, h, w = sizes.regions
        # Not below patch_embed: the authors train it at the rate of the last layer.
        self.region_tokens = nn.Parameter(torch.empty(t * h * w, sizes.hidden_size))
        nn.init.trunc_normal_(self.region_tokens, std=_STD)

    def transform(self, x: Tensor) -> Tensor:
        """Return the tokens to average: [B, N, D] -> [B, M, D]."""
        (t, h, w), (tt, hh, ww) = self.sizes.regions, self.sizes.region_size or (1, 1, 1)
        order = "b (t tt h hh w ww) d -> b (t h w) (tt hh ww) d"
        x = rearrange(x, order, t=t, h=h, w=w, tt=tt, hh=hh, ww=ww)
        regions = self.region_tokens.expand(len(x), -1, -1).unsqueeze(2)
        x = self.run_blocks(torch.cat([regions, x], dim=2))
        pooled = {"regions": slice(0, 1), "patches": slice(1, None), "all": slice(None)}
        return x[:, :, pooled[self.sizes.pooled_tokens]].flatten(1, 2)
