"""Batches for one rank, in the order of the plan, whatever the number of loader workers.

A batch is a list of places that a sampler names; a worker decodes a whole batch, and torch's DataLoader hands batches on in
the sampler's order. Workers live through all epochs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfer_dist.config import DataConfig
from dfer_dist.data.clips import ClipReader, DamagedClip
from dfer_dist.data.frames import augment, sample_centres, sample_random, to_clip
from dfer_dist.data.plan import ClipSet, EpochPlan, Place, evaluation_batches, keyed_rng
from dfer_dist.data.prefetch import Ask, Prefetcher, evaluation_asks, training_ahead
from dfer_dist.data.shards import Index


@dataclass
class Batch:
    """Clips for one forward pass.

    ``frames`` uint8 [b, T, 3, S, S]; ``labels`` int64 [b]; ``valid`` bool [b], False for padding and for clips lost to
    damage, whose frames are zero; ``keys`` a name for each, empty for padding; ``lost`` says what was lost and why.
    """

    frames: Tensor
    labels: Tensor
    valid: Tensor
    keys: list[str]
    lost: list[str]

    def pin_memory(self) -> Batch:
        self.frames, self.labels, self.valid = (x.pin_memory() for x in (self.frames, self.labels, self.valid))
        return self


class _Clips(Dataset[Batch]):
    """Batches by their places. ``train`` picks random frames and augments; otherwise frames are segment centres."""

    def __init__(self, index: Index, data: DataConfig, seed: int, batch: int, train: bool, shuffle_frames: bool = False) -> None:
        self.reader, self.prefetcher = ClipReader(index), Prefetcher(index)
        assert data.image_size is not None, "the model settles it"
        self.size = data.image_size
        self.data, self.seed, self.batch, self.train, self.shuffle = data, seed, batch, train, shuffle_frames

    def __getitem__(self, places: Ask) -> Batch:  # the sampler yields whole batches
        self.prefetcher.want(places.ahead)
        size = self.size
        frames = torch.zeros(self.batch, self.data.num_frames, 3, size, size, dtype=torch.uint8)
        batch = Batch(frames, torch.zeros(self.batch, dtype=torch.int64), torch.zeros(self.batch, dtype=torch.bool), [], [])
        for i, place in enumerate(places):
            try:
                key, label, clip = self._clip(place)
            except DamagedClip as e:
                batch.lost.append(str(e))
                batch.keys.append(e.key)
                continue
            batch.frames[i], batch.labels[i], batch.valid[i] = clip, label, True
            batch.keys.append(key)
        batch.keys += [""] * (self.batch - len(places))
        return batch

    def _clip(self, place: Place) -> tuple[str, int, Tensor]:
        rng = keyed_rng("clip", self.seed, place.epoch, self.reader.key(place.shard, place.row))
        wanted = self.data.num_frames
        if self.train:
            clip = self.reader.read(place.shard, place.row, lambda _, count: sample_random(count, wanted, rng))
            return clip.key, clip.label, augment(clip.frames, self.size, self.data.augment, rng)
        clip = self.reader.read(place.shard, place.row, lambda _, count: sample_centres(count, wanted))
        frames = to_clip(clip.frames, self.size)
        return clip.key, clip.label, frames[torch.from_numpy(rng.permutation(wanted))] if self.shuffle else frames


class _TrainOrder(Sampler[Ask]):
    """Micro batches of one rank from (epoch, step) to the end of training."""

    def __init__(self, plan: EpochPlan, epochs: int, start: tuple[int, int], rank: int, world: int, micro: int) -> None:
        self.plan, self.epochs, self.start, self.micro = plan, epochs, start, micro
        own, over = divmod(plan.global_batch, world)
        if over:
            raise ValueError(f"{plan.global_batch} lanes for {world} ranks: {over} would be lost")
        self.lanes = range(rank * own, (rank + 1) * own)

    def __iter__(self) -> Iterator[Ask]:
        first, skip = self.start
        for epoch in range(first, self.epochs):
            plan, begin = self.plan.at(epoch), skip if epoch == first else 0
            for step in range(begin, plan.steps):
                ahead = training_ahead(plan, step, self.lanes, self.epochs) if step == begin or step % plan.block == 0 else ()
                for i in range(0, len(self.lanes), self.micro):
                    places = [plan.place(step, lane) for lane in self.lanes[i : i + self.micro]]
                    yield Ask(places, () if i else ahead)


def train_stream(
    index: Index, data: DataConfig, plan: EpochPlan, epochs: int, start: tuple[int, int], rank: int, world: int, micro: int
) -> Iterator[Batch]:
    """Micro batches of rank ``rank`` of ``world``, from ``start`` = (epoch, step) to the end of the last epoch.

    ``plan`` may be of any epoch: it carries clips, seed, global batch and block. A step is ``global_batch / world / micro``
    batches in a row. Resuming reads nothing of what was passed.
    """
    order = _TrainOrder(plan, epochs, start, rank, world, micro)
    return iter(_loader(_Clips(index, data, plan.seed, micro, train=True), order, data.workers))


def evaluation_stream(
    index: Index, data: DataConfig, clips: ClipSet, batch: int, rank: int, world: int, seed: int = 0, shuffle_frames: bool = False
) -> Iterator[Batch]:
    """Batches of an exact evaluation for one rank: those of the plan whose number is ``rank`` modulo ``world``.

    Every rank gets the same number of batches; the last may be padding altogether, since ranks must step together where
    weights are sharded.
    """
    batches = evaluation_batches(clips, batch)
    own: list[list[Place]] = batches[rank::world]
    own += [[]] * (-(-len(batches) // world) - len(own))
    clips_of = _Clips(index, data, seed, batch, train=False, shuffle_frames=shuffle_frames)
    return iter(_loader(clips_of, evaluation_asks(own), data.workers))


def _loader(clips: _Clips, order: Sampler[Ask] | list[Ask], workers: int) -> DataLoader[Batch]:
    return DataLoader(
        clips,
        sampler=order,
        batch_size=None,  # the sampler's items are batches already
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_calm_worker if workers else None,
        multiprocessing_context="fork" if workers else None,  # a fresh interpreter takes seconds to import torch
    )


def _calm_worker(_: int) -> None:
    """A worker inherits the trainer's signal handlers, which are not meant for it: signals to the job reach it too."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
