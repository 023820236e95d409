"""A batch of clips on its way from a loader worker to the model.

Its frames are in shared memory that workers decode into and the trainer reads, used repeatedly.
A batch in fresh shared memory costs a worker almost as much again as decoding it: the kernel hands
out every page at its first touch, zeroed. Here the pages are made once, before the workers are
forked. They need no space in ``/dev/shm`` either, which containers keep small.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfer_dist.data.loading import augmentation
from dfer_dist.data.loading.mixing import MixParams, mix_
from dfer_dist.data.loading.rand_augment import RandAugment

# Bytes before the first buffer. libjpeg-turbo writes rows that are aligned to 32 bytes past the
# processor's cache, which took it 5 % longer.
_OFFSET = 16
_INDEX_BYTES = 2  # of a buffer's index in the pipe
_POOLS: weakref.WeakValueDictionary[int, BufferPool] = weakref.WeakValueDictionary()
_IDS = itertools.count()
_SENT_AS_ARRAYS = ("labels", "valid", "augment_params")


class BufferPool:
    """Shared-memory buffers for arrays of one shape.

    The consumer makes the pool; processes that it forks afterwards fill the buffers. The indices of
    free buffers are kept in a pipe, from which any process takes one without waiting for another. A
    buffer becomes free again when nothing in the consumer refers to its tensor any more.

    Parameters
    ----------
    count : int
        Number of buffers.
    shape : tuple of int
        Of a buffer's uint8 array.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        size = count * math.prod(shape)
        # anonymous and shared, as mmap is by default; freed with the last array on it
        memory = mmap.mmap(-1, size + _OFFSET)
        self._memory = np.frombuffer(memory, np.uint8, size, _OFFSET).reshape(count, *shape)
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        for index in range(count):
            self._release(index)
        self.id = next(_IDS)
        _POOLS[self.id] = self

    def acquire(self) -> tuple[np.ndarray, int | None]:
        """Take a free buffer.

        Returns
        -------
        array : ndarray of uint8
            With undefined content; private memory where no buffer is free.
        index : int or None
            Of the buffer; None for private memory.
        """
        try:
            index = int.from_bytes(os.read(self._read_end, _INDEX_BYTES), "little")
        except BlockingIOError:
            return np.empty(self._memory.shape[1:], np.uint8), None
        return self._memory[index], index

    def export(self, index: int) -> Tensor:
        """Return the tensor of a filled buffer, free again once it and its views are gone."""
        array = self._memory[index]
        # a tensor keeps the array that it was made from
        weakref.finalize(array, self._release, index).atexit = False
        return torch.from_numpy(array)

    def _release(self, index: int) -> None:
        os.write(self._write_end, index.to_bytes(_INDEX_BYTES, "little"))

    def __del__(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


@dataclass
class Batch:
    """Clips for one forward pass, with V views of T frames each and L further modalities.

    Attributes
    ----------
    frames : uint8 [b, V T (1 + L), S, S, 3]
        All frames as they were decoded (V is 1 in training), then as many pictures of each
        modality, which are augmented already.
    labels : int64 [b]
    valid : bool [b]
        False for padding and for clips lost to damage, whose frames are zero.
    keys : list of str
        Of each clip; empty for padding.
    lost : list of str
        Which clips were lost, and why.
    augment_params : float32 [b, 7]
        What :meth:`pixels` does to each clip; see :class:`AugmentParams`.
    rand_augment : RandAugment, optional
        What it does after that.
    mix : list of b / 2 MixParams
        How it mixes pairs of clips in the end; empty for no mixing.
    views, modalities : int
        V and L.
    buffer : tuple of int, optional
        Pool and index of the shared-memory buffer that holds ``frames``.
    """

    frames: Tensor
    labels: Tensor
    valid: Tensor
    keys: list[str]
    lost: list[str]
    augment_params: Tensor
    rand_augment: RandAugment | None = None
    mix: list[MixParams] = field(default_factory=list)
    views: int = 1
    modalities: int = 0
    buffer: tuple[int, int] | None = field(default=None, repr=False)

    def pixels(self, device: torch.device) -> Tensor:
        """Return the model's input, augmented, uint8 [b, V (1 + L) T, 3, S, S] on ``device``.

        In each view the frames come first, then the pictures of each modality.
        """
        frames = self.frames.to(device, non_blocking=True)
        count = frames.shape[1] // (1 + self.modalities)
        pixels = augmentation.apply(frames[:, :count], self.augment_params, frames.shape[2])
        if self.rand_augment is not None:
            self.rand_augment.apply_(pixels)
        if self.modalities:
            pictures = frames[:, count:].permute(0, 1, 4, 2, 3)
            by_modality = torch.cat([pixels, pictures], 1).unflatten(
                1, (1 + self.modalities, self.views, -1)
            )
            pixels = by_modality.transpose(1, 2).flatten(1, 3)
        if self.mix:
            mix_(pixels, self.mix)
        return pixels

    @property
    def own_weights(self) -> Tensor | None:
        """Weight of each clip in its own mixture, float32 [b]; None without mixing."""
        if not self.mix:
            return None
        return torch.tensor([mix.weight for mix in self.mix]).repeat_interleave(2)

    @property
    def sources(self) -> list[list[str]]:
        """Keys of the clips that each clip's pixels come from."""
        sources = [[key] for key in self.keys]
        for i, mix in enumerate(self.mix):
            if mix.weight < 1:
                sources[2 * i] = sources[2 * i + 1] = self.keys[2 * i : 2 * i + 2]
        return sources

    def pin_memory(self) -> Batch:
        """Move the tensors to page-locked memory; called by torch's DataLoader."""
        self.frames = self.frames.pin_memory()
        self.labels = self.labels.pin_memory()
        self.valid = self.valid.pin_memory()
        self.buffer = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker sends: small arrays by value, a buffer by its index.

        A file descriptor for each tensor, as torch would send, takes longer.
        """
        state = dict(vars(self))
        for name in _SENT_AS_ARRAYS:
            state[name] = state[name].numpy()
        if self.buffer is not None:
            state["frames"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in _SENT_AS_ARRAYS:
            state[name] = torch.from_numpy(state[name])
        if state["buffer"] is not None:
            pool, index = state["buffer"]
            state["frames"] = _POOLS[pool].export(index)
        vars(self).update(state)
