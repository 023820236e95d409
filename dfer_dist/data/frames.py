"""Which frames of a clip are read, and what is done to them before the model sees them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dfer_dist.config import AugmentConfig

_CROP_TRIES = 10


def sample_random(frames: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Training's choice: one frame at random from each of ``wanted`` equal segments (TSN, Wang et al., ECCV 2016).

    As in DFER-CLIP: segments have a whole number of frames, counted from the start, so that what is left over at the end
    is never drawn; a clip shorter than ``wanted`` gives all its frames and repeats the last one.

    Returns
    -------
    ndarray of int64 [wanted]
        Rising frame numbers.
    """
    segment = frames // wanted
    if segment > 0:
        return np.arange(wanted) * segment + rng.integers(segment, size=wanted)
    return _pad(frames, wanted)


def sample_centres(frames: int, wanted: int) -> np.ndarray:
    """Testing's choice: the middle of each of ``wanted`` equal segments; a shorter clip repeats its last frame."""
    if frames > wanted:
        tick = frames / wanted
        return (tick / 2 + tick * np.arange(wanted)).astype(np.int64)
    return _pad(frames, wanted)


def _pad(frames: int, wanted: int) -> np.ndarray:
    return np.minimum(np.arange(wanted), frames - 1)


def to_clip(frames: list[np.ndarray], size: int) -> Tensor:
    """Stack decoded frames and bring them to a square.

    Parameters
    ----------
    frames : list of uint8 array [H, W, 3]
        All of one size.
    size : int
        Side of the square, pixels.

    Returns
    -------
    Tensor, uint8 [T, 3, size, size]

    Raises
    ------
    ValueError
        If the frames differ in size.
    """
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    if clip.shape[-2:] != (size, size):
        clip = F.resize(clip, [size, size], InterpolationMode.BILINEAR, antialias=True)
    return clip.contiguous()


def augment(frames: list[np.ndarray], size: int, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Stack decoded frames with one random change for all of them, as in DFER-CLIP's released training.

    Brightness, rotation, a crop of random area and of an aspect between 3/4 and 4/3, a mirror image: in this order, each as
    far as ``config`` asks for it.

    Returns
    -------
    Tensor, uint8 [T, 3, size, size]
    """
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    if config.brightness:
        clip = F.adjust_brightness(clip, rng.uniform(max(0.0, 1 - config.brightness), 1 + config.brightness))
    if config.rotation:
        clip = F.rotate(clip, rng.uniform(-config.rotation, config.rotation))
    if config.crop_scale < 1:
        top, left, height, width = _crop_box(clip.shape[-2], clip.shape[-1], config.crop_scale, rng)
        clip = F.resized_crop(clip, top, left, height, width, [size, size], InterpolationMode.BILINEAR, antialias=True)
    elif clip.shape[-2:] != (size, size):
        clip = F.resize(clip, [size, size], InterpolationMode.BILINEAR, antialias=True)
    if config.flip and rng.random() < 0.5:
        clip = F.horizontal_flip(clip)
    return clip.contiguous()


def _crop_box(height: int, width: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a crop; the whole frame if no draw fits."""
    for _ in range(_CROP_TRIES):
        area = rng.uniform(scale, 1) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:  # so that wide and tall crops are as frequent: the aspect's draw favours wide ones
            w, h = h, w
        if w <= width and h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width
