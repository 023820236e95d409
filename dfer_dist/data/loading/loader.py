"""Batches for one rank, in the order of the plan, whatever the number of loader workers.

A batch is a list of places that a sampler names; a worker decodes a whole batch, and torch's DataLoader hands batches on in
the sampler's order. Workers live through all epochs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading import augmentation as augment
from dfer_dist.data.loading import buffers as pool
from dfer_dist.data.loading.frame_sampling import eval_frames, train_frames
from dfer_dist.data.loading.modalities import ModalityReader
from dfer_dist.data.loading.prefetch import (
    BatchRequest,
    Prefetcher,
    evaluation_asks,
    training_ahead,
)
from dfer_dist.data.loading.sampler import (
    ClipSet,
    EpochPlan,
    SampleRef,
    evaluation_batches,
    keyed_rng,
)
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip

PREFETCH = 2  # batches that a worker has in hand or ready
_TO_THE_JOB = (signal.SIGTERM, signal.SIGUSR2)  # Slurm sends them to every process
KEPT = 2  # batches that the consumer holds: one in use, and the next while it comes


@dataclass
class Batch:
    """Clips for one forward pass.

    ``frames`` uint8 [b, V T, S, S, 3], V views of T frames as they were decoded (in training one view), and behind them as many pictures
    of each of L ``modalities``, which are finished; ``augment_params`` float32
    [b, 7] what :meth:`pixels` does to them; ``labels`` int64 [b]; ``valid`` bool [b], False for padding and for clips lost
    to damage, whose frames are zero; ``keys`` a name for each, empty for padding; ``lost`` says what was lost and why.
    """

    frames: Tensor
    labels: Tensor
    valid: Tensor
    keys: list[str]
    lost: list[str]
    augment_params: Tensor
    views: int = 1
    modalities: int = 0
    slot: tuple[int, int] | None = field(
        default=None, repr=False
    )  # ring and slot that ``frames`` lie in

    def pixels(self, device: torch.device) -> Tensor:
        """What the model sees, uint8 [b, V (1 + L) T, 3, S, S] on ``device``: augmented in training. In each view frames come first, then each level."""
        frames = self.frames.to(device, non_blocking=True)
        if not self.modalities:
            return augment.apply(frames, self.augment_params, frames.shape[2])
        count = frames.shape[1] // (1 + self.modalities)
        seen = augment.apply(frames[:, :count], self.augment_params, frames.shape[2])
        every = torch.cat([seen, frames[:, count:].permute(0, 1, 4, 2, 3)], 1)
        return (
            every.unflatten(1, (1 + self.modalities, self.views, -1)).transpose(1, 2).flatten(1, 3)
        )

    def pin_memory(self) -> Batch:
        self.frames, self.labels, self.valid = (
            x.pin_memory() for x in (self.frames, self.labels, self.valid)
        )
        self.slot = None
        return self

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # from a worker: a file descriptor for each tensor would take longer
        frames = self.frames if self.slot is None else None
        few = [x.numpy() for x in (self.labels, self.valid, self.augment_params)]
        return _arrive, (few, self.keys, self.lost, frames, self.views, self.modalities, self.slot)


def _arrive(
    few: list[np.ndarray],
    keys: list[str],
    lost: list[str],
    frames: Tensor | None,
    views: int,
    modalities: int,
    slot: tuple[int, int] | None,
) -> Batch:
    labels, valid, augment_params = map(torch.from_numpy, few)
    if frames is None:
        assert slot is not None, "frames are sent, or lie in a slot"
        frames = pool.export(*slot)
    return Batch(frames, labels, valid, keys, lost, augment_params, views, modalities, slot)


@contextmanager
def _noted(lost: list[str]) -> Iterator[None]:
    try:
        yield
    except DamagedClip as e:
        lost.append(str(e))


class _Clips(Dataset[Batch]):
    """Batches by their places. With ``views`` 0 for training: random frames, and draws for augmentation."""

    def __init__(
        self,
        index: Index,
        data: DataConfig,
        seed: int,
        batch: int,
        modalities: Sequence[str],
        views: int = 0,
        shuffle_frames: bool = False,
    ) -> None:
        self.reader, self.prefetcher = ClipReader(index), Prefetcher(index)
        self.modalities = ModalityReader(index, modalities)
        assert data.image_size is not None, "the model settles it"
        self.data, self.seed, self.batch, self.views, self.shuffle = (
            data,
            seed,
            batch,
            views,
            shuffle_frames,
        )
        self.size = data.image_size
        self.frames = max(views, 1) * data.num_frames
        shape = (batch, (1 + len(modalities)) * self.frames, self.size, self.size, 3)
        self.pool = pool.BufferPool(data.workers * PREFETCH + KEPT, shape)

    def __getitem__(self, places: BatchRequest) -> Batch:  # the sampler yields whole batches
        """One stage after the other for all clips: each finds its code still in the processor's cache, which decoding empties."""
        self.prefetcher.want(places.ahead)
        frames, slot = self.pool.acquire()
        buffers = list(frames[:, : self.frames])
        keys, labels, valid = [""] * self.batch, [0] * self.batch, [False] * self.batch
        augment_params = [augment.unchanged(self.size, self.size)] * self.batch
        found, clips, lost = [], [], list[str]()
        for i, (shard, row, epoch) in enumerate(places):
            keys[i] = self.reader.key(shard, row)
            rng = keyed_rng("clip", self.seed, epoch, keys[i])
            with _noted(lost):
                found.append((i, rng, self.reader.find(shard, row, partial(self._choose, rng))))
        for i, rng, part in found:
            with _noted(lost):
                clips.append((i, rng, part, self.reader.decode(part, buffers[i])))
        for i, rng, part, clip in clips:
            drawn = self._draw(clip.frames, rng)
            with _noted(lost):
                self.modalities.draw(
                    part.shard,
                    clip.key,
                    part.wanted,
                    clip.frames.shape[1:3],
                    drawn,
                    frames[i, self.frames :],
                )
                labels[i], valid[i] = clip.label, True
                augment_params[i] = self._finish(clip.frames, buffers[i], drawn)
        frames[[not v for v in valid]] = 0
        # a worker only fills a slot; the process that gets the batch lends it out
        tensor = (
            torch.from_numpy(frames)
            if slot is None or self.data.workers
            else self.pool.export(slot)
        )
        where = None if slot is None else (self.pool.id, slot)
        few = (
            torch.tensor(labels),
            torch.tensor(valid),
            keys,
            lost,
            torch.tensor(augment_params, dtype=torch.float32),
        )
        return Batch(tensor, *few, max(self.views, 1), len(self.modalities.modalities), where)

    def _draw(self, frames: np.ndarray, rng: np.random.Generator) -> list[float]:
        height, width = frames.shape[1:3]
        return (
            augment.unchanged(height, width)
            if self.views
            else augment.draw(height, width, self.data.augment, rng)
        )

    def _finish(
        self, frames: np.ndarray, buffer: np.ndarray, augment_params: list[float]
    ) -> list[float]:
        """The draws that are left to be done for a clip, and its frames in ``buffer``, where they are already unless they are of another size.

        Those are brought to the model's size here, by their draws, and nothing is left to be done: memory for frames of
        every size would have to be made anew for each batch, which takes longer.
        """
        if frames is buffer:
            return augment_params
        changed = augment.apply(
            torch.from_numpy(frames)[None],
            torch.tensor([augment_params], dtype=torch.float32),
            self.size,
        )
        torch.from_numpy(buffer).copy_(changed[0].permute(0, 2, 3, 1))
        return augment.unchanged(self.size, self.size)

    def _choose(self, rng: np.random.Generator, _: str, count: int) -> np.ndarray:
        if not self.views:
            return train_frames(count, self.data, rng)
        views = eval_frames(count, self.data, self.views)
        return np.concatenate([rng.permutation(v) if self.shuffle else v for v in views])


class _TrainOrder(Sampler[BatchRequest]):
    """Micro batches of one rank from (epoch, step) to the end of training."""

    def __init__(
        self,
        plan: EpochPlan,
        epochs: int,
        start: tuple[int, int],
        rank: int,
        world: int,
        micro: int,
    ) -> None:
        self.plan, self.epochs, self.start, self.micro = plan, epochs, start, micro
        own, over = divmod(plan.global_batch, world)
        if over:
            raise ValueError(f"{plan.global_batch} lanes for {world} ranks: {over} would be lost")
        self.lanes = range(rank * own, (rank + 1) * own)

    def __iter__(self) -> Iterator[BatchRequest]:
        first, skip = self.start
        for epoch in range(first, self.epochs):
            plan, begin = self.plan.at(epoch), skip if epoch == first else 0
            for step in range(begin, plan.steps):
                ahead = (
                    training_ahead(plan, step, self.lanes, self.epochs)
                    if step == begin or step % plan.block == 0
                    else ()
                )
                for i in range(0, len(self.lanes), self.micro):
                    places = [plan.place(step, lane) for lane in self.lanes[i : i + self.micro]]
                    yield BatchRequest(places, () if i else ahead)


def train_stream(
    index: Index,
    data: DataConfig,
    plan: EpochPlan,
    epochs: int,
    start: tuple[int, int],
    rank: int,
    world: int,
    micro: int,
    modalities: Sequence[str] = (),
) -> Iterator[Batch]:
    """Micro batches of rank ``rank`` of ``world``, from ``start`` = (epoch, step) to the end of the last epoch.

    ``plan`` may be of any epoch: it carries clips, seed, global batch and block. A step is ``global_batch / world / micro``
    batches in a row. Resuming reads nothing of what was passed. ``modalities`` are ``model.modalities``: they change no draw.
    """
    order = _TrainOrder(plan, epochs, start, rank, world, micro)
    return _start(_loader(_Clips(index, data, plan.seed, micro, modalities), order))


def evaluation_stream(
    index: Index,
    data: DataConfig,
    clips: ClipSet,
    batch: int,
    rank: int,
    world: int,
    seed: int = 0,
    views: int = 1,
    shuffle_frames: bool = False,
    modalities: Sequence[str] = (),
) -> Iterator[Batch]:
    """Batches of an exact evaluation for one rank: those of the plan whose number is ``rank`` modulo ``world``.

    Every rank gets the same number of batches; the last may be padding altogether, since ranks must step together where
    weights are sharded. Each clip comes once, with all its ``views``.
    """
    batches = evaluation_batches(clips, batch)
    own: list[list[SampleRef]] = batches[rank::world]
    own += [[]] * (-(-len(batches) // world) - len(own))
    return _start(
        _loader(
            _Clips(index, data, seed, batch, modalities, views, shuffle_frames),
            evaluation_asks(own),
        )
    )


def _loader(clips: _Clips, order: Sampler[BatchRequest] | list[BatchRequest]) -> DataLoader[Batch]:
    import webdataset.gopen  # noqa: F401  # now, or each worker does at its first shard; not above, since an exported model reads no shards

    workers = clips.data.workers
    return DataLoader(
        clips,
        sampler=order,
        batch_size=None,  # the sampler's items are batches already
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=torch.cuda.is_initialized(),  # this process computes on a GPU: one beside train.device=cpu is left alone
        worker_init_fn=_calm_worker if workers else None,
        multiprocessing_context="fork"
        if workers
        else None,  # a fresh interpreter takes seconds to import torch
    )


def _start(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Begin to read. Workers are born with the job's signals blocked: torch gives them a handler that would end them before :func:`_calm_worker` is called."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_JOB)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _calm_worker(_: int) -> None:
    """A worker inherits the trainer's signal handlers, which are not meant for it: signals to the job reach it too."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):  # a rank that is told to leave needs its workers until it has saved
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_THE_JOB)
    torch.set_num_threads(1)
