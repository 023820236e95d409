"""Parsing maps by a face-parsing network of the user: a TorchScript file with code and weights.

The network gets frames, float32 [N, 3, H, W], RGB in 0..1, of any size; it normalizes and resizes
them itself. It returns scores, floating point [N, C, h, w], or labels, integers [N, h, w], numbered
as :data:`~dfer_dist.data.faces.parsing_maps.LABELS`. Maps are resized to the frames by nearest
neighbor.
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

_BATCH_SIZE = 8

Parser = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def load_parser(file: Path) -> Parser:
    """Return a function from frames, uint8 [H, W, 3] each, to their maps, uint8 [H, W] each.

    It runs on a GPU if there is one. It raises UserError if the network fails or returns neither
    scores nor labels.

    Raises
    ------
    UserError
        If the file is no TorchScript.
    """
    if parent_process() is not None:
        # worker processes share the cores
        torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        # torch deprecates TorchScript, but published networks are in that format
        warnings.simplefilter("ignore", FutureWarning)
        try:
            network = torch.jit.load(str(file), map_location=device).eval()
        except (RuntimeError, ValueError) as e:
            raise UserError(
                f"{file} is no TorchScript file: save the network with torch.jit.save"
            ) from e

    def parse(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        remaining = iter(frames)
        while batch := list(islice(remaining, _BATCH_SIZE)):
            yield from _parse_batch(network, np.stack(batch), device, file)

    return parse


@torch.no_grad()
def _parse_batch(
    network: Callable[[Tensor], Tensor], frames: np.ndarray, device: torch.device, file: Path
) -> np.ndarray:
    """Return the maps, uint8 [N, H, W], of frames, uint8 [N, H, W, 3]."""
    pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255
    try:
        out = network(pixels)
    except RuntimeError as e:
        reason = str(e).strip().splitlines()[-1]
        raise UserError(f"{file} fails on frames of shape {list(pixels.shape)}: {reason}") from e
    labels = _to_labels(out, len(frames), file)
    height, width = pixels.shape[2:]
    rows = _nearest(height, labels.shape[1], device)
    columns = _nearest(width, labels.shape[2], device)
    return labels.to(torch.uint8)[:, rows][:, :, columns].cpu().numpy()


def _to_labels(out: object, num_frames: int, file: Path) -> Tensor:
    """Return the labels [N, h, w] in the output of a network."""
    needed = "scores [N, C, h, w] or labels [N, h, w] are needed"
    if not isinstance(out, Tensor):
        raise UserError(f"{file} returns {type(out).__name__}: {needed}")
    if out.ndim != 3 + out.is_floating_point() or len(out) != num_frames:
        raise UserError(f"{file} returns {out.dtype} {list(out.shape)}: {needed}")
    labels = out.argmax(1) if out.is_floating_point() else out
    if int(labels.min()) < 0 or int(labels.max()) >= len(LABELS):
        raise UserError(
            f"{file} returns label {int(labels.max())}: labels are 0 to {len(LABELS) - 1}"
        )
    return labels


def _nearest(size: int, source_size: int, device: torch.device) -> Tensor:
    """Return the nearest source pixel of each pixel along one axis."""
    return ((torch.arange(size, device=device) + 0.5) * source_size / size).long()
