"""Batches for one rank, in the order of the plan, at any number of loader workers.

A sampler yields requests, each for a whole batch; a worker decodes all of it, and torch's
DataLoader returns batches in the order of the requests. Workers live through all epochs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading import augmentation, buffers
from dfer_dist.data.loading.augmentation import AugmentParams, sample_params, stack_params
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.frame_sampling import eval_frames, train_frames
from dfer_dist.data.loading.modalities import ModalityReader
from dfer_dist.data.loading.prefetch import (
    BatchRequest,
    Prefetcher,
    evaluation_requests,
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
from dfer_dist.data.shards.reader import Clip, ClipHandle, ClipReader, DamagedClip

PREFETCH = 2  # batches that a worker decodes or has ready
KEPT = 2  # batches that the consumer holds: one in use, and the next while it is copied
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # Slurm sends them to every process


@contextmanager
def _record_damage(lost: list[str]) -> Iterator[None]:
    try:
        yield
    except DamagedClip as e:
        lost.append(str(e))


class _Item(NamedTuple):
    """A clip of a batch while it is read."""

    position: int  # in the batch
    rng: np.random.Generator
    handle: ClipHandle
    buffer: np.ndarray  # of its frames in the batch, uint8 [V T, S, S, 3]


class _ClipDataset(Dataset[Batch]):
    """Batches by request.

    ``views`` is 0 for training: frames and augmentation are then random.
    """

    def __init__(
        self,
        index: Index,
        data: DataConfig,
        *,
        seed: int,
        batch: int,
        modalities: Sequence[str],
        views: int = 0,
        shuffle_frames: bool = False,
    ) -> None:
        assert data.image_size is not None, "the model determines it"
        self.reader, self.prefetcher = ClipReader(index), Prefetcher(index)
        self.modalities = ModalityReader(index, modalities)
        self.data = data
        self.seed = seed
        self.batch = batch
        self.views = views
        self.shuffle_frames = shuffle_frames
        self.size = data.image_size
        self.frames = max(views, 1) * data.num_frames
        shape = (batch, (1 + len(modalities)) * self.frames, self.size, self.size, 3)
        self.pool = buffers.BufferPool(data.workers * PREFETCH + KEPT, shape)

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Read and decode a batch.

        Each stage handles all clips before the next begins, which keeps its code in the
        processor's cache: decoding empties it.
        """
        self.prefetcher.prefetch(request.ahead)
        array, index = self.pool.acquire()
        batch = self._empty_batch(array, index)
        items = self._find(request, array, batch)
        decoded = self._decode(items, batch.lost)
        params = [AugmentParams.identity(self.size, self.size)] * self.batch
        for item, clip in decoded:
            i = item.position
            with _record_damage(batch.lost):
                params[i] = self._finish(item, clip, array[i, self.frames :])
                batch.labels[i], batch.valid[i] = clip.label, True
        batch.augment_params = stack_params(params)
        array[~batch.valid.numpy()] = 0
        # a worker only fills a buffer: the process that receives the batch exports it
        if index is not None and not self.data.workers:
            batch.frames = self.pool.export(index)
        return batch

    def _empty_batch(self, array: np.ndarray, index: int | None) -> Batch:
        return Batch(
            frames=torch.from_numpy(array),
            labels=torch.zeros(self.batch, dtype=torch.int64),
            valid=torch.zeros(self.batch, dtype=torch.bool),
            keys=[""] * self.batch,
            lost=[],
            augment_params=torch.empty(0),
            views=max(self.views, 1),
            modalities=len(self.modalities.modalities),
            buffer=None if index is None else (self.pool.id, index),
        )

    def _find(self, request: BatchRequest, array: np.ndarray, batch: Batch) -> list[_Item]:
        items = []
        for i, ref in enumerate(request):
            key = batch.keys[i] = self.reader.key(ref.shard, ref.row)
            rng = keyed_rng("clip", self.seed, ref.epoch, key)
            with _record_damage(batch.lost):
                handle = self.reader.find(ref.shard, ref.row, partial(self._choose_frames, rng))
                items.append(_Item(i, rng, handle, array[i, : self.frames]))
        return items

    def _decode(self, items: list[_Item], lost: list[str]) -> list[tuple[_Item, Clip]]:
        decoded = []
        for item in items:
            with _record_damage(lost):
                decoded.append((item, self.reader.decode(item.handle, item.buffer)))
        return decoded

    def _finish(self, item: _Item, clip: Clip, pictures: np.ndarray) -> AugmentParams:
        """Draw a clip's modalities, resize its frames if needed; return what is left to do.

        Frames of the model's size are in their buffer already. Others are augmented and resized
        here: memory for frames of every size would have to be allocated for each batch, which takes
        longer.
        """
        height, width = clip.frames.shape[1:3]
        if self.views:
            params = AugmentParams.identity(height, width)
        else:
            params = sample_params(height, width, self.data.augment, item.rng)
        self.modalities.draw(item.handle, (height, width), params, pictures)
        if clip.frames is item.buffer:
            return params
        frames = torch.from_numpy(clip.frames)[None]
        resized = augmentation.apply(frames, stack_params([params]), self.size)
        torch.from_numpy(item.buffer).copy_(resized[0].permute(0, 2, 3, 1))
        return AugmentParams.identity(self.size, self.size)

    def _choose_frames(self, rng: np.random.Generator, _: str, count: int) -> np.ndarray:
        if not self.views:
            return train_frames(count, self.data, rng)
        views = eval_frames(count, self.data, self.views)
        return np.concatenate([rng.permutation(v) if self.shuffle_frames else v for v in views])


class TrainSampler(Sampler[BatchRequest]):
    """Requests for the micro batches of one rank, from (epoch, step) to the end of training.

    Raises
    ------
    ValueError
        If the global batch is not divisible by ``world_size``.
    """

    def __init__(
        self,
        plan: EpochPlan,
        *,
        epochs: int,
        start: tuple[int, int],
        rank: int,
        world_size: int,
        micro_batch: int,
    ) -> None:
        self.plan, self.epochs, self.start = plan, epochs, start
        self.micro_batch = micro_batch
        lanes_per_rank, rest = divmod(plan.global_batch, world_size)
        if rest:
            raise ValueError(
                f"{plan.global_batch} lanes for {world_size} ranks: {rest} would be lost"
            )
        self.lanes = range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank)

    def __iter__(self) -> Iterator[BatchRequest]:
        first_epoch, first_step = self.start
        for epoch in range(first_epoch, self.epochs):
            plan = self.plan.at(epoch)
            begin = first_step if epoch == first_epoch else 0
            for step in range(begin, plan.steps):
                ahead: Sequence[int] = ()
                if step == begin or step % plan.block == 0:
                    ahead = training_ahead(plan, step, self.lanes, self.epochs)
                for i in range(0, len(self.lanes), self.micro_batch):
                    lanes = self.lanes[i : i + self.micro_batch]
                    refs = (plan.sample_ref(step, lane) for lane in lanes)
                    yield BatchRequest(refs, () if i else ahead)


def train_loader(
    index: Index,
    data: DataConfig,
    plan: EpochPlan,
    *,
    epochs: int,
    micro_batch: int,
    start: tuple[int, int] = (0, 0),
    rank: int = 0,
    world_size: int = 1,
    modalities: Sequence[str] = (),
) -> Iterator[Batch]:
    """Return the micro batches of a rank from ``start`` to the end of the last epoch.

    A step is ``global_batch / world_size / micro_batch`` consecutive batches. Resuming reads
    nothing of the steps before ``start``.

    Parameters
    ----------
    index : Index
    data : DataConfig
    plan : EpochPlan
        Of any epoch: gives clips, seed, global batch and block.
    epochs : int
        Number of epochs of the whole training.
    micro_batch : int
        Clips in a batch.
    start : tuple of int
        Epoch and step of the first batch.
    rank, world_size : int
    modalities : sequence of str
        ``model.modalities``; they do not change the frames and their augmentation.
    """
    dataset = _ClipDataset(index, data, seed=plan.seed, batch=micro_batch, modalities=modalities)
    sampler = TrainSampler(
        plan,
        epochs=epochs,
        start=start,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
    )
    return _start(_data_loader(dataset, sampler))


def evaluation_loader(
    index: Index,
    data: DataConfig,
    clips: ClipSet,
    *,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    views: int = 1,
    shuffle_frames: bool = False,
    modalities: Sequence[str] = (),
) -> Iterator[Batch]:
    """Return the batches of an exact evaluation for one rank.

    Batch number k goes to rank k modulo ``world_size``. Every rank gets the same number of batches,
    the last of which may be padding altogether, since ranks must step together where weights are
    sharded. Each clip comes once, with all its views.

    Parameters
    ----------
    index : Index
    data : DataConfig
    clips : ClipSet
    batch : int
        Clips in a batch.
    rank, world_size : int
    seed : int
        Of ``shuffle_frames``.
    views : int
        Of each clip; see :func:`~dfer_dist.data.loading.frame_sampling.eval_frames`.
    shuffle_frames : bool
        Shuffle the frames of each view.
    modalities : sequence of str
        ``model.modalities``.
    """
    batches = evaluation_batches(clips, batch)
    own: list[list[SampleRef]] = batches[rank::world_size]
    own += [[]] * (-(-len(batches) // world_size) - len(own))
    dataset = _ClipDataset(
        index,
        data,
        seed=seed,
        batch=batch,
        modalities=modalities,
        views=views,
        shuffle_frames=shuffle_frames,
    )
    return _start(_data_loader(dataset, evaluation_requests(own)))


def _data_loader(
    dataset: _ClipDataset, sampler: Sampler[BatchRequest] | list[BatchRequest]
) -> DataLoader[Batch]:
    # Imported before workers are forked, or each imports it at its first shard. Not at the top of
    # the file, since an exported model reads no shards.
    import webdataset.gopen  # noqa: F401

    options: dict[str, Any] = {}
    if dataset.data.workers:
        # a new interpreter instead of a fork takes seconds to import torch
        options = {
            "num_workers": dataset.data.workers,
            "prefetch_factor": PREFETCH,
            "worker_init_fn": _reset_worker,
            "multiprocessing_context": "fork",
        }
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # the sampler yields whole batches
        # only where this process computes on a GPU: train.device=cpu leaves one alone
        pin_memory=torch.cuda.is_initialized(),
        **options,
    )


def _start(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Start the workers with the job's signals blocked.

    torch gives them a handler that would end them before :func:`_reset_worker` is called.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reset_worker(_: int) -> None:
    """Replace the trainer's signal handlers, which a worker inherits, and use one thread.

    Signals to the job reach workers too.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # a rank that is preempted needs its workers until it has saved
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)
    torch.set_num_threads(1)
