"""Run dlib's convolutional face detector with torch: on a GPU if there is one.

The network has seven convolutions and slides a window of 80 x 80 pixels over a pyramid of the
image. It was trained with max-margin object detection (King, arXiv:1502.00046), finds turned,
tilted and covered faces better than dlib's HOG detector, and its weights are in the public domain.
dlib's own CPU code needs 20 times as long, and the packages of dlib have no CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import nms

# Channels of the input and of each convolution, and sizes and strides of their kernels.
_CHANNELS = (3, 16, 32, 32, 45, 45, 45, 1)
_KERNELS = (5, 5, 5, 5, 5, 5, 9)
_STRIDES = (2, 2, 2, 1, 1, 1, 1)

# How the file names the parameters of a convolution and of a batch normalization.
_CONVOLUTION, _NORMALIZATION = b"con_4", b"bn_con2"
_EPSILON = 1e-4

# Mean of the red, green and blue values that the network was trained with.
_MEAN = (122.782, 117.001, 104.298)

# Width of the sliding window; one output is of the pixels around 8 x + 14 of the input.
WINDOW_WIDTH = 80
_STEP, _FIRST = 8, 14

# Black pixels around each level of the pyramid, and the ratio of its sizes.
_PADDING = 11
_RATIO = (5, 6)

# Of two boxes that overlap by more (intersection over union) the one of the lower score is dropped.
_MAX_OVERLAP = 0.2


class Box(NamedTuple):
    """A detected face: the center and width of a square in pixels, and the detector's score."""

    x: float
    y: float
    width: float
    score: float


class CnnDetector:
    """The detector.

    Parameters
    ----------
    file : Path
        dlib's ``mmod_human_face_detector.dat``.
    """

    def __init__(self, file: Path) -> None:
        if parent_process() is not None:
            # worker processes share the cores
            torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = read_network(file.read_bytes()).to(self.device)
        self._network.to(memory_format=torch.channels_last)
        self._mean = torch.tensor(_MEAN, device=self.device)[:, None, None]

    @torch.inference_mode()
    def detect(self, image: np.ndarray, min_score: float = 0.0) -> list[Box]:
        """Return the faces in an image, uint8 [H, W, 3], RGB, of the highest score first.

        The smallest face is :data:`WINDOW_WIDTH` pixels wide.
        """
        pixels = torch.tensor(image, device=self.device)
        level = ((pixels.permute(2, 0, 1) - self._mean) / 256)[None]
        found = []
        # float32 convolutions, so that a GPU finds what a CPU does
        with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
            while min(level.shape[2:]) >= WINDOW_WIDTH - 2 * _PADDING:
                found.append(self._search_level(level, image.shape[1], min_score))
                size = [n * _RATIO[0] // _RATIO[1] for n in level.shape[2:]]
                level = F.interpolate(level, size, mode="bilinear", align_corners=False)
        boxes = torch.cat(found).cpu() if found else torch.empty(0, 4)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:3] / 2, boxes[:, :2] + boxes[:, 2:3] / 2], 1)
        kept = nms(corners, boxes[:, 3], _MAX_OVERLAP)
        return [Box(*box) for box in boxes[kept].tolist()]

    def _search_level(self, level: Tensor, width: int, min_score: float) -> Tensor:
        """Return the boxes, float32 [N, 4], in one level of the pyramid of an image."""
        scores = self._network(F.pad(level, (_PADDING,) * 4))[0, 0]
        rows, columns = torch.nonzero(scores > min_score, as_tuple=True)
        scale = width / level.shape[3]
        places = torch.stack([columns, rows], 1) * _STEP + _FIRST - _PADDING + 0.5
        widths = torch.full_like(rows, WINDOW_WIDTH)
        return torch.column_stack([places * scale, widths * scale, scores[rows, columns]])


def read_network(data: bytes) -> nn.Sequential:
    """Return the network in dlib's file; it maps float32 [1, 3, H, W] to scores [1, 1, h, w].

    Raises
    ------
    ValueError
        If the file holds another network.
    """
    layers: list[nn.Module] = []
    convolutions = _read_arrays(data, _CONVOLUTION)
    normalizations = _read_arrays(data, _NORMALIZATION)
    shapes = zip(_CHANNELS, _CHANNELS[1:], _KERNELS, _STRIDES, strict=False)
    for (channels, filters, kernel, stride), (values,) in zip(shapes, convolutions, strict=True):
        padding = kernel // 2 if stride == 1 else 0
        layer = nn.Conv2d(channels, filters, kernel, stride, padding).eval()
        weight, bias = values.split([filters * channels * kernel**2, filters])
        layer.load_state_dict({"weight": weight.view(filters, channels, kernel, -1), "bias": bias})
        if filters > 1:
            parameters, _, _, mean, variance = next(normalizations)
            norm = nn.BatchNorm2d(filters, _EPSILON).eval()
            weight, bias = parameters.split(filters)
            running = {"running_mean": mean, "running_var": variance}
            norm.load_state_dict({"weight": weight, "bias": bias, **running}, strict=False)
            layers += [fuse_conv_bn_eval(layer, norm), nn.ReLU(inplace=True)]
        else:
            layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False)


def _read_arrays(data: bytes, name: bytes) -> Iterator[list[Tensor]]:
    """Yield the arrays of each layer of a name: one, or those of a normalization.

    An array is its version (2), four sizes and little-endian float32 numbers. A normalization has
    its parameters, where the two halves of these are, and mean and variance of a batch and of all.
    """
    position = data.find(name)
    while position >= 0:
        position += len(name)
        arrays = []
        for number in range(5 if name == _NORMALIZATION else 1):
            if number == 1:
                _, position = _read_integers(data, position, 10)
            (version, *sizes), position = _read_integers(data, position, 5)
            end = position + 4 * int(np.prod(sizes))
            if version != 2:
                raise ValueError(f"an array of version {version}")
            values = np.frombuffer(data[position:end], "<f4").astype(np.float32)
            arrays.append(torch.from_numpy(values))
            position = end
        yield arrays
        position = data.find(name, position)


def _read_integers(data: bytes, position: int, count: int) -> tuple[list[int], int]:
    """Return integers, each behind its number of bytes, and the position behind them."""
    values = []
    for _ in range(count):
        start = position + 1
        position = start + (data[position] & 15)
        values.append(int.from_bytes(data[start:position], "little"))
    return values, position
