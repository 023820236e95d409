"""Shared-memory buffers that loader workers decode into and the trainer reads, used repeatedly.

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

import numpy as np
import torch
from torch import Tensor

# Bytes before the first buffer. libjpeg-turbo writes rows that are aligned to 32 bytes past the
# processor's cache, which took it 5 % longer.
_OFFSET = 16
_INDEX_BYTES = 2  # of a buffer's index in the pipe
_POOLS: weakref.WeakValueDictionary[int, BufferPool] = weakref.WeakValueDictionary()
_IDS = itertools.count()


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


def export(pool: int, index: int) -> Tensor:
    """Call :meth:`BufferPool.export` of the pool with this ``id``, for a batch from a worker."""
    return _POOLS[pool].export(index)
