"""Training augmentation and resizing, on whole batches, on the device that computes.

A loader worker samples the parameters of each clip; :func:`apply` does the rest on the batch. All
frames of a clip share one set of parameters. The steps are those of DFER-CLIP's released training
code: brightness, rotation, a crop of random area and of an aspect ratio between 3/4 and 4/3, and a
horizontal flip, each as far as the configuration asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as NF
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dfer_dist.config.schema import AugmentConfig

_CROP_TRIES = 10
# Largest side of a test crop, as a part of the frame's longer side: 224 of 256 pixels, which timm
# crops in a test too.
_TEST_CROP = 7 / 8
# Clips per chunk: their floating-point copies stay in a processor's caches, or use up to 0.3 GB of
# a GPU at 16 frames of 224 x 224.
_CHUNK_SIZE = {"cpu": 2, "cuda": 16}


class AugmentParams(NamedTuple):
    """What :func:`apply` does to one clip; a row of the tensor that :func:`stack_params` makes.

    ``brightness`` is a factor, ``angle`` in degrees counter-clockwise; the crop's ``top``,
    ``left``, ``height`` and ``width`` are in pixels of the clip's frames.
    """

    brightness: float
    angle: float
    top: float
    left: float
    height: float
    width: float
    flip: bool

    @classmethod
    def identity(cls, height: int, width: int) -> AugmentParams:
        """Return the parameters of a clip that is resized and nothing else."""
        return cls(1, 0, 0, 0, height, width, flip=False)


class SpatialView(NamedTuple):
    """The part of its frames that a test sees of a clip.

    ``place`` is that of a square crop along the longer side, from 0 to 1, or None for the whole
    frame; ``mirrored`` flips it.
    """

    place: float | None = None
    mirrored: bool = False

    def params(self, height: int, width: int) -> AugmentParams:
        """Return the parameters of a clip with frames of ``height`` x ``width`` pixels.

        A crop has the shorter side of the frame (Wang et al., "Non-local Neural Networks", CVPR
        2018), but at most 7/8 of the longer one: crops of a square would all be the same. It is
        centred along the shorter side.
        """
        whole = AugmentParams.identity(height, width)._replace(flip=self.mirrored)
        if self.place is None:
            return whole
        side = min(height, width, round(_TEST_CROP * max(height, width)))
        left = round(self.place * (max(height, width) - side))
        top = (min(height, width) - side) // 2
        if height > width:
            top, left = left, top
        return whole._replace(top=top, left=left, height=side, width=side)


def spatial_views(crops: int, mirror: bool) -> tuple[SpatialView, ...]:
    """Return the spatial views of a test: ``crops`` of them, with ``mirror`` each flipped too.

    A single crop is the whole frame; several are spread from one end of the longer side to the
    other.
    """
    views = [SpatialView()]
    if crops > 1:
        views = [SpatialView(place=crop / (crops - 1)) for crop in range(crops)]
    if mirror:
        views += [view._replace(mirrored=True) for view in views]
    return tuple(views)


def sample_params(
    height: int, width: int, config: AugmentConfig, rng: np.random.Generator
) -> AugmentParams:
    """Sample the parameters of a training clip with frames of ``height`` x ``width`` pixels."""
    params = AugmentParams.identity(height, width)
    if config.brightness:
        low, high = max(0.0, 1 - config.brightness), 1 + config.brightness
        params = params._replace(brightness=rng.uniform(low, high))
    if config.rotation:
        params = params._replace(angle=rng.uniform(-config.rotation, config.rotation))
    if config.crop_scale < 1:
        top, left, h, w = _sample_box(height, width, config.crop_scale, rng)
        params = params._replace(top=top, left=left, height=h, width=w)
    if config.flip:
        params = params._replace(flip=rng.random() < 0.5)
    return params


def stack_params(params: Iterable[AugmentParams]) -> Tensor:
    """Return the parameters of a batch, float32 [b, 7], in the order of their fields."""
    return torch.tensor(list(params), dtype=torch.float32)


def apply(frames: Tensor, params: Tensor, size: int) -> Tensor:
    """Augment clips and resize them to squares.

    Parameters
    ----------
    frames : uint8 [b, T, H, W, 3]
    params : float32 [b, 7], on the CPU
        As of :func:`stack_params`.
    size : int
        Side of the square, pixels.

    Returns
    -------
    uint8 [b, T, 3, size, size]
        On the device of ``frames``.
    """
    chunk = _CHUNK_SIZE[frames.device.type]
    chunks = zip(frames.split(chunk), params.split(chunk), strict=True)
    return torch.cat([_apply(part.permute(0, 1, 4, 2, 3), own, size) for part, own in chunks])


def _apply(x: Tensor, params: Tensor, size: int) -> Tensor:
    """Map [b, T, 3, H, W] to [b, T, 3, size, size].

    Steps that no clip of the batch needs are left out, which changes no pixel.
    """
    # columns in the order of AugmentParams
    brightness, angle = params[:, 0], params[:, 1]
    box, flip = params[:, 2:6], params[:, 6] > 0
    if (brightness != 1).any():
        bright = x * _to_device_of(x, brightness).view(-1, 1, 1, 1, 1)
        # truncates, as Pillow does
        x = bright.clamp_(max=255).to(torch.uint8)
    if angle.any():
        x = _rotate(x, angle)
    height, width = x.shape[-2:]
    if height != size or width != size or (box != box.new_tensor([0, 0, height, width])).any():
        resample = _resample_clips if x.device.type == "cpu" else _resample
        return resample(x, box, flip, size)
    if flip.any():
        x = torch.where(_to_device_of(x, flip).view(-1, 1, 1, 1, 1), x.flip(-1), x)
    return x.contiguous()


def _to_device_of(x: Tensor, values: Tensor) -> Tensor:
    """Copy a few numbers to the device of ``x`` without waiting for what it computes."""
    return values.to(x.device, non_blocking=True)


def _rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each clip about its centre, counter-clockwise, by nearest neighbour, filled black."""
    height, width = x.shape[-2:]
    radians = torch.deg2rad(degrees)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    planes = x.flatten(1, 2).float()
    grid = NF.affine_grid(_to_device_of(x, theta), list(planes.shape), align_corners=False)
    rotated = NF.grid_sample(
        planes, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return rotated.to(torch.uint8).view_as(x)


def _resample_clips(x: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop and resize one clip after the other.

    The CPU's kernel for uint8 took a twentieth of the time of :func:`_resample`.
    """
    out = x.new_empty(*x.shape[:3], size, size)
    crops = box.int().tolist()
    for clip, target, crop, flipped in zip(x, out, crops, flip.tolist(), strict=True):
        resized = F.resized_crop(
            clip, *crop, [size, size], InterpolationMode.BILINEAR, antialias=True
        )
        target.copy_(resized.flip(-1) if flipped else resized)
    return out


def _resample(
    x: Tensor, box: Tensor, flip: Tensor, size: int, dtype: torch.dtype = torch.float16
) -> Tensor:
    """Crop and resize all clips at once, as two products with matrices of weights.

    Equal to :func:`_resample_clips` up to rounding, without a kernel launch for each clip. float16
    holds pixels, whole numbers up to 255, exactly; rounding of the weights and of the products
    between them costs a fifth of a grey level at most.
    """
    flip = _to_device_of(x, flip)
    # four numbers a clip: the matrices of weights are built on the device
    top, left, height, width = _to_device_of(x, box).unbind(1)
    rows = _interpolation_weights(top, height, x.shape[-2], size)
    columns = _interpolation_weights(left, width, x.shape[-1], size)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    rows, columns = (w.to(dtype)[:, None, None] for w in (rows, columns.mT))
    return (rows @ x.to(dtype) @ columns).round_().clamp_(0, 255).to(torch.uint8)


def _interpolation_weights(start: Tensor, length: Tensor, total: int, size: int) -> Tensor:
    """Return the weights of ``total`` pixels in ``size`` new ones.

    The new pixels cover ``length`` pixels from ``start``, both float32 [b]. Enlarging interpolates
    linearly between pixels; shrinking weighs all pixels under a triangle (antialiasing), as
    Pillow does.

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


def _sample_box(
    height: int, width: int, scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Sample top, left, height and width of a crop; the whole frame if no sampled crop fits."""
    for _ in range(_CROP_TRIES):
        area = rng.uniform(scale, 1) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # a uniform aspect ratio favours wide crops: this makes tall ones as frequent
        if rng.random() < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return top, left, h, w
    return 0, 0, height, width
