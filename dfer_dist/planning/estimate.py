"""Estimate memory and time of each ZeRO stage and micro batch, for machines that are not here.

Parameters, operations and the bytes of activations are counted on the real model
(:mod:`dfer_dist.planning.step_costs`). What DeepSpeed 0.19 adds for each stage follows from its
source and was compared with real steps (``docs/background/memory.md``). Speed is arithmetic on the
operations per second and bytes per second that the caller assumes: no step is timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dfer_dist.config.schema import Ambiguous, Config, Precision, Supervision, split_batch
from dfer_dist.data.folds.clips import clips_of_set, fold_clips, fold_numbers
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.loading.loader import KEPT, PREFETCH
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import JointIndex, open_sets
from dfer_dist.data.shards.store import is_remote
from dfer_dist.data.sources.records import CLASSES
from dfer_dist.models.build import model_dtype, resolve_image_size
from dfer_dist.planning.step_costs import StepCosts, count_step
from dfer_dist.training.bf16_gradients import BUCKET, MAX_IN_FLIGHT, PART
from dfer_dist.utils.errors import UserError

GIB = 2**30
# Libraries and workspaces: measured on the CPU, assumed on a GPU.
_RUNTIME = {"cpu": 0.07 * GIB, "cuda": 1.0 * GIB}
# Parameters that ZeRO-3 keeps gathered from the forward to the backward pass: DeepSpeed's
# stage3_max_live_parameters.
_GATHERED = 10**9
# Training clips of a fold (of 11,697 and 9,172 in five folds; 31,088 in one) and number of folds,
# for a plan before the data are packed.
_PUBLISHED = {"dfew": (9_357, 5), "mafw": (7_337, 5), "ferv39k": (31_088, 1)}
# Numbers that an optimizer keeps for each parameter.


@dataclass(frozen=True)
class Machine:
    """The machine that a plan is made for.

    ``flops`` a second (bf16, achieved, not the peak) and ``bandwidth`` bytes a second are of one
    GPU; ``latency`` seconds pass from one rank to another.
    """

    device: str
    ranks: int
    memory: float
    flops: float
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class DataSize:
    """Classes in label order, training clips of a fold, folds."""

    classes: tuple[str, ...]
    clips: int
    folds: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment when most are in use.

    ``weights`` includes the float32 master weights; ``host`` is what an offloaded optimizer keeps
    in main memory.
    """

    weights: float
    gradients: float
    moments: float
    activations: float
    other: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of all kinds on the device."""
        return self.weights + self.gradients + self.moments + self.activations + self.other


@dataclass(frozen=True)
class PlannedStep:
    """A training step of one ZeRO stage and micro batch on a machine.

    ``costs`` are those of one micro batch, of which a rank computes ``accumulation``.
    """

    costs: StepCosts
    config: Config
    machine: Machine
    stage: int
    micro: int
    accumulation: int

    @property
    def itemsize(self) -> int:
        """Bytes of a weight or gradient in the training precision."""
        return model_dtype(self.config.train.precision).itemsize

    @property
    def _states(self) -> int:
        """Float32 states of a trained parameter: its moments, and its average with train.ema."""
        return len(self.config.optim.moments) + bool(self.config.train.ema)

    @cached_property
    def memory(self) -> Memory:
        """Bytes of one rank in a step after the first, when moments exist."""
        ranks, offload = self.machine.ranks, self.config.train.offload_optimizer
        trained, every = self.costs.trained, self.costs.trained + self.costs.frozen
        master_weights = 4 * trained / ranks
        moments = self._states * 4 * trained / ranks
        weights = float(self.itemsize * every)
        if self.stage == 3:
            weights /= ranks
        # Gathered while they are used.
        if self.stage == 3 and ranks > 1:
            weights += self.itemsize * min(every - self.costs.unread, _GATHERED)
        live, gradients, host = self.costs.live(self.micro), self._gradients(), 0.0
        if offload:
            # Gradients, and a bf16 copy of the weights on its way back.
            host = master_weights + moments + 4 * trained / ranks + self.itemsize * trained / ranks
            master_weights = moments = 0.0
        at, runtime = int(np.argmax(live + gradients)), _RUNTIME[self.machine.device]
        backward = Memory(weights + master_weights, gradients[at], moments, live[at], runtime, host)
        step = replace(backward, gradients=gradients[-1], activations=0.0)
        return max(backward, step, key=lambda m: m.total)

    def _gradients(self) -> np.ndarray:
        """Return the bytes of gradients after each operation of a step's last micro batch."""
        stage, itemsize, offload = self.stage, self.itemsize, self.config.train.offload_optimizer
        trained, done = self.costs.trained, self.costs.graded.astype(np.float64)
        # The buffers exist from the first micro batch on.
        if self.accumulation > 1:
            done = np.full_like(done, trained)
        if stage == 1:
            if itemsize == 4:
                return 4 * done
            if offload:
                return (4 + itemsize) * done
            if self.config.train.precision is Precision.fp16:
                return self._gradients_in_fp16(done)
            # DeepSpeed's optimizer for bf16 keeps float32 gradients of all parameters. Those in
            # bf16 are freed one by one, and again made for what is sent at a time.
            sent = PART * MAX_IN_FLIGHT if self.machine.ranks > 1 else 0
            return 4 * trained + itemsize * np.minimum(self.costs.graded, sent)
        own = filled = done
        # ZeRO-3 keeps its bucket from step to step.
        if stage == 3:
            own = filled = np.full_like(done, trained)
        elif self.machine.device == "cuda":
            own = np.where(done > 0, trained, 0)
        # An allocation counts whole on a GPU; on the CPU only the pages that are written count.
        bucket = itemsize * np.minimum(filled, BUCKET)
        if self.machine.device == "cuda":
            # ZeRO-2 fills one bucket while it sends the other.
            bucket = np.full_like(done, itemsize * BUCKET * (2 if stage == 2 else 1))
        if offload:
            return bucket
        return bucket + 4 * own / self.machine.ranks

    def _gradients_in_fp16(self, done: np.ndarray) -> np.ndarray:
        """Return the bytes of ZeRO-1 in float16, which keeps float32 gradients.

        After the last one, a rank copies those of its share.
        """
        trained = self.costs.trained
        share = np.where(self.costs.graded == trained, 4 * trained / self.machine.ranks, 0)
        bucket = self.itemsize * np.minimum(done, BUCKET)
        # Two buckets in float32: one is filled while the other is sent.
        if self.machine.device == "cuda":
            bucket = np.full_like(done, 2 * 4 * BUCKET)
        return 4 * done + share + bucket

    @property
    def fits(self) -> bool:
        """Whether the machine has the memory."""
        return self.memory.total <= self.machine.memory

    @property
    def host(self) -> float:
        """Bytes of main memory that rank 0 needs in addition to the program.

        With the copy of master weights and moments that it keeps while a checkpoint is written.
        """
        saved = 4.0 * self.costs.trained * (1 + self._states)
        return self.memory.host + saved + loader_bytes(self.config, self.micro)

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a step, with ring collectives.

        2 (W-1)/W of what is all-reduced, (W-1)/W of what is gathered.

        ZeRO-1 reduces once a step, ZeRO-2 and 3 with every micro batch; ZeRO-3 gathers the weights
        for each of them, once more for the backward pass if there are too many to keep.
        """
        costs, ranks = self.costs, self.machine.ranks
        read = costs.trained + costs.frozen - costs.unread
        gradients, weights = self.itemsize * costs.trained, self.itemsize * read
        part = (ranks - 1) / ranks
        if self.stage == 3:
            passes = 1 if read <= _GATHERED else 2
            return part * self.accumulation * (gradients + passes * weights)
        return part * (2 * gradients * self._reductions + gradients)

    @property
    def _reductions(self) -> int:
        """How often the gradients of ZeRO-1 or 2 are reduced."""
        return self.accumulation if self.stage == 2 else 1

    @property
    def _collectives(self) -> int:
        """How many collectives a step starts.

        ZeRO-3 gathers each large parameter by itself, for every micro batch.
        """
        buckets = -(-self.costs.trained // BUCKET)
        if self.stage == 3:
            return self.accumulation * (self.costs.large + buckets)
        return len(self.costs.groups) + buckets * self._reductions

    @property
    def compute_seconds(self) -> float:
        """Seconds of a step's operations."""
        return self.accumulation * self.costs.flops(self.micro) / self.machine.flops

    @property
    def network_seconds(self) -> float:
        """Seconds of a step's communication.

        They are the bytes sent over the bandwidth, and for each collective the depth of a tree of
        ranks up and down, one latency for each hop. A pair of trees reaches both, as NCCL builds
        them: Sanders, Speck & Träff, "Two-tree algorithms for full bandwidth broadcast, reduction
        and scan", Parallel Computing 35 (2009). No communication is assumed to overlap with the
        backward pass.
        """
        tree_depth = math.ceil(math.log2(self.machine.ranks))
        hops = self._collectives * 2 * tree_depth
        return self.sent / self.machine.bandwidth + hops * self.machine.latency

    @property
    def clips_per_second(self) -> float:
        """Clips a second of all ranks."""
        return self.config.train.global_batch / self._seconds

    @property
    def _seconds(self) -> float:
        moved = 0.0
        # Gradients to main memory, and weights back.
        if self.config.train.offload_optimizer:
            moved = (4 + self.itemsize) * self.costs.trained / self.machine.ranks
        return self.compute_seconds + moved / self.machine.bandwidth + self.network_seconds

    def hours(self, size: DataSize) -> float:
        """Return the hours of training over all epochs and folds."""
        train = self.config.train
        steps = size.clips // train.global_batch * train.epochs * size.folds
        return steps * self._seconds / 3600


def data_size(config: Config) -> DataSize:
    """Return the size of the data from the index at ``data.shards``.

    Without an index it is that of the official lists, by the folder's name.

    Raises
    ------
    UserError
        If there is neither.
    """
    shards, several = Path(config.data.locations[0]), len(config.data.locations) > 1
    if several or is_remote(config.data.locations[0]) or (shards / "index.json").is_file():
        index = open_sets(config.data)
        overlay = open_folds(config.data, index)
        numbers, ambiguous = fold_numbers(index, overlay), config.data.ambiguous is Ambiguous.train
        parts = (fold_clips(index, k, overlay, ambiguous=ambiguous) for k in numbers)
        trained = sum(_epoch_clips(config, index, part.train) for part in parts)
        return DataSize(index.classes, trained // len(numbers), len(numbers))
    if shards.name not in _PUBLISHED:
        raise UserError(
            f"{shards} holds no index.json and is not named {', '.join(_PUBLISHED)}: pack first, "
            "or set data.shards"
        )
    clips, folds = _PUBLISHED[shards.name]
    return DataSize(CLASSES[shards.name], clips, folds)


def _epoch_clips(config: Config, index: Index, clips: ClipSet) -> int:
    """Return how many training clips an epoch takes."""
    mixture = config.data.mixture
    if not (mixture and isinstance(index, JointIndex)):
        return len(clips)
    parts = [len(clips_of_set(index, clips, number)) for number in range(len(index.sets))]
    names = [own.name for own in index.sets]
    return sum(round(mixture.get(name, 1) * n) for name, n in zip(names, parts, strict=True))


def plan_step(config: Config, classes: Sequence[str], machine: Machine) -> PlannedStep:
    """Return the step of ``config``, with its own ZeRO stage and micro batch.

    Raises
    ------
    UserError
        If the ranks cannot share the global batch.
    """
    micro, accumulation = split_batch(config, machine.ranks)
    costs = count_step(config, classes, fused_attention=machine.device == "cuda")
    return PlannedStep(costs, config, machine, config.train.zero_stage, micro, accumulation)


def plan(config: Config, machine: Machine, classes: Sequence[str]) -> list[PlannedStep]:
    """Return a step for each ZeRO stage and each micro batch.

    Micro batches are the divisors of a rank's share of the global batch. Training on descriptions
    needs the share whole.

    Raises
    ------
    UserError
        If the ranks cannot share the global batch.
    """
    config = replace(config, train=replace(config.train, micro_batch=None))
    whole = plan_step(config, classes, machine)
    micros = [whole.micro]
    if config.train.objective is Supervision.labels:
        micros = [m for m in range(1, whole.micro + 1) if whole.micro % m == 0]
    if config.data.augment.mixes_clips:
        # Pairs of clips are mixed.
        micros = [m for m in micros if m % 2 == 0]
    return [
        replace(whole, stage=stage, micro=micro, accumulation=whole.micro // micro)
        for stage in (1, 2, 3)
        for micro in micros
    ]


def plan_here(config: Config, classes: Sequence[str], device: str) -> float:
    """Return the planned bytes of one rank on a ``cpu`` or ``cuda`` device.

    On the CPU, main memory is the device's own.
    """
    machine = Machine(device, 1, math.inf, math.inf, math.inf, 0.0)
    used = plan_step(config, classes, machine).memory
    if device == "cuda":
        # torch does not count its libraries.
        return used.total - _RUNTIME[device]
    return used.total + used.host


def fastest(steps: Sequence[PlannedStep]) -> PlannedStep | None:
    """Return the fastest step that fits, or None.

    Among equals it is the lowest stage, then the largest micro batch.
    """
    return max(
        (step for step in steps if step.fits),
        key=lambda step: (round(step.clips_per_second, 6), -step.stage, step.micro),
        default=None,
    )


def loader_bytes(config: Config, micro: int) -> float:
    """Return the bytes of shared memory of a rank's loader: buffers of a micro batch of frames."""
    slots = config.data.workers * PREFETCH + KEPT
    pictures = (1 + len(config.model.modalities)) * config.data.num_frames
    return float(slots * micro * pictures * resolve_image_size(config) ** 2 * 3)
