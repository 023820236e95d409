"""Image towers of open_clip and timm: their parts, and what is replaced in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from dfer_dist.models.attention import use_explicit_attention
from dfer_dist.models.cpu_kernels import PatchEmbedding, use_cpu_kernels
from dfer_dist.models.towers.video_vit import TubeletEmbedding


class TimmTower(nn.Module):
    """A ViT of timm without a classifier; its feature is what the classifier would read.

    Parameters
    ----------
    trunk : nn.Module
        A model of timm with ``num_classes=0``, or :class:`~.video_vit.VideoViT`.
    """

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Identity()
        self.output_dim: int = trunk.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of blocks in the backward pass."""
        trunk: Any = self.trunk
        trunk.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> Tensor:
        """Return features: [N, 3, H, W], of a video tower [N, T, 3, H, W], -> [N, E]."""
        return self.trunk(x)


@dataclass(frozen=True)
class TowerParts:
    """What parameter-efficient training needs to know of an image or video tower.

    Attributes
    ----------
    blocks : nn.ModuleList
        The transformer's blocks, from the first to the last.
    tail : sequence of nn.Module or nn.Parameter
        What follows them: norms, pooling, projection.
    width : int
        Size of a token.
    """

    blocks: nn.ModuleList
    tail: Sequence[nn.Module | nn.Parameter]
    width: int


def tower_parts(tower: Any) -> TowerParts:
    """Return the parts of an image or video tower."""
    if isinstance(tower, VisionTransformer):
        transformer = tower.transformer
        pool = [tower.attn_pool] if tower.attn_pool is not None else []
        return TowerParts(
            transformer.resblocks, [*pool, tower.ln_post, tower.proj], transformer.width
        )
    trunk = tower.trunk
    children: dict[str, nn.Module] = dict(trunk.named_children())
    after = list(children)[list(children).index("blocks") + 1 :]
    return TowerParts(
        trunk.blocks, [*map(children.__getitem__, after), tower.head], trunk.embed_dim
    )


def patch_size(tower: VisionTransformer | TimmModel | TimmTower) -> int:
    """Return the side of a patch in pixels."""
    if isinstance(tower, VisionTransformer):
        return int(max(tower.patch_size))
    embedding: Any = tower.trunk.patch_embed
    if isinstance(embedding, TubeletEmbedding):
        return embedding.kernel[-1]
    # That of a stem of convolutions is 1.
    return int(embedding.img_size[0] // embedding.grid_size[0])


def prepare_image(tower: VisionTransformer | TimmModel | TimmTower) -> None:
    """Replace layers of an image tower so that LoRA, ZeRO-3 and the CPU can work with it, in place.

    Its features stay the same up to rounding.
    """
    if isinstance(tower, VisionTransformer):
        tower.output_tokens = False
        use_explicit_attention(tower.transformer)
        use_cpu_kernels(tower)
        return
    # Statistics of a batch depend on how clips are shared among ranks.
    tower.trunk = freeze_batch_norm_2d(tower.trunk)
    for module in tower.modules():
        # Otherwise the weight is read without calling its layer, which ZeRO-3 and LoRA need.
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    embedding = tower.trunk.patch_embed
    patches = getattr(embedding, "proj", None)
    if isinstance(patches, nn.Conv2d) and patches.stride == patches.kernel_size:
        embedding.proj = PatchEmbedding(patches)
