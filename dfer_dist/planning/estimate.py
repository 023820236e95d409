"""Memory and time of a run, ahead of it.

What each ZeRO stage and micro batch would take on machines that are not here.

Parameters, operations and the bytes of activations are counted on the real model
(:mod:`dfer_dist.planning.step_costs`). What DeepSpeed 0.19 adds for each stage follows from its source
and was held against real steps (``docs/background/memory.md``). Speed is arithmetic on the
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


@dataclass(frozen=True)
class Machine:
    """What a plan is made for.

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

    ``weights`` has the float32 masters too; ``host`` is what an offloaded optimizer keeps in main
    memory.
    """

    weights: float
    gradients: float
    moments: float
    activations: float
    other: float
    host: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations + self.other


@dataclass(frozen=True)
class Row:
    """One line of a plan.

    ``host`` bytes of main memory that rank 0 needs beside the program; ``sent`` bytes a rank sends
    in a step; ``hours`` of training over all epochs and folds.
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


def data_size(config: Config) -> DataSize:
    """From the index at ``data.shards``.

    Without one, from the official lists, by the folder's name.

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
    """A row for each ZeRO stage and each micro batch that divides a rank's share of the global
    batch; descriptions need it whole.

    Raises
    ------
    UserError
        If the ranks cannot share the global batch.
    """
    share, _ = split_batch(
        replace(config, train=replace(config.train, micro_batch=None)), machine.ranks
    )
    counted = count_step(config, size.classes, fused_attention=machine.device == "cuda")
    whole = config.train.objective is not Supervision.labels
    micros = [share] if whole else [m for m in range(1, share + 1) if share % m == 0]
    return [
        _row(counted, config, machine, size, stage, micro, share // micro)
        for stage in (1, 2, 3)
        for micro in micros
    ]


def plan_here(config: Config, classes: Sequence[str], device: str) -> float:
    """Planned bytes of one rank on a ``cpu`` or ``cuda`` device.

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
        return used.total - _RUNTIME[device]  # which torch's own count does not see
    return used.total + used.host


def fastest(rows: Sequence[Row]) -> Row | None:
    """The fastest that fits; among equals the lowest stage, then the largest micro batch.

    None if nothing fits.
    """
    return max(
        (r for r in rows if r.fits),
        key=lambda r: (round(r.clips_per_second, 6), -r.stage, r.micro),
        default=None,
    )


def memory(
    counted: StepCosts, config: Config, machine: Machine, stage: int, micro: int, accumulation: int
) -> Memory:
    """Bytes of one rank in a step after the first, when moments are there."""
    ranks, cuda = machine.ranks, machine.device == "cuda"
    half = 2 if config.train.precision is Precision.bf16 else 4
    trained, every = counted.trained, counted.trained + counted.frozen
    master_weights, moments = 4 * trained / ranks, _MOMENTS[config.optim.name] * 4 * trained / ranks
    weights = half * every / (ranks if stage == 3 else 1)
    if stage == 3 and ranks > 1:
        weights += half * min(every - counted.unread, _GATHERED)  # whole again while they are used
    live = counted.live(micro)
    gradients = _gradients(
        counted, half, stage, ranks, accumulation, cuda, config.train.offload_optimizer
    )
    host = 0.0
    if config.train.offload_optimizer:
        host = (
            master_weights + moments + 4 * trained / ranks + half * trained / ranks
        )  # and a bf16 copy on its way back
        master_weights = moments = 0.0
    at = int(np.argmax(live + gradients))
    backward = Memory(
        weights + master_weights, gradients[at], moments, live[at], _RUNTIME[machine.device], host
    )
    # after the backward pass, ZeRO-1 in bf16 sends buckets in bf16, one while the next is filled
    buckets = stage == 1 and half == 2 and ranks > 1 and not config.train.offload_optimizer
    passing = half * min(trained, 2 * BUCKET) if buckets else 0.0
    step = replace(
        backward, gradients=gradients[-1], activations=0.0, other=_RUNTIME[machine.device] + passing
    )
    return max(backward, step, key=lambda m: m.total)


_MOMENTS = {Optimizer.sgd: 1, Optimizer.adamw: 2}


def _gradients(
    counted: StepCosts,
    half: int,
    stage: int,
    ranks: int,
    accumulation: int,
    cuda: bool,
    offload: bool,
) -> np.ndarray:
    """Bytes of gradients after each operation of the last micro batch of a step, an array over
    time.
    """
    trained, done = counted.trained, counted.graded.astype(np.float64)
    if accumulation > 1:  # the buffers are there from the first micro batch on
        done = np.full_like(done, trained)
    if stage == 1:
        if half == 4:
            return 4 * done
        if offload:
            return (4 + half) * done
        # DeepSpeed's optimizer for bf16 keeps float32 gradients of all parameters.
        return 4 * trained + half * done
    # what is allocated whole counts whole on a GPU; on the CPU only the pages that are written do
    buckets = 2 if stage == 2 else 1  # in turns, while the other is on its way
    # ZeRO-3 keeps its bucket from step to step.
    filled = np.full_like(done, trained) if stage == 3 else done
    bucket = (
        np.full_like(done, half * BUCKET * buckets) if cuda else half * np.minimum(filled, BUCKET)
    )
    if offload:
        return bucket
    own = done
    if stage == 3:
        own = np.full_like(done, trained)
    elif cuda:
        own = np.where(done > 0, trained, 0)
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
    half = 2 if config.train.precision is Precision.bf16 else 4
    used = memory(counted, config, machine, stage, micro, accumulation)
    sent = sent_bytes(counted, half, stage, machine.ranks, accumulation)
    moved = (
        (4 + half) * counted.trained / machine.ranks if config.train.offload_optimizer else 0.0
    )  # gradients out, weights back
    network = network_seconds(counted, half, stage, machine, accumulation)
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
    """The one full copy of masters and moments that rank 0 keeps while a checkpoint is written."""
    return 4.0 * counted.trained * (1 + _MOMENTS[config.optim.name])


def loader_bytes(config: Config, micro: int) -> float:
    """Shared memory of a rank's loader: the slots of its ring, a micro batch of frames each."""
    slots = config.data.workers * PREFETCH + KEPT
    pictures = (1 + len(config.model.modalities)) * config.data.num_frames
    return float(slots * micro * pictures * resolve_image_size(config) ** 2 * 3)


def sent_bytes(counted: StepCosts, half: int, stage: int, ranks: int, accumulation: int) -> float:
    """Bytes that a rank sends in a step, in rings.

    2 (W-1)/W of what is all-reduced, (W-1)/W of what is gathered.

    ZeRO-1 reduces once a step, ZeRO-2 and 3 with every micro batch; ZeRO-3 gathers the weights for
    each of them, once more for the backward pass if there are too many to keep.
    """
    gradients, weights = (
        half * counted.trained,
        half * (counted.trained + counted.frozen - counted.unread),
    )
    part = (ranks - 1) / ranks
    if stage == 3:
        passes = 1 if weights / half <= _GATHERED else 2
        return part * accumulation * (gradients + passes * weights)
    return part * (2 * gradients * (accumulation if stage == 2 else 1) + gradients)


def collectives(counted: StepCosts, stage: int, accumulation: int) -> int:
    """How many collectives a step starts.

    ZeRO-3 gathers each large parameter by itself, for every micro batch.
    """
    gathers, buckets = len(counted.groups), -(-counted.trained // BUCKET)
    if stage == 3:
        return accumulation * (counted.large + buckets)
    return gathers + buckets * (accumulation if stage == 2 else 1)


def network_seconds(
    counted: StepCosts, half: int, stage: int, machine: Machine, accumulation: int
) -> float:
    """What a step sends over the bandwidth, and the way of each collective up and down a tree of
    ranks, one latency for each of its levels.

    A pair of trees reaches both, as NCCL builds them: Sanders, Speck & Träff, "Two-tree algorithms
    for full bandwidth broadcast, reduction and scan", Parallel Computing 35 (2009). Nothing is
    taken to be hidden behind the backward pass.
    """
    tree_depth = math.ceil(math.log2(machine.ranks))
    sent = sent_bytes(counted, half, stage, machine.ranks, accumulation)
    return (
        sent / machine.bandwidth
        + collectives(counted, stage, accumulation) * 2 * tree_depth * machine.latency
    )
