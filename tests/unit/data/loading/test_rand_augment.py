"""RandAugment and random erasing: torchvision's operations, one draw for all frames of a clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import v2

from dfer_dist.config.schema import AugmentConfig, DataConfig
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.rand_augment import RandAugment
from dfer_dist.data.loading.sampler import EpochPlan, all_clips, keyed_rng
from dfer_dist.data.shards.index import Index
from tests.helpers.data.loaders import Row, rows, settings

SEEDS = {0: 3, 1: 2**63 - 1, 3: 0}


def noise(count: int = 4, frames: int = 3) -> torch.Tensor:
    """Clips uint8 [b, T, 3, 24, 24] whose frames are all the same."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(1, 256, (count, 1, 3, 24, 24), dtype=torch.uint8, generator=generator)
    return picture.repeat(1, frames, 1, 1, 1)


@pytest.mark.parametrize(("operations", "erasing"), [(2, 0.0), (0, 1.0), (3, 0.5)])
def test_clips_change_as_by_torchvision_with_their_seed(operations: int, erasing: float) -> None:
    clips, before = noise(), torch.get_rng_state()
    RandAugment(SEEDS, operations, 9, erasing).apply_(clips)
    assert torch.equal(torch.get_rng_state(), before), "other samples must not depend on it"
    for i, clip in enumerate(noise()):
        if i in SEEDS:
            torch.manual_seed(SEEDS[i])
            clip = v2.RandAugment(operations, 9)(clip)
            clip = v2.RandomErasing(erasing)(clip)
        assert torch.equal(clips[i], clip)
        assert torch.equal(clips[i], clips[i, :1].expand_as(clips[i])), "frames differ"
    assert torch.equal(clips[2], noise()[2])
    assert not torch.equal(clips[0], noise()[0])


def test_magnitude_is_passed_on() -> None:
    weak, strong = noise(), noise()
    for magnitude, clips in ((0, weak), (30, strong)):
        RandAugment(dict.fromkeys(range(4), 8), 3, magnitude, 0.0).apply_(clips)
    original = noise().float()
    assert (weak - original).abs().mean() < (strong - original).abs().mean()


def training(index: Index, data: DataConfig, world: int, start: int = 0) -> list[Row]:
    """Clips of the first epoch from step ``start``, in the order of steps and lanes."""
    plan = EpochPlan(all_clips(index, range(len(index.shards))), 3, 0, 8, 512)
    ranks = [
        rows(
            train_loader(
                index,
                data,
                plan,
                epochs=1,
                start=(0, start),
                rank=rank,
                world_size=world,
                micro_batch=8 // world,
            )
        )
        for rank in range(world)
    ]
    return [clip for step in zip(*ranks, strict=True) for batch in step for clip in batch]


def test_seeds_are_drawn_after_all_others(tiny_shards: Index) -> None:
    """So the clips are those of a run without, then changed with the next number of their stream."""
    augment = AugmentConfig(crop_scale=1, flip=False, brightness=0.3, rotation=5)
    plain = training(tiny_shards, settings(augment=augment), 1)
    wanted = replace(augment, rand_augment=2, rand_magnitude=14, erasing=0.5)
    changed = training(tiny_shards, settings(augment=wanted), 1)
    assert len(changed) == 56
    for before, after in zip(plain, changed, strict=True):
        rng = keyed_rng("clip", 3, 0, before.key)
        count = int(before.key) * 11 % 28 + 3
        if count >= 4:
            rng.integers(count // 4, size=4)
        rng.uniform(0.7, 1.3), rng.uniform(-5, 5)
        pixels = torch.frombuffer(bytearray(before.pixels), dtype=torch.uint8)
        clip = pixels.view(1, 4, 3, 24, 24)
        RandAugment({0: int(rng.integers(2**63))}, 2, 14, 0.5).apply_(clip)
        assert (after.key, after.label) == (before.key, before.label)
        assert after.pixels == clip.numpy().tobytes()
    assert sum(a != b for a, b in zip(plain, changed, strict=True)) > 45


@pytest.mark.parametrize(("world", "start"), [(2, 0), (4, 0), (1, 3), (2, 5)])
def test_pixels_are_independent_of_ranks_and_resuming(
    tiny_shards: Index, world: int, start: int
) -> None:
    augment = AugmentConfig(rand_augment=2, erasing=0.5)
    whole = training(tiny_shards, settings(augment=augment), 1)
    assert training(tiny_shards, settings(augment=augment), world, start) == whole[8 * start :]
