from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dfer_dist.config import AugmentConfig
from dfer_dist.data.frames import _crop_box, augment, sample_centres, sample_random, to_clip
from dfer_dist.data.plan import keyed_rng

OFF = {"crop_scale": 1.0, "flip": False, "brightness": 0.0, "rotation": 0.0}


def rng(n: int = 0) -> np.random.Generator:
    return np.random.default_rng(n)


def picture(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth, without symmetry."""
    noise = Image.fromarray(rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("frames", "wanted", "expected"),
    [  # worked out by hand after the released code of DFER-CLIP: int(tick / 2 + tick * i), tick = frames / wanted
        (144, 16, [4, 13, 22, 31, 40, 49, 58, 67, 76, 85, 94, 103, 112, 121, 130, 139]),
        (20, 16, [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19]),
        (16, 16, list(range(16))),
        (17, 16, list(range(8)) + list(range(9, 17))),
        (11, 16, [*range(11), 10, 10, 10, 10, 10]),
        (5, 2, [1, 3]),
        (7, 1, [3]),
        (1, 4, [0, 0, 0, 0]),
    ],
)
def test_centres_are_the_published_ones(frames: int, wanted: int, expected: list[int]) -> None:
    assert sample_centres(frames, wanted).tolist() == expected


@pytest.mark.parametrize(
    ("frames", "wanted", "first", "last"),
    [  # per segment the first and last frame that may be drawn
        (144, 16, [9 * i for i in range(16)], [9 * i + 8 for i in range(16)]),
        (33, 16, [2 * i for i in range(16)], [2 * i + 1 for i in range(16)]),  # frame 32 is never drawn
        (20, 16, list(range(16)), list(range(16))),  # segments of one frame: nothing is left to chance
        (16, 16, list(range(16)), list(range(16))),
        (11, 16, [*range(11), 10, 10, 10, 10, 10], [*range(11), 10, 10, 10, 10, 10]),
        (1, 4, [0] * 4, [0] * 4),
        (7, 1, [0], [6]),
    ],
)
def test_random_frames_fill_the_published_segments(frames: int, wanted: int, first: list[int], last: list[int]) -> None:
    generator = rng()
    draws = np.array([sample_random(frames, wanted, generator) for _ in range(300)])
    assert draws.min(0).tolist() == first and draws.max(0).tolist() == last
    for i in range(wanted):
        assert set(draws[:, i]) == set(range(first[i], last[i] + 1))


def test_a_clip_of_the_right_size_is_stacked_as_it_is() -> None:
    frames = [picture(32, 32, seed=i) for i in range(3)]
    clip = to_clip(frames, 32)
    assert clip.shape == (3, 3, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous()
    assert np.array_equal(clip.permute(0, 2, 3, 1).numpy(), np.stack(frames))
    assert torch.equal(augment(frames, 32, AugmentConfig(**OFF), rng()), clip)


@pytest.mark.parametrize("size", [24, 64])
def test_resizing_is_that_of_the_published_code(size: int) -> None:
    ours = to_clip([picture()], size)[0].permute(1, 2, 0).numpy().astype(int)
    pillow = np.asarray(Image.fromarray(picture()).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - pillow).max() <= 1
    assert torch.equal(augment([picture()], size, AugmentConfig(**OFF), rng()), to_clip([picture()], size))


def test_frames_of_different_sizes_are_refused() -> None:
    for act in (lambda f: to_clip(f, 32), lambda f: augment(f, 32, AugmentConfig(), rng())):
        with pytest.raises(ValueError, match="shape"):
            act([picture(), picture(40, 47)])


def test_one_draw_serves_all_frames_of_a_clip() -> None:
    config = AugmentConfig(crop_scale=0.08, flip=True, brightness=0.5, rotation=10)
    clips = [augment([picture()] * 5, 32, config, rng(i)) for i in range(20)]
    for clip in clips:
        assert clip.shape == (5, 3, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous()
        assert torch.equal(clip, clip[:1].expand(5, -1, -1, -1))
    assert len({clip.numpy().tobytes() for clip in clips}) == 20
    assert torch.equal(augment([picture()] * 5, 32, config, rng(7)), clips[7])


def test_every_other_clip_is_mirrored() -> None:
    plain = to_clip([picture()], 32)
    clips = [augment([picture()], 32, AugmentConfig(**OFF | {"flip": True}), rng(i)) for i in range(200)]
    mirrored = [torch.equal(c, plain.flip(-1)) for c in clips]
    assert all(m or torch.equal(c, plain) for m, c in zip(mirrored, clips, strict=True))
    assert 70 < sum(mirrored) < 130


def test_brightness_and_rotation_stay_in_their_range() -> None:
    grey = [np.full((32, 32, 3), 100, np.uint8)]
    levels = [int(augment(grey, 32, AugmentConfig(**OFF | {"brightness": 0.5}), rng(i))[0, 0, 0, 0]) for i in range(200)]
    assert 49 <= min(levels) < 60 and 140 < max(levels) <= 150
    corners = [augment(grey, 32, AugmentConfig(**OFF | {"rotation": 4.0}), rng(i)) for i in range(20)]
    for clip in corners:  # what is turned in from outside is black, and at four degrees there is little of it
        assert set(clip.unique().tolist()) <= {0, 100} and (clip == 0).float().mean() < 0.1
        assert (clip[..., 8:24, 8:24] == 100).all()
    assert any((clip == 0).any() for clip in corners)


def test_crops_are_those_of_the_published_code() -> None:
    generator = rng()
    boxes = np.array([_crop_box(200, 200, 0.08, generator) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 200).all() and (left + width <= 200).all()
    area, aspect = height * width / 200**2, width / height
    assert 0.075 < area.min() < 0.1 and area.max() > 0.95
    assert 0.73 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.37  # 3/4 to 4/3, in whole pixels
    assert abs((width > height).mean() - (width < height).mean()) < 0.06  # wide and tall alike
    assert abs((top / (201 - height)).mean() - 0.5) < 0.03 and abs((left / (201 - width)).mean() - 0.5) < 0.03


def test_a_frame_that_no_crop_fits_is_taken_whole() -> None:
    assert _crop_box(2, 400, 0.9, rng()) == (0, 0, 2, 400)
    assert augment([picture(2, 400)], 32, AugmentConfig(crop_scale=0.9), rng()).shape == (1, 3, 32, 32)


def test_augmentation_draws_are_pinned() -> None:
    """Finished runs must be repeatable with later versions: another order of draws breaks all of them."""
    generator = keyed_rng("clip", 0, 0, "00001")
    assert sample_random(144, 4, generator).tolist() == [10, 42, 77, 123]
    assert _crop_box(224, 224, 0.08, generator) == (64, 102, 114, 111)
