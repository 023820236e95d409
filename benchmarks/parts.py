"""Time each optimised part of a step next to what it replaced.

At the sizes of ViT-B/32 with 4 clips of 16 frames. ``python benchmarks/parts.py`` prints JSON: for
each part ``before`` and ``here``, seconds of a forward and backward pass (medians of rounds in
which the two alternate), and ``predicted``, what was expected of it before it was written.
``make bench`` makes a table of it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dfer_dist.models.attention import SelfAttention, attend, attend_packed
from dfer_dist.models.backbone import load_backbone
from dfer_dist.models.cpu_kernels import (
    MLP,
    FusedQuickGELU,
    LastBlock,
    Linear,
    PatchEmbedding,
    linear,
)

ROUNDS = 7
BF16 = torch.bfloat16
FRAMES = 64  # of a step
TRAINED = 89_988_352  # trained parameters of DFER-CLIP on ViT-B/32

Pair = tuple[Callable[[], object], Callable[[], object]]


def forward_and_backward(
    work: Callable[[Tensor], Tensor], shape: tuple[int, ...], train: bool = True
) -> Callable[[], object]:
    """Return a call that runs ``work`` forward and, in training, backward, on a random input."""
    x = torch.randn(shape, dtype=BF16, requires_grad=train)

    def run() -> None:
        with torch.set_grad_enabled(train):
            y = work(x)
        if train:
            y.backward(torch.ones_like(y))
            x.grad = None

    return run


def patches() -> Pair:
    """Time the patch embedding."""
    conv = nn.Conv2d(3, 768, 32, stride=32, bias=False).to(BF16)
    shape = (FRAMES, 3, 224, 224)
    return forward_and_backward(conv, shape), forward_and_backward(PatchEmbedding(conv), shape)


def packed(qkv: Tensor) -> Tensor:
    """Attend with 12 heads to queries, keys and values in one tensor."""
    return attend_packed(qkv, 12)


def by_head(work: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Split queries, keys and values in one tensor into heads, and merge them, by views."""

    def run(qkv: Tensor) -> Tensor:
        return rearrange(
            work(*rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=12)),
            "b h n d -> b n (h d)",
        )

    return run


def attention(length: int, batch: int, train: bool = True) -> Pair:
    """Time the attention of a block."""

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    def in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    shape, before = (batch, length, 3 * 768), by_head(fused if train else in_parts)
    return (
        forward_and_backward(before, shape, train),
        forward_and_backward(packed, shape, train),
    )


def heads() -> Pair:
    """Time the same plain products, derived by torch and by hand."""
    shape = (FRAMES, 50, 3 * 768)
    return forward_and_backward(by_head(attend), shape), forward_and_backward(packed, shape)


def layers() -> Pair:
    """Time the four layers of a block, trained."""
    sizes = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    trained = [
        [torch.randn(size, dtype=BF16, requires_grad=True) for size in ((o, i), (o,))]
        for i, o in sizes
    ]

    def all_by(layer: Callable[..., Tensor]) -> Callable[[], object]:
        works = [
            forward_and_backward(partial(layer, weight=own[0], bias=own[1]), (FRAMES, 50, i))
            for own, (i, _) in zip(trained, sizes, strict=True)
        ]

        def run() -> None:
            for work in works:
                work()
            for own in chain(*trained):
                own.grad = None

        return run

    return all_by(F.linear), all_by(linear)


def factors() -> Pair:
    """Time a block's MLP with the same layers; frozen, so that activations weigh more."""
    base = nn.Sequential(
        OrderedDict(c_fc=nn.Linear(768, 3072), gelu=QuickGELU(), c_proj=nn.Linear(3072, 768))
    )
    own = MLP(base.to(BF16).requires_grad_(False))
    shape = (FRAMES, 50, 768)
    return forward_and_backward(nn.Sequential(*own), shape), forward_and_backward(own, shape)


def gelu() -> Pair:
    """Time QuickGELU."""
    shape = (FRAMES, 50, 3072)
    return forward_and_backward(QuickGELU(), shape), forward_and_backward(FusedQuickGELU(), shape)


def last_block() -> Pair:
    """Time the last block of an image tower, trained, up to the class token's feature."""
    base = ResidualAttentionBlock(768, 12, act_layer=QuickGELU)
    base.attn, base.mlp = SelfAttention(base.attn), MLP(base.mlp)
    base.attn.out_proj = Linear(base.attn.out_proj)
    base.to(BF16)

    def by(block: nn.Module) -> Callable[[], object]:
        def work(x: Tensor) -> Tensor:
            return block(x)[:, 0]

        run = forward_and_backward(work, (FRAMES, 50, 768))

        def run_and_clear() -> None:
            run()
            base.zero_grad()

        return run_and_clear

    return by(base), by(LastBlock(base))


def optimizer() -> Pair:
    """Time SGD."""

    def sgd(fused: bool) -> Callable[[], object]:
        weights = nn.Parameter(torch.zeros(TRAINED))
        weights.grad = torch.zeros(TRAINED)
        return torch.optim.SGD(
            [weights], lr=1e-5, momentum=0.9, weight_decay=1e-4, fused=fused
        ).step

    return sgd(False), sgd(True)


def reduction() -> Pair:
    """Time how gradients of one rank are reduced: by DeepSpeed, and here."""
    gradients = [torch.zeros(n) for n in (2_110_464, TRAINED - 2_110_464)]

    def in_one_piece() -> None:
        flat = torch.cat(gradients)
        flat.copy_(flat.to(BF16))
        for own, part in zip(gradients, flat.split([len(g) for g in gradients]), strict=True):
            own.copy_(part)

    return in_one_piece, lambda: None


def kept() -> Pair:
    """Time how float32 gradients are written: by DeepSpeed, and here."""
    own, given = torch.zeros(TRAINED), torch.zeros(TRAINED, dtype=BF16)
    pairs = list(zip(own.split(768 * 3072), given.split(768 * 3072), strict=True))

    def clear_and_add() -> None:
        own.zero_()
        for to, new in pairs:
            to.add_(new.to(torch.float32))
        own.zero_()

    def write_over() -> None:
        for to, new in pairs:
            to.copy_(new)

    return clear_and_add, write_over


def text() -> Pair:
    """Time the frozen text tower of ViT-B/32 on seven classes.

    Over all 77 tokens, and over as many as the longest text has.
    """
    _, tower, _ = load_backbone("ViT-B-32-quickgelu", "none", 224)
    tower = tower.to(BF16).requires_grad_(False)
    eot = torch.full((7,), 29)
    shapes = [(7, n, 512) for n in (77, 30)]
    before, here = (forward_and_backward(lambda x: tower(x, eot), shape) for shape in shapes)
    return before, here


PARTS: dict[str, tuple[str, Callable[[], Pair], int]] = {
    "patch embedding: a convolution; one matrix product": (
        "a sixth of the backward pass",
        patches,
        1,
    ),
    "attention of 12 blocks, 50 tokens: fused; plain products": (
        "a quarter of the backward pass",
        lambda: attention(50, FRAMES),
        12,
    ),
    "attention of 12 blocks, 197 tokens: fused; plain products": (
        "as at 50 tokens",
        lambda: attention(197, FRAMES),
        12,
    ),
    "attention of 12 blocks in a test, 50 tokens: torch's parts; fused": (
        "half",
        lambda: attention(50, FRAMES, False),
        12,
    ),
    "attention of 12 blocks, 50 tokens: derived by torch; heads laid out once": (
        "a third",
        heads,
        12,
    ),
    "layers of 12 blocks: torch's; bias added by the product, "
    "weight gradients on transposed copies": (
        "a tenth",
        layers,
        12,
    ),
    "QuickGELU of 12 blocks: as written; by silu": (
        "two of five passes over the numbers",
        gelu,
        12,
    ),
    "MLPs of 12 blocks: QuickGELU's two factors by themselves; in the layers' products": (
        "two more passes",
        factors,
        12,
    ),
    "last block: every token through all of it; the class token alone after attention": (
        "three quarters of a block",
        last_block,
        1,
    ),
    "SGD: operation by operation; fused": ("three of four passes over the weights", optimizer, 1),
    "float32 gradients: cleared twice and added to; written over": ("two thirds", kept, 1),
    "gradients of one rank: reduced in one piece; left alone": (
        "four passes over the gradients",
        reduction,
        1,
    ),
    "text tower: 77 tokens; 30": ("three fifths", text, 1),
}


def main() -> None:
    """Time all parts and print the results as JSON."""
    seen: dict[str, Any] = {}
    for name, (predicted, make, times) in PARTS.items():
        pair, taken = make(), ([], [])
        for _ in range(ROUNDS + 1):
            for work, seconds in zip(pair, taken, strict=True):
                begin = time.perf_counter()
                work()
                seconds.append(times * (time.perf_counter() - begin))
        before, here = (statistics.median(own[1:]) for own in taken)
        seen[name] = {"predicted": predicted, "before": before, "here": here}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
