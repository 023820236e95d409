"""Batches for one rank, in the order of the plan, at any number of loader workers.

A sampler yields requests, each for a whole batch; a worker decodes all of it, and torch's
DataLoader returns batches in the order of the requests. Workers live through all epochs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading import augmentation, prefetch
from dfer_dist.data.loading.augmentation import (
    AugmentParams,
    SpatialView,
    sample_params,
    spatial_views,
    stack_params,
)
from dfer_dist.data.loading.batch import Batch, BufferPool
from dfer_dist.data.loading.frame_sampling import eval_frames, train_frames
from dfer_dist.data.loading.mixing import MixParams, sample_mix
from dfer_dist.data.loading.modalities import ModalityReader
from dfer_dist.data.loading.rand_augment import MAX_SEED, RandAugment
from dfer_dist.data.loading.sampler import ClipSet, EpochPlan, evaluation_batches, keyed_rng
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


@dataclass(eq=False)
class _ClipDataset(Dataset[Batch]):
    """Batches by request.

    ``views`` is 0 for training: frames and augmentation are then random.
    """

    index: Index
    data: DataConfig
    modalities: Sequence[str]
    batch: int
    seed: int
    views: int = 0
    shuffle_frames: bool = False

    def __post_init__(self) -> None:
        assert self.data.image_size is not None, "the model determines it"
        self.size = self.data.image_size
        self.reader, self.prefetcher = ClipReader(self.index), prefetch.Prefetcher(self.index)
        self.renderer = ModalityReader(self.index, self.modalities)
        self.frames = max(self.views, 1) * self.data.num_frames
        pictures = (1 + len(self.modalities)) * self.frames
        shape = (self.batch, pictures, self.size, self.size, 3)
        self.pool = BufferPool(self.data.workers * PREFETCH + KEPT, shape)

    def __getitem__(self, request: prefetch.BatchRequest) -> Batch:
        """Read and decode a batch.

        Each stage handles all clips before the next begins, which keeps its code in the
        processor's cache: decoding empties it.
        """
        self.prefetcher.prefetch(request.ahead)
        array, index = self.pool.acquire()
        batch = Batch(
            frames=torch.from_numpy(array),
            labels=torch.zeros(self.batch, dtype=torch.int64),
            valid=torch.zeros(self.batch, dtype=torch.bool),
            keys=[""] * self.batch,
            lost=[],
            augment_params=torch.empty(0),
            views=max(self.views, 1),
            modalities=len(self.modalities),
            buffer=None if index is None else (self.pool.id, index),
        )
        rngs = list[np.random.Generator]()
        handles, clips = dict[int, ClipHandle](), dict[int, Clip]()
        for i, ref in enumerate(request):
            batch.keys[i] = self.reader.key(ref.shard, ref.row)
            rngs.append(keyed_rng("clip", self.seed, ref.epoch, batch.keys[i]))
            choose = partial(self._choose_frames, rngs[i])
            with _record_damage(batch.lost):
                handles[i] = self.reader.find(ref.shard, ref.row, choose)
        for i, handle in handles.items():
            with _record_damage(batch.lost):
                clips[i] = self.reader.decode(handle, array[i, : self.frames])
        params = [AugmentParams.identity(self.size, self.size)] * self.batch
        for i, clip in clips.items():
            with _record_damage(batch.lost):
                params[i] = self._finish(handles[i], clip, rngs[i], request.view, array[i])
                batch.labels[i], batch.valid[i] = clip.label, True
        batch.augment_params = stack_params(params)
        array[~batch.valid.numpy()] = 0
        if not self.views:
            self._sample_recipe(batch, rngs)
        # a worker only fills a buffer: the process that receives the batch exports it
        if index is not None and not self.data.workers:
            batch.frames = self.pool.export(index)
        return batch

    def _finish(
        self,
        handle: ClipHandle,
        clip: Clip,
        rng: np.random.Generator,
        view: SpatialView,
        out: np.ndarray,
    ) -> AugmentParams:
        """Draw a clip's modalities, resize its frames if needed; return what is left to do.

        Frames of the model's size are in their buffer already. Others are augmented and resized
        here: memory for frames of every size would have to be allocated for each batch, which takes
        longer.
        """
        height, width = clip.frames.shape[1:3]
        if self.views:
            params = view.params(height, width)
        else:
            params = sample_params(height, width, self.data.augment, rng)
        self.renderer.draw(handle, (height, width), params, out[self.frames :])
        if (height, width) == (self.size, self.size):
            return params
        frames = torch.from_numpy(clip.frames)[None]
        resized = augmentation.apply(frames, stack_params([params]), self.size)
        torch.from_numpy(out[: self.frames]).copy_(resized[0].permute(0, 2, 3, 1))
        return AugmentParams.identity(self.size, self.size)

    def _sample_recipe(self, batch: Batch, rngs: list[np.random.Generator]) -> None:
        """Sample what is done to clips after :func:`augmentation.apply`, if anything.

        Drawn last, so that these settings leave frames and crops as they are without them.
        """
        config = self.data.augment
        if config.rand_augment or config.erasing:
            seeds = {i: int(rng.integers(MAX_SEED)) for i, rng in enumerate(rngs) if batch.valid[i]}
            batch.rand_augment = RandAugment.from_config(config, seeds)
        if config.mixes_clips:
            are_valid = batch.valid.unflatten(0, (-1, 2)).all(1).tolist()
            batch.mix = [
                sample_mix(self.size, config, rng) if valid else MixParams()
                for rng, valid in zip(rngs[::2], are_valid, strict=True)
            ]

    def _choose_frames(self, rng: np.random.Generator, _: str, count: int) -> np.ndarray:
        if not self.views:
            return train_frames(count, self.data, rng)
        views = eval_frames(count, self.data, self.views)
        return np.concatenate([rng.permutation(v) if self.shuffle_frames else v for v in views])


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
    lanes = plan.lanes(range(rank, rank + 1), world_size)
    requests = prefetch.training_requests(plan, lanes, micro_batch, start, epochs)
    return _start(_ClipDataset(index, data, modalities, micro_batch, plan.seed), requests)


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
    crops: int = 1,
    mirror: bool = False,
    shuffle_frames: bool = False,
    modalities: Sequence[str] = (),
) -> Iterator[Batch]:
    """Return the batches of an exact evaluation for one rank.

    Batch number k goes to rank k modulo ``world_size``. Every rank gets the same number of batches,
    the last of which may be padding altogether, since ranks must step together where weights are
    sharded. Each clip comes once for each spatial view, with all its temporal ones. Spatial views
    are decoded anew, so that they need no more memory.

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
        Of each clip in time; see :func:`~dfer_dist.data.loading.frame_sampling.eval_frames`.
    crops, mirror
        Of each clip in space; see :func:`~dfer_dist.data.loading.augmentation.spatial_views`.
    shuffle_frames : bool
        Shuffle the frames of each view.
    modalities : sequence of str
        ``model.modalities``.
    """
    batches = evaluation_batches(clips, batch)
    own = batches[rank::world_size]
    own += [[]] * (-(-len(batches) // world_size) - len(own))
    dataset = _ClipDataset(index, data, modalities, batch, seed, views, shuffle_frames)
    return _start(dataset, prefetch.evaluation_requests(own, spatial_views(crops, mirror)))


def _start(dataset: _ClipDataset, requests: Iterable[prefetch.BatchRequest]) -> Iterator[Batch]:
    """Start the workers with the job's signals blocked.

    torch gives them a handler that would end them before :func:`_reset_worker` is called.
    """
    # Imported before workers are forked, or each imports it at its first shard. Not at the top of
    # the file, since an exported model reads no shards.
    import dfer_dist.data.shards.webdataset_files  # noqa: F401

    workers = dataset.data.workers
    loader = DataLoader(
        dataset,
        sampler=requests,
        batch_size=None,  # the sampler yields whole batches
        # only where this process computes on a GPU: train.device=cpu leaves one alone
        pin_memory=torch.cuda.is_initialized(),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_reset_worker,
        # a new interpreter instead of a fork takes seconds to import torch
        multiprocessing_context="fork" if workers else None,
    )
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
