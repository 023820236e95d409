"""Batches of the loaders: exact, and independent of ranks, workers and resuming."""

from __future__ import annotations

import shutil
import traceback
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.loading.augmentation import AugmentParams, apply, stack_params
from dfer_dist.data.loading.loader import evaluation_loader, train_loader
from dfer_dist.data.loading.sampler import ClipSet, EpochPlan, all_clips, train_val_split
from dfer_dist.data.shards.index import Index, read_index, sidecar_path
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.utils.errors import UserError
from tests.helpers.data.loaders import Row, row, rows, settings

EPOCHS, STEPS, BATCH = 2, 4, 8


@pytest.fixture(scope="module")
def clips(tiny_shards: Index) -> ClipSet:
    """The training part of fold 1 with every fourth clip held out: 36 clips, shards in part."""
    part = train_val_split(tiny_shards, fold_clips(tiny_shards, 1).train, 0.25, seed=0)[0]
    assert len(part) == 36 and any(
        len(r) != tiny_shards.shards[s].clips for s, r in zip(part.shards, part.rows, strict=True)
    )
    return part


def train(
    index: Index,
    clips: ClipSet,
    workers: int = 0,
    world: int = 1,
    micro: int = BATCH,
    start: tuple[int, int] = (0, 0),
    seed: int = 3,
) -> list[list[Row]]:
    """Global batches by step, put together from the streams of all ranks."""
    plan = EpochPlan(clips, seed, 0, BATCH, 3)
    data, each = settings(workers), -(-BATCH // world // micro)
    ranks = [
        rows(
            train_loader(
                index,
                data,
                plan,
                epochs=EPOCHS,
                start=start,
                rank=rank,
                world_size=world,
                micro_batch=micro,
            )
        )
        for rank in range(world)
    ]
    assert len({len(r) for r in ranks}) == 1 and len(ranks[0]) % each == 0
    return [
        [clip for r in ranks for part in r[k : k + each] for clip in part]
        for k in range(0, len(ranks[0]), each)
    ]


@pytest.fixture(scope="module")
def reference(tiny_shards: Index, clips: ClipSet) -> list[list[Row]]:
    """Global batches of two epochs on one rank without workers."""
    return train(tiny_shards, clips)


def test_train_loader_epochs_are_exact_and_differ(
    reference: list[list[Row]], tiny_shards: Index, clips: ClipSet
) -> None:
    assert [len(step) for step in reference] == [BATCH] * STEPS * EPOCHS
    reader = ClipReader(tiny_shards)
    places = [
        clips.sample_ref(p, r, 0) for p, count in enumerate(clips.counts) for r in range(count)
    ]
    labels = {reader.key(p.shard, p.row): reader.label(p.shard, p.row) for p in places}
    epochs = [
        [clip for step in reference[e * STEPS : (e + 1) * STEPS] for clip in step]
        for e in range(EPOCHS)
    ]
    for epoch in epochs:
        assert len({key for key, _, _ in epoch}) == len(epoch) == 32
        assert all(labels[key] == label for key, label, _ in epoch)
    first, second = ({key: pixels for key, _, pixels in epoch} for epoch in epochs)
    assert list(first) != list(second)
    assert not any(first[key] == second[key] for key in first.keys() & second.keys())


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize(
    ("workers", "world", "micro"),
    [(1, 1, 8), (2, 1, 8), (4, 1, 2), (0, 2, 4), (0, 4, 1), (0, 1, 3), (2, 2, 2), (2, 4, 2)],
)
def test_train_loader_is_independent_of_ranks_and_workers(
    reference: list[list[Row]],
    tiny_shards: Index,
    clips: ClipSet,
    workers: int,
    world: int,
    micro: int,
) -> None:
    assert train(tiny_shards, clips, workers, world, micro) == reference


@pytest.mark.parametrize(
    ("start", "workers", "world"), [((0, 1), 0, 1), ((0, 3), 2, 2), ((1, 0), 0, 4), ((1, 3), 0, 2)]
)
def test_resumed_train_loader_yields_remaining_batches(
    reference: list[list[Row]],
    tiny_shards: Index,
    clips: ClipSet,
    start: tuple[int, int],
    workers: int,
    world: int,
) -> None:
    tail = train(tiny_shards, clips, workers, world, BATCH // world, start)
    assert tail == reference[start[0] * STEPS + start[1] :]


def test_resumed_train_loader_reads_no_earlier_clip(
    tiny_shards: Index, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    whole = ClipReader.find
    monkeypatch.setattr(
        ClipReader,
        "find",
        lambda self, shard, row, choose: (
            read.append((shard, row)) or whole(self, shard, row, choose)
        ),
    )
    plan = EpochPlan(clips, 3, 0, BATCH, 3)
    list(
        train_loader(
            tiny_shards, settings(), plan, epochs=2, start=(1, 3), world_size=2, micro_batch=4
        )
    )
    last = EpochPlan(clips, 3, 1, BATCH, 3)
    assert read == [last.sample_ref(3, lane)[:2] for lane in range(4)]


def test_train_loader_pixels_depend_on_seed_epoch_and_key(
    reference: list[list[Row]], tiny_shards: Index, clips: ClipSet
) -> None:
    known = {
        (k // STEPS, key): pixels for k, step in enumerate(reference) for key, _, pixels in step
    }
    whole = all_clips(
        tiny_shards, range(len(tiny_shards.shards))
    )  # other clips, batch and block: another order
    plan = EpochPlan(whole, 3, 0, 5, 512)
    shared = 0
    for k, batch in enumerate(
        rows(train_loader(tiny_shards, settings(), plan, epochs=EPOCHS, micro_batch=5))
    ):
        for key, _, pixels in batch:
            if (k // plan.steps, key) in known:
                assert known[k // plan.steps, key] == pixels
                shared += 1
    assert shared > 50
    other = {
        key: pixels for step in train(tiny_shards, clips, seed=4)[:STEPS] for key, _, pixels in step
    }
    assert (
        sum(other.get(key) == pixels for (epoch, key), pixels in known.items() if epoch == 0) == 0
    )


def evaluated(
    index: Index, clips: ClipSet, world: int, workers: int = 0, **options: object
) -> tuple[list[Row], list[int]]:
    """Clips in the order of the batches' numbers, and how many batches each rank got."""
    ranks = [
        list(
            evaluation_loader(
                index, settings(workers), clips, batch=5, rank=rank, world_size=world, **options
            )
        )
        for rank in range(world)
    ]
    for rank in ranks:
        for batch in rank:
            assert len(batch.keys) == 5 and batch.lost == []
            assert [bool(key) for key in batch.keys] == batch.valid.tolist()
    in_turn = [r[k] for k in range(len(ranks[0])) for r in ranks]
    return [clip for batch in rows(iter(in_turn)) for clip in batch], [len(r) for r in ranks]


def test_evaluation_loader_yields_each_clip_once_on_any_ranks(tiny_shards: Index) -> None:
    test = all_clips(tiny_shards, tiny_shards.test_shards(2))
    expected = {
        k: y
        for i in test.shards
        for k, y in zip(*map(tiny_shards.sidecar(i).column, ("key", "label")), strict=True)
    }
    expected = {k.as_py(): y.as_py() for k, y in expected.items()}
    single, batches = evaluated(tiny_shards, test, 1)
    assert {key: label for key, label, _ in single} == expected and len(single) == len(
        expected
    ) == 12
    assert batches == [3]
    for world, workers, each in ((1, 2, 3), (2, 0, 2), (3, 2, 1), (4, 0, 1)):
        assert evaluated(tiny_shards, test, world, workers) == (single, [each] * world)


def test_evaluation_loader_resizes_centre_frames(tiny_source: Path, tiny_shards: Index) -> None:
    test = all_clips(tiny_shards, tiny_shards.test_shards(2))
    for key, _, pixels in evaluated(tiny_shards, test, 1)[0]:
        files = sorted((tiny_source / "frames" / key).iterdir())
        n = len(files)
        centres = [int(n / 8 + n / 4 * i) if n > 4 else min(i, n - 1) for i in range(4)]
        frames = [simplejpeg.decode_jpeg(files[i].read_bytes()) for i in centres]
        whole = stack_params([AugmentParams.identity(40, 48)])
        assert (
            pixels == apply(torch.from_numpy(np.stack(frames))[None], whole, 24).numpy().tobytes()
        )


def test_shuffle_frames_permutes_whole_frames(tiny_shards: Index) -> None:
    test = all_clips(tiny_shards, tiny_shards.test_shards(2))
    plain = evaluated(tiny_shards, test, 1)[0]
    shuffled = evaluated(tiny_shards, test, 1, shuffle_frames=True)[0]
    moved = 0
    for (key, label, before), (other, also, after) in zip(plain, shuffled, strict=True):
        assert (key, label) == (other, also)
        a, b = (sorted(np.frombuffer(x, np.uint8).reshape(4, -1).tolist()) for x in (before, after))
        assert a == b
        moved += before != after
    assert moved > 6
    assert evaluated(tiny_shards, test, 3, 2, shuffle_frames=True)[0] == shuffled
    assert evaluated(tiny_shards, test, 1, shuffle_frames=True, seed=1)[0] != shuffled


@pytest.fixture
def damaged(
    tiny_shards: Index, clips: ClipSet, reference: list[list[Row]], tmp_path: Path
) -> tuple[Index, str]:
    """A copy of the set with one damaged clip, which both epochs read, and the clip's key."""
    index = read_index(shutil.copytree(tiny_shards.root, tmp_path / "copy"))
    epochs = [
        {key for step in reference[e * STEPS : (e + 1) * STEPS] for key, _, _ in step}
        for e in range(EPOCHS)
    ]
    both = epochs[0] & epochs[1]
    shard, clip = next(
        (s, r) for s in clips.shards for r in index.sidecar(s).to_pylist() if r["key"] in both
    )
    with index.path(shard).open("r+b") as f:
        f.seek(clip["offset"] + 1024)
        f.write(bytes(clip["size"] - 1024))
    return index, clip["key"]


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader_masks_and_names_damaged_clip(
    damaged: tuple[Index, str], clips: ClipSet, reference: list[list[Row]], workers: int
) -> None:
    index, key = damaged
    stream = train_loader(
        index, settings(workers), EpochPlan(clips, 3, 0, BATCH, 3), epochs=EPOCHS, micro_batch=BATCH
    )
    lost = 0
    for batch, expected in zip(stream, reference, strict=True):
        assert batch.keys == [k for k, _, _ in expected]
        hit = [i for i, k in enumerate(batch.keys) if k == key]
        assert batch.valid.tolist() == [i not in hit for i in range(BATCH)]
        pixels = batch.pixels(torch.device("cpu"))
        assert not pixels[hit].any() and len(batch.lost) == len(hit)
        assert all(key in line and ".tar" in line for line in batch.lost)
        assert [row(batch, pixels, i) for i in range(BATCH) if i not in hit] == [
            r for r in expected if r[0] != key
        ]
        lost += len(hit)
    assert lost == EPOCHS


def test_evaluation_loader_names_damaged_clip(damaged: tuple[Index, str]) -> None:
    index, key = damaged
    everything = all_clips(index, range(len(index.shards)))
    batches = list(evaluation_loader(index, settings(2), everything, batch=7))
    lost = [line for b in batches for line in b.lost]
    assert len(lost) == 1 and key in lost[0]
    assert sum(int(b.valid.sum()) for b in batches) == 59


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader_stops_at_changed_sidecar(
    damaged: tuple[Index, str], clips: ClipSet, workers: int
) -> None:
    index, _ = damaged
    for shard in clips.shards:
        path = sidecar_path(index.path(shard))
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"fold\d-\d{5}\.parquet differs from the index") as caught:
        list(
            train_loader(
                index,
                settings(workers),
                EpochPlan(clips, 3, 0, BATCH, 3),
                epochs=1,
                micro_batch=BATCH,
            )
        )
    traceback.clear_frames(
        caught.tb
    )  # else the loader is left to the garbage collector, which waits 5 s for each worker


def test_train_loader_can_be_abandoned(
    tiny_shards: Index, clips: ClipSet, reference: list[list[Row]]
) -> None:
    stream = train_loader(
        tiny_shards, settings(2), EpochPlan(clips, 3, 0, BATCH, 3), epochs=1000, micro_batch=BATCH
    )
    assert rows(islice(stream, 3)) == reference[:3]
    del stream
