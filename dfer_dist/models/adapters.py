"""Adapters in the blocks of a frozen tower.

FineCLIPER (Chen et al., ACM MM 2024) takes them from AIM (Yang et al., ICLR 2023). An adapter is a
linear layer down, GELU, and a linear layer up that is zero at the start, so that training starts
from exactly the given model. With adapters A1, A2 and A3, a block computes ::

    x = x + A3(attention(LN1(x) along time))       AIM's temporal adaptation, model.adapter_time
    a = attention(LN1(x));  x = x + a + A1(a)      spatial adaptation
    m = LN2(x);  x = x + MLP(m) + scale * A2(m)    joint adaptation

The skip of A1 is its ``a``; A2 and A3 have none but the block's own. As in AIM, ``scale`` weighs
A2 only.

As :mod:`~dfer_dist.models.lora`, this neither changes nor renames the given weights. ZeRO-3 and
activation checkpointing need no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from dfer_dist.config.schema import ModelConfig
from dfer_dist.models.cpu_kernels import LastBlock
from dfer_dist.models.temporal import Fusion
from dfer_dist.models.towers.image import TowerParts
from dfer_dist.utils.errors import UserError


class Adapter(nn.Module):
    """Linear down to ``ratio`` of the width, GELU, linear up; zero at the start, without a skip."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, int(width * ratio))
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapter's output: [..., D] -> [..., D]."""
        return self.up(self.act(self.down(x)))


class PerPart(nn.Module):
    """One module for each part of a batch, so that one pass of a tower serves all parts.

    Parameters
    ----------
    parts : mapping of name to nn.Module
        In the order of the batch. What follows the parts that have rows is for batches of one part
        (:func:`select_adapter`).
    rows : sequence of int, optional
        Rows of each part of the batch; by default all modules have equally many.
    """

    def __init__(self, parts: Mapping[str, nn.Module], rows: Sequence[int] = ()) -> None:
        super().__init__()
        self.parts, self.rows = nn.ModuleDict(parts), list(rows)
        self.selected: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each part its module: [rows, ...] -> [rows, ...]."""
        if self.selected:
            return self.parts[self.selected](x)
        pieces = x.split(self.rows) if self.rows else x.chunk(len(self.parts))
        pairs = zip(self.parts.values(), pieces, strict=False)
        return torch.cat([module(piece) for module, piece in pairs])


@contextmanager
def select_adapter(tower: nn.Module, part: str) -> Iterator[None]:
    """Use the adapters of ``part`` alone in every :class:`PerPart` of a tower."""
    adapters = [module for module in tower.modules() if isinstance(module, PerPart)]
    for adapter in adapters:
        adapter.selected = part
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.selected = None


class FramePositions(nn.Module):
    """Learned positions of a clip's frames, zero at the start.

    Without them, attention along time does not know the order of the frames.
    """

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(frames, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions: [B T, N, D] -> [B T, N, D]."""
        return (x.unflatten(0, (-1, len(self.positions))) + self.positions).flatten(0, 1)


class AdaptedBlock(nn.Module):
    """A block of a tower with adapters, with the arguments that open_clip passes to a block.

    Parameters
    ----------
    base : ResidualAttentionBlock
        Its modules are taken over.
    make : callable
        Returns a new adapter.
    scale : float
        Weight of the adapter parallel to the MLP.
    frames : int, optional
        T, for a block that also attends along time.
    """

    def __init__(
        self,
        base: ResidualAttentionBlock,
        make: Callable[[], nn.Module],
        scale: float,
        frames: int | None = None,
    ) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = base.ln_1, base.attn, base.ls_1
        self.ln_2, self.mlp, self.ls_2 = base.ln_2, base.mlp, base.ls_2
        self.attn_adapter, self.mlp_adapter = make(), make()
        self.time_adapter = make() if frames else None
        # adapt_image gives positions to the first block.
        self.positions: nn.Module = nn.Identity()
        self.scale, self.frames = scale, frames
        self.num_queries = base.num_queries if isinstance(base, LastBlock) else None

    def forward(
        self, x: Tensor, key: None = None, value: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Transform tokens.

        Parameters
        ----------
        x : [N, L, D]
            With ``frames``, N is B T.
        attn_mask : [L, L], optional
            Added to the scores.

        Returns
        -------
        [N, L, D]; [N, 1, D] for the last block of a wide image tower
        """
        x = self.positions(x)
        if self.time_adapter is not None:
            along = rearrange(self.ln_1(x), "(b t) n d -> (b n) t d", t=self.frames)
            along = self.time_adapter(self.attn(along, along, along)[0])
            x = x + rearrange(along, "(b n) t d -> (b t) n d", n=x.shape[1])
        normed = self.ln_1(x)
        if attn_mask is not None:
            attn_mask = attn_mask.to(x.dtype)
        attended, _ = self.attn(
            normed, normed, normed, attn_mask=attn_mask, num_queries=self.num_queries
        )
        attended = self.ls_1(attended)
        x = x[:, : self.num_queries] + (attended + self.attn_adapter(attended))
        normed = self.ln_2(x)
        return x + self.ls_2(self.mlp(normed)) + self.scale * self.mlp_adapter(normed)


def adapt_image(parts: TowerParts, cfg: ModelConfig, num_frames: int) -> None:
    """Put adapters into every block of an image tower.

    With ``cfg.modalities``, each has adapters of its own; the batch is that of the frames followed
    by theirs. With ``cfg.adapter_time``, blocks have adapters along time too.

    AIM adds its positions before the norm that precedes the first block. Here they are added after
    it, in that block, so that nothing else of the tower changes.

    Raises
    ------
    UserError
        If the blocks cannot have adapters, or none along time.
    """
    width, ratio = parts.width, cfg.adapter_ratio
    ratios = {"video": ratio, **dict.fromkeys(cfg.modalities, cfg.modality_ratio)}

    def per_modality(make: Callable[[float], nn.Module]) -> nn.Module:
        if not cfg.modalities:
            return make(ratio)
        return PerPart({name: make(own) for name, own in ratios.items()})

    def adapter() -> nn.Module:
        return per_modality(lambda own: Adapter(width, own))

    frames = num_frames if cfg.adapter_time else None
    _adapt(parts.blocks, adapter, cfg.adapter_scale, frames)
    if frames:
        positions = per_modality(lambda _: FramePositions(frames, width))
        parts.blocks[0].positions = positions


def adapt_text(tower: Transformer, cfg: ModelConfig, sentences: Mapping[str, int]) -> None:
    """Put adapters into every block of a text tower, one for each polarity of a batch.

    With ``cfg.description_ratio``, descriptions have adapters of their own; they come in batches of
    their own (:func:`select_adapter`).

    Parameters
    ----------
    sentences : mapping of polarity to int
        Sentences of each polarity, in the order of the batch.

    Raises
    ------
    UserError
        As :func:`adapt_image`.
    """
    ratios = dict.fromkeys(sentences, cfg.adapter_ratio)
    if cfg.description_ratio:
        ratios["description"] = cfg.description_ratio

    def adapter() -> nn.Module:
        parts = {name: Adapter(tower.width, ratio) for name, ratio in ratios.items()}
        return PerPart(parts, list(sentences.values()))

    _adapt(tower.resblocks, adapter, cfg.adapter_scale, None)


def _adapt(
    blocks: nn.ModuleList, make: Callable[[], nn.Module], scale: float, frames: int | None
) -> None:
    for i, block in enumerate(blocks):
        if isinstance(block, ResidualAttentionBlock):
            blocks[i] = AdaptedBlock(block, make, scale, frames)
        elif frames:
            raise UserError(
                "model.adapter_time=true needs a backbone with the blocks of OpenAI's CLIP, such "
                "as ViT-B-32-quickgelu: leave it out for this one"
            )
        elif hasattr(block, "drop_path1"):
            _adapt_timm(block, make, scale)
        else:
            raise UserError(
                "this backbone's blocks cannot have adapters: choose another model.image or a "
                "backbone such as ViT-B-32-quickgelu"
            )


def _adapt_timm(block: Any, make: Callable[[], nn.Module], scale: float) -> None:
    """Put adapters into a block of timm, whose residual branches end in ``drop_path1`` and 2."""
    block.attn_adapter, block.mlp_adapter = make(), make()
    block.mlp.register_forward_pre_hook(partial(_keep_input, block))
    block.drop_path1.register_forward_hook(partial(_add_attn_adapter, block))
    block.drop_path2.register_forward_hook(partial(_add_mlp_adapter, block, scale))


def _keep_input(block: Any, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    block.mlp_input = inputs[0]


def _add_attn_adapter(block: Any, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out + block.attn_adapter(out)


def _add_mlp_adapter(
    block: Any, scale: float, _: nn.Module, __: tuple[Tensor, ...], out: Tensor
) -> Tensor:
    normed = block.mlp_input
    # Without this, the block would hold it until the next pass.
    del block.mlp_input
    return out + scale * block.mlp_adapter(normed)


def adapter_names(model: nn.Module) -> set[str]:
    """Return the names of parameters of adapters, frame positions and modality weights."""
    kinds = (Adapter, FramePositions, Fusion)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    return {f"{name}.{own}" for name, module in found for own, _ in module.named_parameters()}
