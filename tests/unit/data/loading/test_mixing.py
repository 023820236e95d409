"""mixup and cutmix of pairs of clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import AugmentConfig, Config, DataConfig, split_batch
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.mixing import MixParams, mix_, mix_targets, sample_mix
from dfer_dist.data.loading.sampler import EpochPlan, all_clips, keyed_rng
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import Clip, ClipHandle, ClipReader, DamagedClip
from dfer_dist.utils.errors import UserError
from tests.helpers.data.loaders import settings

CPU = torch.device("cpu")
BOTH = AugmentConfig(mixup=0.8, cutmix=1.0)


def noise(count: int = 4, pictures: int = 2, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, pictures, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_mixup_is_the_rounded_weighted_mean() -> None:
    clips, before = noise(), noise().double()
    mix_(clips, [MixParams(0.3), MixParams(1.0)])
    for i in range(2):
        mean = 0.3 * before[i] + 0.7 * before[1 - i]
        assert (clips[i] - mean).abs().max() < 0.501
    assert torch.equal(clips[2:].double(), before[2:]), "a weight of 1 mixes nothing"


def test_cutmix_exchanges_a_box_of_all_pictures() -> None:
    clips, before = noise(), noise()
    mix_(clips, [MixParams(), MixParams(1 - 6 / 64, top=1, left=5, height=2, width=3)])
    assert torch.equal(clips[:2], before[:2])
    for own, other in ((2, 3), (3, 2)):
        want = before[own].clone()
        want[..., 1:3, 5:8] = before[other][..., 1:3, 5:8]
        assert torch.equal(clips[own], want)


def test_cutmix_weight_is_the_share_of_own_pixels() -> None:
    cuts = [sample_mix(8, AugmentConfig(cutmix=1.0), np.random.default_rng(i)) for i in range(300)]
    for cut in cuts:
        clips = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
        clips[1] = 1
        mix_(clips, [cut])
        assert clips[0].float().mean() == clips[1].eq(0).float().mean()
        assert clips[1].float().mean().item() == cut.weight
    weights = np.array([cut.weight for cut in cuts])
    assert 0 < weights.min() < 0.5 and weights.max() == 1 and len(set(weights)) > 10
    assert {cut.top for cut in cuts} > {0, 3} and any(cut.left + cut.width == 8 for cut in cuts)


def test_mixup_weights_have_the_beta_distribution() -> None:
    for alpha in (0.2, 1.0):
        rng, config = np.random.default_rng(0), AugmentConfig(mixup=alpha)
        drawn = [sample_mix(8, config, rng) for _ in range(4000)]
        assert all(mix.height == 0 for mix in drawn)
        # the mean of w (1 - w) is alpha / (4 alpha + 2)
        products = np.mean([mix.weight * (1 - mix.weight) for mix in drawn])
        assert products == pytest.approx(alpha / (4 * alpha + 2), rel=0.05)


def test_with_both_every_other_pair_is_cut() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([sample_mix(224, BOTH, rng).height > 0 for _ in range(2000)])
    assert share == pytest.approx(0.5, abs=0.03)


def test_sampled_values_are_pinned() -> None:
    """Finished runs must be repeatable with later versions: a change breaks all of them."""
    drawn = [sample_mix(224, BOTH, keyed_rng("clip", 0, 0, key)) for key in ("00007", "00002")]
    rounded = [(round(mix.weight, 9), *mix[1:]) for mix in drawn]
    assert rounded == [(0.05468145, 0, 0, 0, 0), (0.620455995, 84, 59, 138, 138)]


def test_targets_by_hand() -> None:
    weights = torch.tensor([0.25, 0.25, 1.0, 1.0])
    targets = mix_targets(torch.tensor([0, 2, 1, 1]), weights, 3)
    assert targets.tolist() == [[0.25, 0, 0.75], [0.75, 0, 0.25], [0, 1, 0], [0, 1, 0]]
    votes = torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    targets = mix_targets(votes, weights, 3)
    assert targets.tolist() == [[0.125, 0.125, 0.75], [0.375, 0.375, 0.25], [0, 1, 0], [1, 0, 0]]
    same = mix_targets(torch.tensor([1, 1]), torch.tensor([0.3, 0.3]), 3)
    assert same.tolist() == [[0, 1, 0]] * 2


def batches(
    index: Index, data: DataConfig, world: int = 1, micro: int | None = None
) -> list[list[Batch]]:
    """Batches by rank, of one epoch of 7 steps of 8 clips."""
    plan = EpochPlan(all_clips(index, range(len(index.shards))), 3, 0, 8, 512)
    return [
        list(
            train_loader(
                index,
                data,
                plan,
                epochs=1,
                rank=rank,
                world_size=world,
                micro_batch=micro or 8 // world,
            )
        )
        for rank in range(world)
    ]


def test_pairs_are_mixed_with_the_next_numbers_of_their_first_clip(tiny_shards: Index) -> None:
    off = AugmentConfig(crop_scale=1, flip=False, brightness=0.3)
    both = AugmentConfig(crop_scale=1, flip=False, brightness=0.3, mixup=0.8, cutmix=1.0)
    (plain,), (mixed,) = (batches(tiny_shards, settings(augment=a)) for a in (off, both))
    cuts = 0
    for before, after in zip(plain, mixed, strict=True):
        assert before.keys == after.keys and torch.equal(before.labels, after.labels)
        pixels = before.pixels(CPU)
        for i, mix in enumerate(after.mix):
            rng = keyed_rng("clip", 3, 0, after.keys[2 * i])
            count = int(after.keys[2 * i]) * 11 % 28 + 3
            if count >= 4:
                rng.integers(count // 4, size=4)
            rng.uniform(0.7, 1.3)
            assert mix == sample_mix(24, both, rng)
            cuts += mix.height > 0
        mix_(pixels, after.mix)
        assert torch.equal(after.pixels(CPU), pixels)
        assert before.own_weights is None and not before.mix
        weights = after.own_weights
        assert weights is not None and weights.dtype == torch.float32
        assert weights.tolist() == pytest.approx([m.weight for m in after.mix for _ in "ab"])
    assert 5 < cuts < 23


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 4), (2, 2), (4, 2)])
def test_mixtures_are_independent_of_ranks_and_micro_batches(
    tiny_shards: Index, world: int, micro: int
) -> None:
    data = settings(augment=BOTH)
    (whole,) = batches(tiny_shards, data)
    parts = batches(tiny_shards, data, world, micro)
    each = 8 // world // micro
    for step, want in enumerate(whole):
        own = [batch for rank in parts for batch in rank[step * each : (step + 1) * each]]
        assert torch.equal(torch.cat([b.pixels(CPU) for b in own]), want.pixels(CPU))
        assert [mix for b in own for mix in b.mix] == want.mix


def test_pair_with_a_damaged_clip_is_not_mixed(
    tiny_shards: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = settings(augment=AugmentConfig(crop_scale=1, flip=False, mixup=0.8))
    (intact,) = batches(tiny_shards, data)
    lost = intact[1].keys[5]
    decode = ClipReader.decode

    def decode_others(self: ClipReader, clip: ClipHandle, out: np.ndarray) -> Clip:
        if clip.row.key == lost:
            raise DamagedClip("shard", lost, "cut")
        return decode(self, clip, out)

    monkeypatch.setattr(ClipReader, "decode", decode_others)
    (batch,) = batches(tiny_shards, data)
    (plain,) = batches(tiny_shards, settings(augment=AugmentConfig(crop_scale=1, flip=False)))
    assert batch[1].mix == [*intact[1].mix[:2], MixParams(), intact[1].mix[3]]
    assert batch[1].valid.tolist() == [i != 5 for i in range(8)]
    pixels = batch[1].pixels(CPU)
    assert torch.equal(pixels[4], plain[1].pixels(CPU)[4]) and not pixels[5].any()
    assert batch[1].sources[4:6] == [[batch[1].keys[4]], [lost]]


def made_batch(mix: list[MixParams], modalities: int = 0) -> Batch:
    return Batch(
        frames=noise(4, 2 * (1 + modalities)).permute(0, 1, 3, 4, 2).contiguous(),
        labels=torch.arange(4),
        valid=torch.ones(4, dtype=torch.bool),
        keys=list("abcd"),
        lost=[],
        augment_params=torch.tensor([[1.0, 0, 0, 0, 8, 8, 0]] * 4),
        mix=mix,
        modalities=modalities,
    )


def test_modalities_are_mixed_like_frames() -> None:
    mix = [MixParams(0.4), MixParams(0.75, top=0, left=0, height=4, width=4)]
    want = made_batch([], modalities=1).pixels(CPU)
    mix_(want, mix)
    pixels = made_batch(mix, modalities=1).pixels(CPU)
    assert torch.equal(pixels, want)
    plain = made_batch([], modalities=1).pixels(CPU)
    assert (pixels != plain)[:2].flatten(2).float().mean(2).min() > 0.9
    assert (pixels != plain)[2:].flatten(2).any(2).all()


def test_sources_name_both_clips_of_a_mixture() -> None:
    assert made_batch([MixParams(0.4), MixParams()]).sources == [
        ["a", "b"],
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert made_batch([]).sources == [["a"], ["b"], ["c"], ["d"]]


def test_uneven_micro_batches_are_refused_only_with_mixing() -> None:
    config = Config()
    config.train.global_batch = 12
    assert split_batch(config, 4) == (3, 1)
    for name in ("mixup", "cutmix"):
        config.data.augment = AugmentConfig(**{name: 0.5})
        assert split_batch(config, 2) == (6, 1)
        with pytest.raises(UserError, match=r"on 4 ranks gives micro batches of 3 clips.*even"):
            split_batch(config, 4)
    config.train.micro_batch = 3
    with pytest.raises(UserError, match="micro batches of 3 clips"):
        split_batch(config, 2)
    config.train.micro_batch = 2
    assert split_batch(config, 2) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "data.augment.mixup=0.8 train.objective=both",
            "mixup=0.8: labels .*objective=both.*leave mixup out",
        ),
        ("data.augment.cutmix=1 train.objective=both", "cutmix=1: labels .*leave cutmix out"),
        (
            "data.augment.rand_augment=2 model.image=adapters model.modalities=[landmarks]",
            "landmarks would not follow",
        ),
        ("data.augment.rand_magnitude=31", "must be at least 0 and at most 30"),
        ("data.augment.erasing=1.5", "must be at least 0 and at most 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_config("demo", arguments.split())
    assert "\n" not in str(error.value)


def test_erasing_and_mixing_work_with_modalities() -> None:
    arguments = "data.augment.erasing=0.25 data.augment.mixup=0.8 model.image=adapters"
    config = load_config("demo", [*arguments.split(), "model.modalities=[landmarks]"])
    assert config.data.augment.mixes_clips
