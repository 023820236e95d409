"""Settings of loaders for tests, and their batches as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from dfer_dist.config.schema import AugmentConfig, DataConfig
from dfer_dist.data.loading.batch import Batch

FRAMES, SIZE = 4, 24


class Row(NamedTuple):
    """A clip of a batch."""

    key: str
    label: int
    pixels: bytes


def settings(workers: int = 0, **changes: object) -> DataConfig:
    """Return settings with every kind of augmentation."""
    augment = AugmentConfig(brightness=0.3, rotation=5)
    data = DataConfig("-", num_frames=FRAMES, image_size=SIZE, workers=workers, augment=augment)
    return replace(data, block=3, **changes)


def rows(batches: Iterator[Batch]) -> list[list[Row]]:
    """Return the valid clips by batch, once the types and shapes of batches are checked."""
    out = []
    for batch in batches:
        n = len(batch.keys)
        pixels = batch.pixels(torch.device("cpu"))
        assert pixels.shape == (n, FRAMES, 3, SIZE, SIZE) and pixels.dtype == torch.uint8
        assert batch.labels.shape == batch.valid.shape == (n,)
        assert batch.labels.dtype == torch.int64 and batch.valid.dtype == torch.bool
        assert not pixels[~batch.valid].any() and not batch.labels[~batch.valid].any()
        out.append([row(batch, pixels, i) for i in range(n) if batch.valid[i]])
    return out


def row(batch: Batch, pixels: torch.Tensor, i: int) -> Row:
    """Return clip ``i`` of a batch, whose pixels are given."""
    return Row(batch.keys[i], int(batch.labels[i]), pixels[i].numpy().tobytes())
