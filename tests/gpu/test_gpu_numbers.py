"""A GPU computes the same numbers as the CPU, to rounding.

Compared are the authors' training, and the parts that run differently on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dfer_dist.config.schema import AugmentConfig, DataConfig
from dfer_dist.data.loading import augmentation as augment
from dfer_dist.data.loading.augmentation import sample_params, stack_params
from dfer_dist.data.loading.device import DevicePrefetcher
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.mixing import mix_, sample_mix
from dfer_dist.data.loading.rand_augment import RandAugment
from dfer_dist.data.loading.sampler import all_clips, keyed_rng
from dfer_dist.data.shards.index import Index
from dfer_dist.models.attention import attend
from dfer_dist.models.cpu_kernels import FusedQuickGELU, PatchEmbedding
from tests.helpers.models.golden import check_trajectory_through_our_engine, golden
from tests.helpers.models.kernels import assert_equal_layers

pytestmark = pytest.mark.gpu

FLOAT32 = 1e-4
BF16 = 3e-2  # 8 significant bits: a rounding is 0.4 %, and a gradient has gone through several


@golden
def test_engine_follows_the_authors_trajectory(case: str, device: str, tmp_path: Path) -> None:
    """Six steps in float32, within the same 1e-4 as on the CPU."""
    check_trajectory_through_our_engine(case, device, tmp_path)


def in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize("length", [17, 50, 77, 577])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, FLOAT32), (torch.bfloat16, BF16)])
def test_attention_and_its_gradients(
    device: str, length: int, masked: bool, kind: torch.dtype, tolerance: float
) -> None:
    mask = torch.full((length, length), float("-inf"), device=device).triu(1) if masked else None

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(
            *(x.to(kind) for x in (q, k, v)), None if mask is None else mask.to(kind)
        ).float()

    inputs = torch.randn(3, 2, 4, length, 64, generator=torch.Generator().manual_seed(length)).to(
        device
    )
    assert_equal_layers(own, lambda q, k, v: in_parts(q, k, v, mask), *inputs, tolerance=tolerance)


@torch.no_grad()
def test_attention_of_the_towers_runs_in_the_flash_kernel(device: str) -> None:
    """With tensors as SelfAttention makes them; the kernel raises for what it does not support."""
    x = torch.randn(4, 50, 3, 12, 64, device=device).to(torch.bfloat16)
    q, k, v = x.permute(2, 0, 3, 1, 4)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, FLOAT32), (torch.bfloat16, BF16)])
def test_quick_gelu_and_patches(device: str, kind: torch.dtype, tolerance: float) -> None:
    gelu, conv = FusedQuickGELU(), nn.Conv2d(3, 24, 8, stride=8, bias=False).to(device)
    assert_equal_layers(
        lambda x: gelu(x.to(kind)).float(),
        QuickGELU(),
        4 * torch.randn(5, 7, 11, device=device),
        tolerance=tolerance,
    )
    patches = PatchEmbedding(conv).to(device)

    def own(x: Tensor) -> Tensor:
        rows, weight = x.to(kind), conv.weight.to(kind)
        return torch.func.functional_call(patches, {"weight": weight}, (rows,)).float()

    with torch.backends.cudnn.flags(
        allow_tf32=False
    ):  # the plain convolution must not be the coarser of the two
        assert_equal_layers(
            own,
            conv,
            torch.randn(2, 3, 32, 48, device=device),
            weights=(conv.weight,),
            tolerance=tolerance,
        )


@pytest.mark.parametrize("size", [64, 48])
def test_augmentation_is_equal_on_gpu_and_cpu(device: str, size: int) -> None:
    """Equal to one grey level, except for a few pixels next to edges under rotation."""
    config = AugmentConfig(brightness=0.5, rotation=15.0, crop_scale=0.5, flip=True)
    params = stack_params(
        sample_params(64, 64, config, keyed_rng("clip", 0, 0, str(i))) for i in range(20)
    )
    coarse = torch.randint(
        0, 256, (20 * 3, 3, 9, 9), generator=torch.Generator().manual_seed(0)
    ).float()
    frames = (
        F.interpolate(coarse, (64, 64), mode="bilinear")
        .to(torch.uint8)
        .view(20, 3, 3, 64, 64)
        .permute(0, 1, 3, 4, 2)
    )
    here, there = (augment.apply(frames.to(d), params, size).cpu().int() for d in ("cpu", device))
    apart = (here - there).abs()
    assert (apart > 1).float().mean() < 1e-2 and apart.float().mean() < 0.5
    still = params.clone()
    still[:, 1] = 0
    here, there = (augment.apply(frames.to(d), still, size).cpu().int() for d in ("cpu", device))
    assert (here - there).abs().max() <= 1


def test_rand_augment_and_mixing_are_equal_on_gpu_and_cpu(device: str) -> None:
    """Up to pixels at the edges of what is turned; the GPU's own generator is neither used nor set."""
    coarse = torch.randint(
        0, 256, (24 * 3, 3, 9, 9), generator=torch.Generator().manual_seed(0)
    ).float()
    clips = F.interpolate(coarse, (64, 64), mode="bilinear").to(torch.uint8).view(24, 3, 3, 64, 64)
    changes = RandAugment({i: i for i in range(24)}, operations=2, magnitude=14, erasing=0.5)
    config, rng = AugmentConfig(mixup=0.8, cutmix=1.0), keyed_rng("gpu")
    pairs = [sample_mix(64, config, rng) for _ in range(12)]
    seen = []
    for own in (clips.clone(), clips.clone().to(device)):
        before = torch.cuda.get_rng_state() if own.is_cuda else torch.empty(0)
        changes.apply_(own)
        mix_(own, pairs)
        assert not own.is_cuda or torch.equal(torch.cuda.get_rng_state(), before)
        seen.append(own.cpu().int())
    apart = (seen[0] - seen[1]).abs()
    assert (apart > 1).float().mean() < 2e-2 and (seen[0] != clips).float().mean() > 0.8


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_for_a_gpu_are_pinned(device: str, tiny_shards: Index, workers: int) -> None:
    torch.zeros(1, device=device)  # as the model does
    data = DataConfig(str(tiny_shards.root), num_frames=2, image_size=32, workers=workers)
    clips = all_clips(tiny_shards, tiny_shards.test_shards(1))
    for batch in evaluation_loader(tiny_shards, data, clips, batch=5):
        assert all(
            x.is_pinned() == (device == "cuda") for x in (batch.frames, batch.labels, batch.valid)
        )
        assert torch.equal(
            batch.pixels(torch.device(device)).cpu(), batch.pixels(torch.device("cpu"))
        )


def test_prefetched_batches_are_those_of_the_loader(device: str, tiny_shards: Index) -> None:
    """While the GPU is busy with products that take longer than the copies."""
    torch.zeros(1, device=device)  # as the model does
    data = DataConfig(str(tiny_shards.root), num_frames=2, image_size=32, workers=0)
    clips = all_clips(tiny_shards, tiny_shards.test_shards(1))
    expected = [
        (batch.keys, batch.pixels(torch.device("cpu")))
        for batch in evaluation_loader(tiny_shards, data, clips, batch=3)
    ]
    prefetcher = DevicePrefetcher(
        evaluation_loader(tiny_shards, data, clips, batch=3), torch.device(device)
    )
    busy = torch.ones(2048, 2048, device=device)
    for keys, pixels in expected:
        batch = next(prefetcher)
        own = prefetcher.pixels(batch).clone()
        busy = busy @ busy / 2048
        prefetcher.prefetch()
        assert batch.keys == keys and torch.equal(own.cpu(), pixels)
