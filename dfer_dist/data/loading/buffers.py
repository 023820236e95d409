"""Memory that loader workers decode into and the trainer reads, used over and over.

A batch in fresh shared memory costs a worker almost as much again as decoding it: the kernel hands out every page at its
first touch, zeroed. Here the pages are made once, before the workers are forked. It also needs no room in ``/dev/shm``,
which containers keep small.
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

# libjpeg-turbo writes rows of 32-byte alignment past the processor's cache, which took it 5 % longer
_ASIDE = 16  # bytes before the first slot
_NUMBER = 2  # bytes of a slot's number in the pipe
_POOLS: weakref.WeakValueDictionary[int, BufferPool] = weakref.WeakValueDictionary()
_IDS = itertools.count()


class BufferPool:
    """Slots of shared memory for arrays of one shape. Made by the consumer; processes that it forks afterwards fill slots.

    The numbers of free slots lie in a pipe, which any of the processes may take from without waiting for another. A slot
    comes back by itself when nothing in the consumer refers to its tensor any more.

    Parameters
    ----------
    slots : int
    shape : tuple of int
        Of a slot's uint8 array.
    """

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        count = slots * math.prod(shape)
        # anonymous and shared, as mmap is by default; it goes when the last array on it goes
        memory = mmap.mmap(-1, count + _ASIDE)
        self._memory = np.frombuffer(memory, np.uint8, count, _ASIDE).reshape(slots, *shape)
        self._free, self._back = os.pipe()
        os.set_blocking(self._free, False)
        for slot in range(slots):
            self._give_back(slot)
        self.id = next(_IDS)
        _POOLS[self.id] = self

    def acquire(self) -> tuple[np.ndarray, int | None]:
        """An array to fill, its content undefined, and its slot; private memory and None where no slot is free."""
        try:
            slot = int.from_bytes(os.read(self._free, _NUMBER), "little")
        except BlockingIOError:
            return np.empty(self._memory.shape[1:], np.uint8), None
        return self._memory[slot], slot

    def export(self, slot: int) -> Tensor:
        """The tensor of a filled slot; the slot is free again once the tensor and all its views are gone."""
        array = self._memory[slot]
        weakref.finalize(
            array, self._give_back, slot
        ).atexit = False  # a tensor keeps the array that it was made from
        return torch.from_numpy(array)

    def _give_back(self, slot: int) -> None:
        os.write(self._back, slot.to_bytes(_NUMBER, "little"))

    def __del__(self) -> None:
        os.close(self._free)
        os.close(self._back)


def export(pool: int, slot: int) -> Tensor:
    """:meth:`Ring.export` by the ring's ``id``, for what comes from a worker."""
    return _POOLS[pool].export(slot)
