"""Training augmentation and resizing, on whole batches, on the device that computes.

A loader worker draws a few numbers a clip; :func:`apply` does the rest on the batch. One draw serves all frames of a clip.
The steps are those of DFER-CLIP's released training: brightness, rotation, a crop of random area and of an aspect between
3/4 and 4/3, a mirror image, each as far as the settings ask for it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as NF
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dfer_dist.config.schema import AugmentConfig

DRAWS = 7  # numbers a clip: factor of brightness; angle, degrees; top, left, height, width of the crop, pixels; mirrored or not
_CROP_TRIES = 10
# clips: their floating-point copies stay in a processor's caches, or take up to 0.3 GB of a GPU at 16 frames of 224 x 224
_AT_ONCE = {"cpu": 2, "cuda": 16}


def unchanged(height: int, width: int) -> list[float]:
    """Draws of a clip that is resized and nothing else."""
    return [1, 0, 0, 0, height, width, 0]


def draw(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> list[float]:
    """Draws of a training clip with frames of ``height`` x ``width`` pixels."""
    augment_params = unchanged(height, width)
    if config.brightness:
        augment_params[0] = rng.uniform(max(0.0, 1 - config.brightness), 1 + config.brightness)
    if config.rotation:
        augment_params[1] = rng.uniform(-config.rotation, config.rotation)
    if config.crop_scale < 1:
        augment_params[2:6] = _crop_box(height, width, config.crop_scale, rng)
    if config.flip:
        augment_params[6] = rng.random() < 0.5
    return augment_params


def apply(frames: Tensor, augment_params: Tensor, size: int) -> Tensor:
    """Change clips by their draws and bring them to squares.

    Parameters
    ----------
    frames : uint8 [b, T, H, W, 3]
    draws : float32 [b, 7], on the CPU
        Rows of :func:`draw` or :func:`unchanged`.
    size : int
        Side of the square, pixels.

    Returns
    -------
    uint8 [b, T, 3, size, size]
        On the device of ``frames``.
    """
    parts = zip(
        *(x.split(_AT_ONCE[frames.device.type]) for x in (frames, augment_params)), strict=True
    )
    return torch.cat([_apply(part.permute(0, 1, 4, 2, 3), own, size) for part, own in parts])


def _apply(x: Tensor, augment_params: Tensor, size: int) -> Tensor:
    """[b, T, 3, H, W] -> [b, T, 3, size, size]; what no clip needs is left out, which changes no pixel."""
    factor, angle, box, mirrored = (
        augment_params[:, 0],
        augment_params[:, 1],
        augment_params[:, 2:6],
        augment_params[:, 6] > 0,
    )
    if (factor != 1).any():
        bright = x * _sent(factor, x).view(-1, 1, 1, 1, 1)
        x = bright.clamp_(max=255).to(torch.uint8)  # cuts the fraction off, as Pillow does
    if angle.any():
        x = _rotate(x, angle)
    height, width = x.shape[-2:]
    if height != size or width != size or (box != box.new_tensor([0, 0, height, width])).any():
        return (
            _resample_clips(x, box, mirrored, size)
            if x.device.type == "cpu"
            else _resample(x, box, mirrored, size)
        )
    if mirrored.any():
        x = torch.where(_sent(mirrored, x).view(-1, 1, 1, 1, 1), x.flip(-1), x)
    return x.contiguous()


def _sent(few: Tensor, x: Tensor) -> Tensor:
    """A few numbers to the device of ``x``, without the host waiting for what that computes."""
    return few.to(x.device, non_blocking=True)


def _rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn each clip about its centre, counter-clockwise; the nearest pixel counts, and outside it is black."""
    height, width = x.shape[-2:]
    turn = torch.deg2rad(degrees)
    cos, sin, none = turn.cos(), turn.sin(), torch.zeros_like(turn)
    theta = torch.stack(
        [cos, -sin * height / width, none, sin * width / height, cos, none], 1
    ).view(-1, 2, 3)
    planes = x.flatten(1, 2).float()
    grid = NF.affine_grid(_sent(theta, x), list(planes.shape), align_corners=False)
    turned = NF.grid_sample(planes, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.to(torch.uint8).view_as(x)


def _resample_clips(x: Tensor, box: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Crop and resize, one clip after the other: the CPU's kernel for bytes took a twentieth of :func:`_resample`'s time."""
    out = x.new_empty(*x.shape[:3], size, size)
    for clip, place, (top, left, height, width), mirror in zip(
        x, out, box.int().tolist(), mirrored.tolist(), strict=True
    ):
        cut = clip[..., top : top + height, left : left + width]
        new = F.resize(cut, [size, size], InterpolationMode.BILINEAR, antialias=True)
        place.copy_(new.flip(-1) if mirror else new)
    return out


def _resample(
    x: Tensor, box: Tensor, mirrored: Tensor, size: int, dtype: torch.dtype = torch.float16
) -> Tensor:
    """Crop and resize all clips at once, as two products with matrices of weights.

    The same as :func:`_resample_clips` but for rounding, without a kernel for each clip. Pixels are whole numbers up to
    255, which float16 holds exactly; what it loses in the weights and in between is a fifth of a grey level at most.
    """
    mirrored = _sent(mirrored, x)
    top, left, height, width = _sent(box, x).unbind(
        1
    )  # a few numbers: the weights are made where they are needed
    rows = _weights(top, height, x.shape[-2], size)
    columns = _weights(left, width, x.shape[-1], size)
    columns = torch.where(mirrored.view(-1, 1, 1), columns.flip(1), columns)
    rows, columns = (w.to(dtype)[:, None, None] for w in (rows, columns.mT))
    return (rows @ x.to(dtype) @ columns).round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, total: int, size: int) -> Tensor:
    """What each of ``total`` pixels weighs in each of ``size`` new ones that cover ``length`` pixels from ``start``.

    Bilinear interpolation between neighbours where pixels get smaller, a triangle over all pixels that fall together where
    they get larger ("antialias"), as in Pillow; ``start`` and ``length`` are float32 [b].

    Returns
    -------
    float32 [b, size, total]
        Rows add up to 1.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    centre = start + (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(total, device=start.device).view(1, 1, -1) + 0.5
    weight = (1 - (pixel - centre).abs() / scale.clamp_min(1)).clamp_min(0)
    weight = weight * ((pixel > start) & (pixel < start + length))
    return weight / weight.sum(-1, keepdim=True)


def _crop_box(
    height: int, width: int, scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a crop; the whole frame if no draw fits."""
    for _ in range(_CROP_TRIES):
        area = rng.uniform(scale, 1) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if (
            rng.random() < 0.5
        ):  # so that wide and tall crops are as frequent: the aspect's draw favours wide ones
            w, h = h, w
        if w <= width and h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width
