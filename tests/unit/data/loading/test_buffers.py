from __future__ import annotations

import gc
import os

import numpy as np
import torch

from dfer_dist.data.loading import buffers as pool
from dfer_dist.data.loading.buffers import BufferPool


def fill(r: BufferPool, value: int) -> int | None:
    array, slot = r.acquire()
    array[:] = value
    return slot


def open_as(link: str) -> int:
    """How many of this process's file descriptors are this file; other tests' files come and go."""
    links = [os.path.realpath(f.path).rpartition("/")[2] for f in os.scandir("/proc/self/fd")]
    return links.count(link)


def test_slots_are_used_over_and_over_and_private_memory_helps_out() -> None:
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


def test_a_slot_comes_back_when_its_tensor_and_all_views_are_gone() -> None:
    r = BufferPool(1, (4,))
    tensor = r.export(fill(r, 7))
    view = tensor[1:].view(3, 1)
    del tensor
    assert r.acquire()[1] is None
    assert view.unique().tolist() == [7]
    del view
    assert r.acquire()[1] == 0


def test_what_another_process_fills_is_seen_here_and_lent_by_the_rings_number() -> None:
    r = BufferPool(2, (5,))
    child = os.fork()
    if not child:
        fill(r, 9)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.export(r.id, 0).tolist() == [9] * 5
    assert sorted(r.acquire()[1] for _ in range(2)) == [
        0,
        1,
    ]  # the child's came back with its tensor


def test_lent_memory_outlives_its_ring() -> None:
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


def test_rows_do_not_lie_on_32_bytes_where_libjpeg_turbo_would_write_past_the_cache() -> None:
    array, _ = BufferPool(1, (2, 16, 224, 224, 3)).acquire()
    assert all(array[i, t].ctypes.data % 32 == 16 for i in range(2) for t in range(16))
