"""Loader workers: shared memory, signals, imports, and frames of other sizes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from dfer_dist.config.schema import Sampling
from dfer_dist.data.loading import loader
from dfer_dist.data.loading.augmentation import AugmentParams, apply, sample_params, stack_params
from dfer_dist.data.loading.batch import Batch, BufferPool
from dfer_dist.data.loading.frame_sampling import eval_frames, train_frames
from dfer_dist.data.loading.loader import evaluation_loader, train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips, keyed_rng
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import (
    Index,
    Shard,
    content_hash,
)
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.files import write_json
from tests.helpers.data.clips import write_clip
from tests.helpers.data.loaders import rows, settings
from tests.helpers.data.modalities import BOTH, augmented, make_faces, training_batches

IMPORTS = """
import sys
from pathlib import Path
import pandas  # every rank has it, from DeepSpeed
from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.shards.index import read_index
from dfer_dist.data.loading.loader import train_loader
index = read_index(Path(sys.argv[1]))
plan = EpochPlan(all_clips(index, index.train_shards(1)), 0, 0, 4, 8)
data = DataConfig("-", num_frames=2, image_size=16, workers=0)
stream = train_loader(index, data, plan, epochs=1, micro_batch=4)
before = set(sys.modules)
next(stream)
print(sorted(set(sys.modules) - before))
"""


def test_train_loader_imports_nothing_while_reading(tiny_shards: Index) -> None:
    """Import locks that other threads hold during a fork are never released in the worker."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, tiny_shards.root],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, dict[str, list[np.ndarray]]]:
    """20 clips of 24 x 24, of the model's size, but for four; and all frames by key."""
    root, records, frames = tmp_path_factory.mktemp("square"), [], {}
    for i in range(20):
        size = (40, 32) if i % 5 == 3 else (24, 24)
        write_clip(root / f"{i:05d}", 6 + i, i, *size)
        files = tuple(sorted((root / f"{i:05d}").iterdir()))
        frames[f"{i:05d}"] = [simplejpeg.decode_jpeg(f.read_bytes()) for f in files]
        records.append(ClipRecord(f"{i:05d}", i % 7, "fold1", f"{i:05d}", files))
    return pack(records, "dfew", root / "shards", workers=1), frames


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader_applies_sampled_augmentation(
    square: tuple[Index, dict[str, list[np.ndarray]]], workers: int
) -> None:
    index, frames = square
    data = settings(workers)
    plan = EpochPlan(all_clips(index, range(len(index.shards))), 3, 0, 5, 512)
    stream = train_loader(index, data, plan, epochs=2, micro_batch=5)
    for k, batch in enumerate(rows(stream)):
        for key, _, pixels in batch:
            rng = keyed_rng("clip", 3, k // plan.steps, key)
            chosen = np.stack([frames[key][f] for f in train_frames(len(frames[key]), data, rng)])
            params = stack_params([sample_params(*chosen.shape[1:3], data.augment, rng)])
            assert pixels == apply(torch.from_numpy(chosen)[None], params, 24).numpy().tobytes()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_kept_batches_do_not_change(
    square: tuple[Index, dict[str, list[np.ndarray]]], workers: int
) -> None:
    """More of them than there is shared memory for."""
    plan = EpochPlan(all_clips(square[0], range(len(square[0].shards))), 3, 0, 5, 512)

    def open_stream() -> Iterator[Batch]:
        return train_loader(square[0], settings(workers), plan, epochs=5, micro_batch=5)

    kept = list(open_stream())
    assert len(kept) == 20 and 0 < sum(b.buffer is None for b in kept) < 20
    assert rows(iter(kept)) == rows(open_stream())


def test_evaluation_loader_views_show_their_own_frames(
    square: tuple[Index, dict[str, list[np.ndarray]]],
) -> None:
    index, frames = square
    everything = all_clips(index, range(len(index.shards)))
    seen = []
    for sampling in (Sampling.segments, Sampling.dense):
        data = settings(sampling=sampling, stride=2)
        one = [
            list(
                evaluation_loader(
                    index, data, everything, batch=7, rank=rank, world_size=2, views=3
                )
            )
            for rank in range(2)
        ]
        for batch in (one[0][0], one[1][0], one[0][1]):
            assert batch.views == 3 and batch.frames.shape[1] == 12
            pixels = batch.pixels(torch.device("cpu"))
            for i, key in enumerate(batch.keys):
                if key:
                    chosen = np.stack(
                        [frames[key][f] for v in eval_frames(len(frames[key]), data, 3) for f in v]
                    )
                    whole = stack_params([AugmentParams.identity(*chosen.shape[1:3])])
                    assert torch.equal(
                        pixels[i], apply(torch.from_numpy(chosen)[None], whole, 24)[0]
                    )
                    seen.append(key)
    assert sorted(seen) == sorted([*frames] * 2)


def test_workers_read_the_spatial_views_that_are_asked_for(
    square: tuple[Index, dict[str, list[np.ndarray]]],
) -> None:
    index, _ = square
    everything = all_clips(index, range(len(index.shards)))
    own, forked = (
        rows(evaluation_loader(index, settings(w), everything, batch=7, crops=2, mirror=True))
        for w in (0, 2)
    )
    assert (
        forked == own and len(own) == 12 and len({row.pixels for b in own[:4] for row in b}) == 28
    )


def test_shuffle_frames_stays_within_each_view(
    square: tuple[Index, dict[str, list[np.ndarray]]],
) -> None:
    index, _ = square
    everything = all_clips(index, range(len(index.shards)))
    plain, shuffled = (
        next(
            evaluation_loader(index, settings(), everything, batch=20, views=2, shuffle_frames=s)
        ).frames.flatten(2)
        for s in (False, True)
    )
    assert not torch.equal(plain, shuffled)
    for view in (slice(0, 4), slice(4, 8)):
        for a, b in zip(plain[:, view].tolist(), shuffled[:, view].tolist(), strict=True):
            assert sorted(a) == sorted(b)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_new_worker_survives_job_signal(
    tiny_shards: Index, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The signal comes when torch has installed a handler that ends the worker, before ours."""
    clips = all_clips(tiny_shards, tiny_shards.test_shards(1))
    reset = loader._reset_worker

    def late(worker: int) -> None:
        os.kill(os.getpid(), number)
        reset(worker)

    monkeypatch.setattr(loader, "_reset_worker", late)
    before = signal.signal(number, lambda *_: None)  # as a rank has one
    try:
        expected = list(evaluation_loader(tiny_shards, settings(0), clips, batch=5))
        batches = list(evaluation_loader(tiny_shards, settings(1), clips, batch=5))
    finally:
        signal.signal(number, before)
    assert [b.keys for b in batches] == [b.keys for b in expected]


def fill(r: BufferPool, value: int) -> int | None:
    array, slot = r.acquire()
    array[:] = value
    return slot


def test_buffer_filled_by_fork_is_exported() -> None:
    r = BufferPool(2, (5,))
    child = os.fork()
    if not child:
        fill(r, 9)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert r.export(0).tolist() == [9] * 5
    assert sorted(r.acquire()[1] for _ in range(2)) == [
        0,
        1,
    ]  # the child's came back with its tensor


CPU = torch.device("cpu")


def test_modalities_are_independent_of_ranks_and_workers(tmp_path: Path) -> None:
    faces = make_faces(tmp_path)
    want = torch.cat([b.pixels(CPU) for b in training_batches(faces, BOTH, augmented())])
    for workers, world_size in ((2, 1), (0, 2), (1, 4)):
        batches = training_batches(faces, BOTH, augmented(workers=workers), world_size)
        assert torch.equal(torch.cat([b.pixels(CPU) for b in batches]), want)


MILLION = """
import re, sys, time
from pathlib import Path
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.shards.index import load_index
start = time.process_time()
index = load_index(Path(sys.argv[1]))
read = time.process_time() - start
plan = EpochPlan(all_clips(index, range(len(index.shards))), 0, 0, 4096, 512)
places = [plan.sample_ref(step, lane) for step in range(2) for lane in range(4096)]
assert len(set(places)) == 8192 and plan.steps == 244
# getrusage counts the parent before exec
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(read, time.process_time() - start, int(most[1]) / 1024)
"""


def test_new_process_plans_a_million_clips_in_a_second(tmp_path: Path) -> None:
    sums = [f"{i:064x}" for i in range(10_000)]
    shards = [
        Shard(f"fold{i % 5 + 1}-{i:05d}.tar", f"fold{i % 5 + 1}", 100, 2**27, (20,) * 5, x, x)
        for i, x in enumerate(sums)
    ]
    body = {"name": "big", "classes": list("abcde"), "shards": [vars(s) for s in shards]}
    write_json(tmp_path / "index.json", {**body, "hash": content_hash("big", "abcde", shards)})
    done = subprocess.run(
        [sys.executable, "-c", MILLION, str(tmp_path)], capture_output=True, text=True, check=True
    )
    read, whole, megabytes = map(float, done.stdout.split())
    assert read < 0.5 and whole < 1 and megabytes < 200, done.stdout
