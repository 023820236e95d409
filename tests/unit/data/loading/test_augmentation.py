"""Augmentation: that of DFER-CLIP's released code, on batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dfer_dist.config.schema import AugmentConfig
from dfer_dist.data.loading import augmentation as augment
from dfer_dist.data.loading.augmentation import (
    AugmentParams,
    _resample,
    _resample_clips,
    _sample_box,
    apply,
    sample_params,
    stack_params,
)
from dfer_dist.data.loading.frame_sampling import sample_random
from dfer_dist.data.loading.sampler import keyed_rng

OFF = {"crop_scale": 1.0, "flip": False, "brightness": 0.0, "rotation": 0.0}


ALL = AugmentConfig(crop_scale=0.08, flip=True, brightness=0.5, rotation=10)


def rng(n: int = 0) -> np.random.Generator:
    return np.random.default_rng(n)


def picture(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth, without symmetry."""
    noise = Image.fromarray(rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def clips(*pictures: np.ndarray, frames: int = 1) -> torch.Tensor:
    """uint8 [b, T, H, W, 3]; the frames of a clip are all the same picture."""
    return torch.from_numpy(np.stack(pictures))[:, None].repeat(1, frames, 1, 1, 1)


def change(frames: torch.Tensor, size: int, *params: AugmentParams) -> torch.Tensor:
    return apply(frames, stack_params(params), size)


def sample_many(
    count: int, config: AugmentConfig, height: int = 40, width: int = 48
) -> list[AugmentParams]:
    return [sample_params(height, width, config, rng(i)) for i in range(count)]


def by_torchvision(frame: np.ndarray, row: AugmentParams, size: int) -> torch.Tensor:
    """The published order of steps, each by torchvision, uint8 [3, S, S]."""
    image = torch.tensor(frame).permute(2, 0, 1)
    image = F.rotate(F.adjust_brightness(image, row.brightness), row.angle)
    box = (int(row.top), int(row.left), int(row.height), int(row.width))
    image = F.resized_crop(image, *box, [size, size], antialias=True)
    return F.horizontal_flip(image) if row.flip else image


def test_apply_identity_keeps_clips_of_the_right_size() -> None:
    frames = torch.stack([clips(picture(32, 32, seed=i), frames=3)[0] for i in range(2)])
    same = change(frames, 32, AugmentParams.identity(32, 32), AugmentParams.identity(32, 32))
    assert same.shape == (2, 3, 3, 32, 32) and same.dtype == torch.uint8 and same.is_contiguous()
    assert torch.equal(same, frames.permute(0, 1, 4, 2, 3))
    assert sample_params(32, 32, AugmentConfig(**OFF), rng()) == AugmentParams.identity(32, 32)


@pytest.mark.parametrize("size", [24, 64])
def test_apply_resizes_as_published(size: int) -> None:
    ours = (
        change(clips(picture()), size, AugmentParams.identity(40, 48))[0, 0]
        .permute(1, 2, 0)
        .numpy()
        .astype(int)
    )
    pillow = np.asarray(
        Image.fromarray(picture()).resize((size, size), Image.Resampling.BILINEAR)
    ).astype(int)
    assert np.abs(ours - pillow).max() <= 1


@pytest.mark.parametrize(
    "config", [ALL, AugmentConfig(), AugmentConfig(**OFF | {"brightness": 0.5, "rotation": 4.0})]
)
@pytest.mark.parametrize("size", [24, 64])
def test_apply_matches_published_steps(config: AugmentConfig, size: int) -> None:
    pictures, rows = [picture(seed=i) for i in range(40)], sample_many(40, config)
    batch = change(clips(*pictures), size, *rows)[:, 0].int()
    one_by_one = torch.stack(
        [by_torchvision(p, row, size) for p, row in zip(pictures, rows, strict=True)]
    ).int()
    off = (batch - one_by_one).abs()
    # a rotated pixel half-way between two may come from either: torchvision rounds differently
    assert (off > 1).float().mean() < 2e-3 and off.float().mean() < 0.2
    if not config.rotation:
        assert off.max() <= 1


@pytest.mark.parametrize("size", [24, 40, 64])
def test_apply_to_a_clip_is_independent_of_its_batch(size: int) -> None:
    """A loader worker and the device that computes give the same pixels."""
    frames, rows = clips(*(picture(seed=i) for i in range(20)), frames=2), sample_many(20, ALL)
    batch = change(frames, size, *rows)
    for i in range(20):
        assert torch.equal(batch[i : i + 1], change(frames[i : i + 1], size, rows[i]))


@pytest.mark.parametrize(("height", "width", "size"), [(40, 48, 24), (40, 48, 64), (224, 224, 224)])
def test_resample_on_gpu_path_matches_cpu_path(height: int, width: int, size: int) -> None:
    frames = clips(*(picture(height, width, seed=i) for i in range(6)), frames=2).permute(
        0, 1, 4, 2, 3
    )
    rows = stack_params(sample_many(6, AugmentConfig(), height, width))
    box, mirrored = rows[:, 2:6], rows[:, 6] > 0
    assert mirrored.any() and not mirrored.all()
    expected = _resample_clips(frames, box, mirrored, size).int()
    for dtype in (torch.float32, torch.float16):
        assert (_resample(frames, box, mirrored, size, dtype).int() - expected).abs().max() <= 1


def test_apply_changes_all_frames_of_a_clip_alike() -> None:
    frames = clips(picture(), frames=5)
    changed = [change(frames, 32, row) for row in sample_many(20, ALL)]
    for clip in changed:
        assert clip.shape == (1, 5, 3, 32, 32) and clip.is_contiguous()
        assert torch.equal(clip, clip[:, :1].expand(-1, 5, -1, -1, -1))
    assert len({clip.numpy().tobytes() for clip in changed}) == 20
    assert sample_params(40, 48, ALL, rng(7)) == sample_many(8, ALL)[7]


def test_sample_params_flips_half_of_the_clips() -> None:
    frames, plain = clips(*[picture(32, 32)] * 200), torch.tensor(picture(32, 32)).permute(2, 0, 1)
    changed = change(frames, 32, *sample_many(200, AugmentConfig(**OFF | {"flip": True}), 32, 32))[
        :, 0
    ]
    mirrored = [torch.equal(c, plain.flip(-1)) for c in changed]
    assert all(m or torch.equal(c, plain) for m, c in zip(mirrored, changed, strict=True))
    assert 70 < sum(mirrored) < 130


def test_sample_params_brightness_and_angle_stay_in_range() -> None:
    grey = clips(*[np.full((32, 32, 3), 100, np.uint8)] * 200)
    brightness = change(
        grey, 32, *sample_many(200, AugmentConfig(**OFF | {"brightness": 0.5}), 32, 32)
    )[:, 0, 0, 0, 0]
    assert 49 <= brightness.min() < 60 and 140 < brightness.max() <= 150
    white = change(
        clips(np.full((8, 8, 3), 255, np.uint8)),
        8,
        AugmentParams.identity(8, 8)._replace(brightness=1.5),
    )
    assert (white == 255).all()
    turned = change(
        grey[:20], 32, *sample_many(20, AugmentConfig(**OFF | {"rotation": 4.0}), 32, 32)
    )
    for clip in (
        turned
    ):  # what is turned in from outside is black, and at four degrees there is little of it
        assert set(clip.unique().tolist()) <= {0, 100} and (clip == 0).float().mean() < 0.1
        assert (clip[..., 8:24, 8:24] == 100).all()
    assert (turned == 0).any()


def test_sample_box_is_distributed_as_published() -> None:
    generator = rng()
    boxes = np.array([_sample_box(200, 200, 0.08, generator) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 200).all() and (left + width <= 200).all()
    area, aspect = height * width / 200**2, width / height
    assert 0.075 < area.min() < 0.1 and area.max() > 0.95
    assert 0.73 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.37  # 3/4 to 4/3, in whole pixels
    assert abs((width > height).mean() - (width < height).mean()) < 0.06  # wide and tall alike
    assert (
        abs((top / (201 - height)).mean() - 0.5) < 0.03
        and abs((left / (201 - width)).mean() - 0.5) < 0.03
    )


def test_sample_box_falls_back_to_the_whole_frame() -> None:
    assert _sample_box(2, 400, 0.9, rng()) == (0, 0, 2, 400)
    assert change(
        clips(picture(2, 400)), 32, sample_params(2, 400, AugmentConfig(crop_scale=0.9), rng())
    ).shape == (1, 1, 3, 32, 32)


def test_apply_keeps_the_order_of_many_clips() -> None:
    count = 2 * augment._CHUNK_SIZE["cpu"] + 1
    frames = clips(*(np.full((8, 8, 3), i, np.uint8) for i in range(count)))
    changed = change(frames, 16, *[AugmentParams.identity(8, 8)] * count)
    assert changed[:, 0, 0, 0, 0].tolist() == list(range(count))


def test_sample_params_values_are_pinned() -> None:
    """Finished runs must be repeatable with later versions: a change breaks all of them."""
    generator = keyed_rng("clip", 0, 0, "00001")
    assert sample_random(144, 4, generator).tolist() == [10, 42, 77, 123]
    params = sample_params(224, 224, AugmentConfig(brightness=0.5, rotation=4), generator)
    assert (round(params.brightness, 9), round(params.angle, 9)) == (0.688751928, -0.207319895)
    assert params[2:] == (25, 4, 118, 151, True)
