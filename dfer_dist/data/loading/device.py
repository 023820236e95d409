"""Batches whose frames are copied to a GPU while it computes on those before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dfer_dist.data.loading.loader import Batch


class DevicePrefetcher:
    """Takes batches from a loader, and copies frames to a GPU on a stream of their own.

    On a CPU frames are where they are needed, and nothing is done ahead.

    Parameters
    ----------
    batches : iterator of Batch
        On a GPU in pinned memory.
    device : torch.device
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.batches, self.device = batches, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
        self._ahead: tuple[Batch, Tensor] | None = None
        self._pixels: Tensor | None = None

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises
        ------
        StopIteration
            If there is none.
        """
        if self._ahead is None:
            return next(self.batches)
        (batch, self._pixels), self._ahead = self._ahead, None
        return batch

    def prefetch(self) -> None:
        """Begin to copy the next batch to a GPU. Call it once the GPU has work."""
        if self._stream is None or self._ahead is not None:
            return
        batch = next(self.batches, None)
        if batch is not None:
            with torch.cuda.stream(self._stream):
                self._ahead = batch, batch.pixels(self.device)

    def pixels(self, batch: Batch) -> Tensor:
        """Return the model's input of the batch that was returned last, on the device."""
        if self._stream is None or self._pixels is None:
            return batch.pixels(self.device)
        pixels, self._pixels = self._pixels, None
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        # Its memory belongs to the other stream and must not be used again before this one is done.
        pixels.record_stream(current)
        return pixels
