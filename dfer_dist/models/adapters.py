"""Adapters in the blocks of a frozen CLIP tower, as FineCLIPER draws them (Chen et al., ACM MM 2024) after AIM (Yang et al., ICLR 2023).

An adapter is a linear layer down, GELU, and a linear layer up that is zero at the start, so that training starts from exactly
the given model. With A1, A2 and A3 for adapters, a block computes ::

    x = x + A3(attention(LN1(x) along time))       AIM's temporal adaptation, with model.adapter_time only
    a = attention(LN1(x));  x = x + a + A1(a)      spatial adaptation
    m = LN2(x);  x = x + MLP(m) + scale * A2(m)    joint adaptation

The skip of A1 is its ``a``; A2 and A3 have none beside the block's own, and ``scale`` weighs A2 only, as in AIM.

As :mod:`~dfer_dist.models.lora` does, it leaves the given weights alone and keeps their names; ZeRO-3 and recomputed activations need no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from dfer_dist.models.fusion import Fusion
from dfer_dist.models.kernels import LastBlock
from dfer_dist.utils.errors import UserError


class Adapter(nn.Module):
    """Linear down to ``ratio`` of the width, GELU, linear up; zero at the start, and without a skip."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        narrow = max(1, int(width * ratio))
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.up(self.act(self.down(x)))


class AdapterOfEach(nn.Module):
    """An adapter for each part of a batch, so that one pass of a tower serves them all; and others for batches of one kind.

    Parameters
    ----------
    parts : mapping of name to int
        Rows of each part, in the order of the batch.
    more : mapping of name to float
        Further adapters and their ratios, for :func:`reading_as`.
    """

    def __init__(
        self, width: int, ratio: float, parts: Mapping[str, int], more: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.rows = list(parts.values())
        self.parts = nn.ModuleDict({name: Adapter(width, ratio) for name in parts})
        self.parts.update({name: Adapter(width, own) for name, own in more.items()})
        self.only: str | None = None  # the part that a whole batch is of, for now

    def forward(self, x: Tensor) -> Tensor:
        """[rows, L, D] -> [rows, L, D]."""
        if self.only:
            return self.parts[self.only](x)
        own = zip(self.parts.values(), x.split(self.rows), strict=False)  # the first have rows
        return torch.cat([adapter(part) for adapter, part in own])


class PerModality(nn.Module):
    """A module for each level of a batch: frames, parsing maps, landmarks, so that one pass of a tower serves them all."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        """[L N, ...] -> [L N, ...], one level after the other."""
        own = zip(self.parts.values(), x.chunk(len(self.parts)), strict=True)
        return torch.cat([module(part) for module, part in own])


@contextmanager
def reading_as(tower: nn.Module, part: str) -> Iterator[None]:
    """What the tower reads meanwhile passes the adapters of ``part`` alone, where it has any."""
    found = [module for module in tower.modules() if isinstance(module, AdapterOfEach)]
    for module in found:
        module.only = part
    try:
        yield
    finally:
        for module in found:
            module.only = None


class FramePositions(nn.Module):
    """Learned positions of a clip's frames, zeros at the start: without them, attention along time knows no order."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(frames, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B T, N, D] -> [B T, N, D]."""
        return (x.unflatten(0, (-1, len(self.positions))) + self.positions).flatten(0, 1)


class AdaptedBlock(nn.Module):
    """A block of a tower, whose parts this takes over, with adapters. It has the arguments that open_clip gives a block.

    Parameters
    ----------
    base : ResidualAttentionBlock
    make : function that returns a new adapter
    scale : float
        Weight of the adapter beside the MLP.
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
        self.positions: nn.Module = nn.Identity()  # the first block's has some
        self.scale, self.frames = scale, frames
        self.read = base.read if isinstance(base, LastBlock) else None

    def forward(
        self, x: Tensor, key: None = None, value: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """[N, L, D] -> [N, L, D], or of as many tokens as are read; ``attn_mask`` [L, L] is added to the scores. With ``frames``, N is B T."""
        x = self.positions(x)
        if self.time_adapter is not None:
            along = rearrange(self.ln_1(x), "(b t) n d -> (b n) t d", t=self.frames)
            along = self.time_adapter(self.attn(along, along, along)[0])
            x = x + rearrange(along, "(b n) t d -> (b t) n d", n=x.shape[1])
        normed = self.ln_1(x)
        mask = None if attn_mask is None else attn_mask.to(x.dtype)
        mixed = self.ls_1(self.attn(normed, normed, normed, attn_mask=mask, read=self.read)[0])
        x = x[:, : self.read] + (mixed + self.attn_adapter(mixed))
        normed = self.ln_2(x)
        return x + self.ls_2(self.mlp(normed)) + self.scale * self.mlp_adapter(normed)


def adapt_image(
    image: VisionTransformer,
    ratio: float,
    scale: float,
    frames: int | None,
    modalities: Sequence[str] = (),
    modality_ratio: float = 0.0,
) -> None:
    """Put adapters into every block of an image tower; with ``frames`` T, also those along time, and positions of the frames.

    With ``modalities``, each of them has adapters of its own, as wide as ``modality_ratio`` tells, and the batch is that of the frames followed by theirs.

    AIM adds its positions before the norm that precedes the first block; here they are added after it, in that block, so that nothing else of
    the tower is touched.

    Raises
    ------
    UserError
        If the blocks are not built as those of OpenAI's CLIP.
    """
    width = image.transformer.width
    ratios = {"video": ratio, **dict.fromkeys(modalities, modality_ratio)}

    def each(make: Callable[[float], nn.Module]) -> nn.Module:
        return (
            PerModality({name: make(own) for name, own in ratios.items()})
            if modalities
            else make(ratio)
        )

    _adapt(image.transformer, lambda: each(lambda own: Adapter(width, own)), scale, frames)
    if frames:
        image.transformer.resblocks[0].positions = each(lambda _: FramePositions(frames, width))


def adapt_text(
    tower: Transformer,
    ratio: float,
    scale: float,
    parts: Mapping[str, int],
    more: Mapping[str, float] | None = None,
) -> None:
    """Put adapters into every block of a text tower, others for each part of what it reads.

    Parameters
    ----------
    parts : mapping of name to int
        Sentences of each part, in the order in which they come.
    more : mapping of name to float, optional
        Further parts, which come by themselves (:func:`reading_as`), and the ratio of their adapters.

    Raises
    ------
    UserError
        As :func:`adapt_image`.
    """
    _adapt(tower, lambda: AdapterOfEach(tower.width, ratio, parts, more or {}), scale, None)


def _adapt(
    tower: Transformer, make: Callable[[], nn.Module], scale: float, frames: int | None
) -> None:
    for i, block in enumerate(tower.resblocks):
        if not isinstance(block, ResidualAttentionBlock):
            raise UserError(
                "this backbone's blocks are not those of OpenAI's CLIP: adapters need one such as ViT-B-32-quickgelu"
            )
        tower.resblocks[i] = AdaptedBlock(block, make, scale, frames)


def adapter_names(model: nn.Module) -> set[str]:
    """Names of the adapters' parameters in a model, positions of frames and weights of levels among them."""
    kinds = (Adapter, FramePositions, Fusion)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    return {f"{name}.{own}" for name, module in found for own, _ in module.named_parameters()}
