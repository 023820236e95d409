"""A face-parsing network that a person supplies: a TorchScript file, which brings its own code and weights.

It is called with frames, float32 [N, 3, H, W], RGB in 0..1, of any size; normalising and resizing are its own business. It gives scores, floating point [N, C, h, w], or labels,
integers [N, h, w], numbered as :data:`~dfer_dist.data.faces.parsing_maps.LABELS`; maps of another size than the frames are brought to it, the nearest pixel counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfer_dist.data.faces.parsing_maps import LABELS
from dfer_dist.utils.errors import UserError

_AT_ONCE = 8  # frames


def load_parser(file: Path) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """A function of frames, uint8 [H, W, 3] each, that gives their maps, uint8 [H, W] each. It runs on the GPU where there is one.

    Raises
    ------
    UserError
        If the file is no TorchScript; by the function, if the network fails or gives something else than scores or labels.
    """
    if parent_process() is not None:
        torch.set_num_threads(1)  # workers share the cores
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch would have other formats; networks come in this one
        try:
            network = torch.jit.load(str(file), map_location=device).eval()
        except (RuntimeError, ValueError) as e:
            raise UserError(
                f"{file} is no TorchScript file: save the network with torch.jit.save"
            ) from e

    def parse(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        rest = iter(frames)
        while some := list(islice(rest, _AT_ONCE)):
            yield from _labels(network, np.stack(some), device, file)

    return parse


@torch.no_grad()
def _labels(
    network: Callable[[Tensor], Tensor], frames: np.ndarray, device: torch.device, file: Path
) -> np.ndarray:
    pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255
    try:
        out = network(pixels)
    except RuntimeError as e:
        raise UserError(
            f"{file} fails on frames of shape {list(pixels.shape)}: {str(e).strip().splitlines()[-1]}"
        ) from e
    if (
        not isinstance(out, Tensor)
        or out.ndim != 3 + out.is_floating_point()
        or len(out) != len(frames)
    ):
        told = f"{out.dtype} {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"{file} gives {told}: scores [N, C, h, w] or labels [N, h, w] are wanted")
    labels = out.argmax(1) if out.is_floating_point() else out
    if int(labels.min()) < 0 or int(labels.max()) >= len(LABELS):
        raise UserError(
            f"{file} gives label {int(labels.max())}: labels are 0 to {len(LABELS) - 1} (docs/guides/landmarks.md)"
        )
    height, width = pixels.shape[2:]
    rows, columns = (
        ((torch.arange(n, device=device) + 0.5) * m / n).long()
        for n, m in zip((height, width), labels.shape[1:], strict=True)
    )
    return labels.to(torch.uint8)[:, rows][:, :, columns].cpu().numpy()
