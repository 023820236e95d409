"""What each faster part of a step gives, timed alone beside what it replaced, at the sizes of ViT-B/32 with 4 clips of 16 frames.

``python benchmarks/parts.py`` prints JSON: for each part ``before`` and ``here``, seconds of a forward and backward pass (medians of rounds in which the two take
turns), and ``predicted``, what was expected of it before it was built. ``make bench`` makes a table of it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dfer_dist.model.attention import attend
from dfer_dist.model.backbone import load_backbone
from dfer_dist.model.kernels import FusedQuickGELU, PatchEmbedding

ROUNDS = 7
BF16 = torch.bfloat16
FRAMES, TRAINED = 64, 89_988_352  # of a step; trained parameters of DFER-CLIP on ViT-B/32

Pair = tuple[Callable[[], object], Callable[[], object]]


def forward_and_backward(work: Callable[[Tensor], Tensor], shape: tuple[int, ...], train: bool = True) -> Callable[[], object]:
    x = torch.randn(shape, dtype=BF16, requires_grad=train)

    def run() -> None:
        with torch.set_grad_enabled(train):
            y = work(x)
        if train:
            y.backward(torch.ones_like(y))
            x.grad = None

    return run


def patches() -> Pair:
    conv = nn.Conv2d(3, 768, 32, stride=32, bias=False).to(BF16)
    shape = (FRAMES, 3, 224, 224)
    return forward_and_backward(conv, shape), forward_and_backward(PatchEmbedding(conv), shape)


def attention(length: int, batch: int, train: bool = True) -> Pair:
    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    def in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    def heads(work: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda qkv: work(*(x.transpose(1, 2) for x in qkv.unbind(2)))

    shape = (batch, length, 3, 12, 64)
    before = fused if train else in_parts
    return forward_and_backward(heads(before), shape, train), forward_and_backward(heads(attend), shape, train)


def gelu() -> Pair:
    shape = (FRAMES, 50, 3072)
    return forward_and_backward(QuickGELU(), shape), forward_and_backward(FusedQuickGELU(), shape)


def optimizer() -> Pair:
    def sgd(fused: bool) -> Callable[[], object]:
        weights = nn.Parameter(torch.zeros(TRAINED))
        weights.grad = torch.zeros(TRAINED)
        return torch.optim.SGD([weights], lr=1e-5, momentum=0.9, weight_decay=1e-4, fused=fused).step

    return sgd(False), sgd(True)


def reduction() -> Pair:
    """DeepSpeed's way of reducing over one rank, and ours."""
    gradients = [torch.zeros(n) for n in (2_110_464, TRAINED - 2_110_464)]

    def in_one_piece() -> None:
        flat = torch.cat(gradients)
        flat.copy_(flat.to(BF16))
        for own, part in zip(gradients, flat.split([len(g) for g in gradients]), strict=True):
            own.copy_(part)

    return in_one_piece, lambda: None


def text() -> Pair:
    """The frozen text tower of ViT-B/32 on seven classes: over all 77 tokens, and over as many as the longest text has."""
    _, tower, _ = load_backbone("ViT-B-32-quickgelu", "none", 224)
    tower = tower.to(BF16).requires_grad_(False)
    eot = torch.full((7,), 29)
    shapes = [(7, n, 512) for n in (77, 30)]
    return tuple(forward_and_backward(lambda x: tower(x, eot), shape) for shape in shapes)  # type: ignore[return-value]


PARTS: dict[str, tuple[str, Callable[[], Pair], int]] = {
    "patch embedding: a convolution; one matrix product": ("a sixth of the backward pass", patches, 1),
    "attention of 12 blocks, 50 tokens: fused; plain products": (
        "a quarter of the backward pass",
        lambda: attention(50, FRAMES),
        12,
    ),
    "attention of 12 blocks, 197 tokens: fused; plain products": ("as at 50 tokens", lambda: attention(197, FRAMES), 12),
    "attention of 12 blocks in a test, 50 tokens: torch's parts; fused": ("half", lambda: attention(50, FRAMES, False), 12),
    "QuickGELU of 12 blocks: as written; by silu": ("two of five passes over the numbers", gelu, 12),
    "SGD: operation by operation; fused": ("three of four passes over the weights", optimizer, 1),
    "gradients of one rank: reduced in one piece; left alone": ("four passes over the gradients", reduction, 1),
    "text tower: 77 tokens; 30": ("three fifths", text, 1),
}


def main() -> None:
    seen: dict[str, Any] = {}
    for name, (predicted, make, times) in PARTS.items():
        pair, taken = make(), ([], [])
        for _ in range(ROUNDS + 1):
            for work, own in zip(pair, taken, strict=True):
                begin = time.perf_counter()
                work()
                own.append(times * (time.perf_counter() - begin))
        before, here = (statistics.median(own[1:]) for own in taken)
        seen[name] = {"predicted": predicted, "before": before, "here": here}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
