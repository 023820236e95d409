"""Shared-memory buffers within one process."""

from __future__ import annotations

import gc
import os

import numpy as np
import torch

from dfer_dist.data.loading.batch import BufferPool


def fill(r: BufferPool, value: int) -> int | None:
    array, slot = r.acquire()
    array[:] = value
    return slot


def open_as(link: str) -> int:
    """How many of this process's file descriptors are this file; other tests' files come and go."""
    links = [os.path.realpath(f.path).rpartition("/")[2] for f in os.scandir("/proc/self/fd")]
    return links.count(link)


def test_acquire_falls_back_to_private_memory() -> None:
    r = BufferPool(2, (3, 4))
    taken = [r.acquire() for _ in range(4)]
    assert sorted(slot for _, slot in taken[:2]) == [0, 1]
    assert [slot for _, slot in taken[2:]] == [None, None]
    for value, (array, _) in enumerate(taken):
        assert array.shape == (3, 4) and array.dtype == np.uint8
        array[:] = value
    assert (
        [int(array.max()) for array, _ in taken]
        == [int(array.min()) for array, _ in taken]
        == [0, 1, 2, 3]
    )


def test_buffer_is_free_when_its_tensor_and_views_are_gone() -> None:
    r = BufferPool(1, (4,))
    tensor = r.export(fill(r, 7))
    view = tensor[1:].view(3, 1)
    del tensor
    assert r.acquire()[1] is None
    assert view.unique().tolist() == [7]
    del view
    assert r.acquire()[1] == 0


def test_exported_tensor_outlives_its_pool() -> None:
    r = BufferPool(1, (4,))
    pipe = os.readlink(f"/proc/self/fd/{r._read_end}")
    assert open_as(pipe) == 2
    tensor = r.export(fill(r, 3))
    del r
    gc.collect()
    assert torch.equal(tensor, torch.full((4,), 3, dtype=torch.uint8))
    del tensor
    gc.collect()
    assert open_as(pipe) == 0


def test_rows_are_not_aligned_to_32_bytes() -> None:
    array, _ = BufferPool(1, (2, 16, 224, 224, 3)).acquire()
    assert all(array[i, t].ctypes.data % 32 == 16 for i in range(2) for t in range(16))
