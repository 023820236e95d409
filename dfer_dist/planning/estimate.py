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
from pathlib import Path

import numpy as np

from dfer_dist.config.schema import Config, Optimizer, Precision, Supervision, split_batch
from dfer_dist.data.loading.loader import KEPT, PREFETCH
from dfer_dist.data.shards.index import open_index
from dfer_dist.data.shards.store import is_remote
from dfer_dist.data.sources.records import CLASSES
from dfer_dist.models.build import resolve_image_size
from dfer_dist.planning.step_costs import StepCosts, count_step
from dfer_dist.training.bf16_gradients import BUCKET
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
# Numbers that an optimizer keeps for each parameter, and bytes of a number.
_MOMENTS = {Optimizer.sgd: 1, Optimizer.adamw: 2}
_BYTES = {Precision.bf16: 2, Precision.fp32: 4}


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
class Row:
    """One line of a plan.

    ``host`` bytes of main memory that rank 0 needs in addition to the program; ``sent`` bytes a
    rank sends in a step; ``hours`` of training over all epochs and folds.
    """

    stage: int
    micro: int
    accumulation: int
    memory: Memory
    host: float
    fits: bool
    clips_per_second: float
    sent: float
    hours: float


def training_itemsize(config: Config) -> int:
    """Return the bytes of a weight or gradient in the training precision."""
    return _BYTES[config.train.precision]


def data_size(config: Config) -> DataSize:
    """Return the size of the data from the index at ``data.shards``.

    Without an index it is that of the official lists, by the folder's name.

    Raises
    ------
    UserError
        If there is neither.
    """
    shards = Path(config.data.shards)
    if is_remote(config.data.shards) or (shards / "index.json").is_file():
        index = open_index(config.data)
        clips = sum(index.shards[i].clips for k in index.folds for i in index.train_shards(k))
        return DataSize(index.classes, clips // len(index.folds), len(index.folds))
    if shards.name not in _PUBLISHED:
        raise UserError(
            f"{shards} holds no index.json and is not named {', '.join(_PUBLISHED)}: pack first, "
            "or set data.shards"
        )
    clips, folds = _PUBLISHED[shards.name]
    return DataSize(CLASSES[shards.name], clips, folds)


def plan(config: Config, machine: Machine, size: DataSize) -> list[Row]:
    """Return a row for each ZeRO stage and each micro batch.

    Micro batches are the divisors of a rank's share of the global batch. Training on descriptions
    needs the share whole.

    Raises
    ------
    UserError
        If the ranks cannot share the global batch.
    """
    share, _ = split_batch(
        replace(config, train=replace(config.train, micro_batch=None)), machine.ranks
    )
    counted = count_step(config, size.classes, fused_attention=machine.device == "cuda")
    micros = [share]
    if config.train.objective is Supervision.labels:
        micros = [m for m in range(1, share + 1) if share % m == 0]
    return [
        _row(counted, config, machine, size, stage, micro, share // micro)
        for stage in (1, 2, 3)
        for micro in micros
    ]


def plan_here(config: Config, classes: Sequence[str], device: str) -> float:
    """Return the planned bytes of one rank on a ``cpu`` or ``cuda`` device.

    On the CPU, main memory is the device's own.
    """
    micro, accumulation = split_batch(config, 1)
    counted = count_step(config, classes, fused_attention=device == "cuda")
    used = memory(
        counted,
        config,
        Machine(device, 1, math.inf, math.inf, math.inf, 0.0),
        config.train.zero_stage,
        micro,
        accumulation,
    )
    if device == "cuda":
        # torch does not count its libraries.
        return used.total - _RUNTIME[device]
    return used.total + used.host


def fastest(rows: Sequence[Row]) -> Row | None:
    """Return the fastest row that fits, or None.

    Among equals it is the lowest stage, then the largest micro batch.
    """
    return max(
        (r for r in rows if r.fits),
        key=lambda r: (round(r.clips_per_second, 6), -r.stage, r.micro),
        default=None,
    )


def memory(
    counted: StepCosts, config: Config, machine: Machine, stage: int, micro: int, accumulation: int
) -> Memory:
    """Return the bytes of one rank in a step after the first, when moments exist."""
    ranks, cuda = machine.ranks, machine.device == "cuda"
    itemsize = training_itemsize(config)
    trained, every = counted.trained, counted.trained + counted.frozen
    master_weights, moments = 4 * trained / ranks, _MOMENTS[config.optim.name] * 4 * trained / ranks
    weights = float(itemsize * every)
    if stage == 3:
        weights /= ranks
    # Gathered while they are used.
    if stage == 3 and ranks > 1:
        weights += itemsize * min(every - counted.unread, _GATHERED)
    live = counted.live(micro)
    gradients = _gradients(
        counted, itemsize, stage, ranks, accumulation, cuda, config.train.offload_optimizer
    )
    host = 0.0
    if config.train.offload_optimizer:
        # Gradients, and a bf16 copy of the weights on its way back.
        host = master_weights + moments + 4 * trained / ranks + itemsize * trained / ranks
        master_weights = moments = 0.0
    at = int(np.argmax(live + gradients))
    backward = Memory(
        weights + master_weights, gradients[at], moments, live[at], _RUNTIME[machine.device], host
    )
    # After the backward pass, ZeRO-1 in bf16 sends buckets in bf16, one while the next is filled.
    buckets = 0.0
    if stage == 1 and itemsize == 2 and ranks > 1 and not config.train.offload_optimizer:
        buckets = itemsize * min(trained, 2 * BUCKET)
    step = replace(
        backward, gradients=gradients[-1], activations=0.0, other=_RUNTIME[machine.device] + buckets
    )
    return max(backward, step, key=lambda m: m.total)


def _gradients(
    counted: StepCosts,
    itemsize: int,
    stage: int,
    ranks: int,
    accumulation: int,
    cuda: bool,
    offload: bool,
) -> np.ndarray:
    """Return the bytes of gradients after each operation of a step's last micro batch."""
    trained, done = counted.trained, counted.graded.astype(np.float64)
    # The buffers exist from the first micro batch on.
    if accumulation > 1:
        done = np.full_like(done, trained)
    if stage == 1:
        if itemsize == 4:
            return 4 * done
        if offload:
            return (4 + itemsize) * done
        # DeepSpeed's optimizer for bf16 keeps float32 gradients of all parameters.
        return 4 * trained + itemsize * done
    own = filled = done
    # ZeRO-3 keeps its bucket from step to step.
    if stage == 3:
        own = filled = np.full_like(done, trained)
    elif cuda:
        own = np.where(done > 0, trained, 0)
    # An allocation counts whole on a GPU; on the CPU only the pages that are written count.
    bucket = itemsize * np.minimum(filled, BUCKET)
    if cuda:
        # ZeRO-2 fills one bucket while it sends the other.
        bucket = np.full_like(done, itemsize * BUCKET * (2 if stage == 2 else 1))
    if offload:
        return bucket
    return bucket + 4 * own / ranks


def _row(
    counted: StepCosts,
    config: Config,
    machine: Machine,
    size: DataSize,
    stage: int,
    micro: int,
    accumulation: int,
) -> Row:
    itemsize = training_itemsize(config)
    used = memory(counted, config, machine, stage, micro, accumulation)
    sent = sent_bytes(counted, itemsize, stage, machine.ranks, accumulation)
    moved = 0.0
    # Gradients to main memory, and weights back.
    if config.train.offload_optimizer:
        moved = (4 + itemsize) * counted.trained / machine.ranks
    network = network_seconds(counted, itemsize, stage, machine, accumulation)
    seconds = (
        accumulation * counted.flops(micro) / machine.flops + moved / machine.bandwidth + network
    )
    batch = config.train.global_batch
    steps = size.clips // batch * config.train.epochs * size.folds
    host = used.host + saved_bytes(counted, config) + loader_bytes(config, micro)
    fits = used.total <= machine.memory
    return Row(
        stage, micro, accumulation, used, host, fits, batch / seconds, sent, steps * seconds / 3600
    )


def saved_bytes(counted: StepCosts, config: Config) -> float:
    """Return the bytes of the copy that rank 0 keeps while a checkpoint is written.

    It holds all master weights and moments.
    """
    return 4.0 * counted.trained * (1 + _MOMENTS[config.optim.name])


def loader_bytes(config: Config, micro: int) -> float:
    """Return the bytes of shared memory of a rank's loader: buffers of a micro batch of frames."""
    slots = config.data.workers * PREFETCH + KEPT
    pictures = (1 + len(config.model.modalities)) * config.data.num_frames
    return float(slots * micro * pictures * resolve_image_size(config) ** 2 * 3)


def sent_bytes(
    counted: StepCosts, itemsize: int, stage: int, ranks: int, accumulation: int
) -> float:
    """Return the bytes that a rank sends in a step, with ring collectives.

    2 (W-1)/W of what is all-reduced, (W-1)/W of what is gathered.

    ZeRO-1 reduces once a step, ZeRO-2 and 3 with every micro batch; ZeRO-3 gathers the weights for
    each of them, once more for the backward pass if there are too many to keep.
    """
    gradients = itemsize * counted.trained
    weights = itemsize * (counted.trained + counted.frozen - counted.unread)
    part = (ranks - 1) / ranks
    if stage == 3:
        passes = 1 if weights / itemsize <= _GATHERED else 2
        return part * accumulation * (gradients + passes * weights)
    reductions = accumulation if stage == 2 else 1
    return part * (2 * gradients * reductions + gradients)


def collectives(counted: StepCosts, stage: int, accumulation: int) -> int:
    """Return how many collectives a step starts.

    ZeRO-3 gathers each large parameter by itself, for every micro batch.
    """
    gathers, buckets = len(counted.groups), -(-counted.trained // BUCKET)
    if stage == 3:
        return accumulation * (counted.large + buckets)
    return gathers + buckets * (accumulation if stage == 2 else 1)


def network_seconds(
    counted: StepCosts, itemsize: int, stage: int, machine: Machine, accumulation: int
) -> float:
    """Return the seconds of a step's communication.

    They are the bytes sent over the bandwidth, and for each collective the depth of a tree of ranks
    up and down, one latency for each hop. A pair of trees reaches both, as NCCL builds them:
    Sanders, Speck & Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan",
    Parallel Computing 35 (2009). No communication is assumed to overlap with the backward pass.
    """
    tree_depth = math.ceil(math.log2(machine.ranks))
    sent = sent_bytes(counted, itemsize, stage, machine.ranks, accumulation)
    hops = collectives(counted, stage, accumulation) * 2 * tree_depth
    return sent / machine.bandwidth + hops * machine.latency
