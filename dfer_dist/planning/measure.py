"""Measure the memory and time of real training steps on this machine, to compare with an estimate.

Random weights and random clips, the engine of a run.
``python -m dfer_dist.planning.measure --config FILE`` (which ``dfer plan --measure`` starts for
each rank) takes two steps, the second with moments, and prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Precision, Supervision
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed, peak_memory
from dfer_dist.models.build import build_model, resolve_image_size
from dfer_dist.models.outputs import OutputsModule
from dfer_dist.models.tokenizer import CONTEXT
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.estimate import data_size, plan_here
from dfer_dist.training.engine import Engine, build_engine
from dfer_dist.training.losses import Objective
from dfer_dist.utils.hardware import loopback_bytes_sent, resident_bytes

STEPS = 2
_DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}
# Numbers in a large all-reduce.
_LARGE = 8_000_000


@dataclass(frozen=True)
class MeasuredStep:
    """Memory at its peak, above what the imports take, and time of the last step.

    Attributes
    ----------
    measured : float
        Bytes, those of building the model included.
    planned : float or None
        Estimated bytes, for one rank.
    seconds : float
        Of the last step.
    sent : int
        Bytes that all ranks of this machine sent in it over the loopback interface.
    latency, bandwidth : float or None
        Seconds, and bytes a second, of an all-reduce between the ranks; None for one rank.
    image_size, micro_batch, accumulation : int
        The step's sizes.
    """

    measured: float
    planned: float | None
    seconds: float
    sent: int
    latency: float | None
    bandwidth: float | None
    image_size: int
    micro_batch: int
    accumulation: int


class _Link(NamedTuple):
    """Latency and bandwidth as in :class:`MeasuredStep`."""

    latency: float | None
    bandwidth: float | None


def measure(config: Config, classes: tuple[str, ...]) -> MeasuredStep:
    """Take :data:`STEPS` optimizer steps in this process, which must not have used torch before.

    Parameters
    ----------
    classes : tuple of str
        In label order.
    """
    ranks = init_distributed(config.train.device)
    # Imported here so that its memory is not counted.
    import deepspeed  # noqa: F401

    before = bytes_in_use(ranks)
    size = resolve_image_size(config)
    model = build_model(
        replace(config.model, pretrained="none"), classes, config.data.num_frames, size
    )
    engine = build_engine(OutputsModule(model), param_groups(model), config, ranks, STEPS)
    objective = Objective(config, [1] * len(classes), ranks.device)
    seconds, sent = 0.0, 0
    for step in range(STEPS):
        # All ranks begin together.
        ranks.all_reduce_sum([0.0])
        begin, before_step = time.perf_counter(), loopback_bytes_sent()
        engine.set_learning_rates(step)
        for _ in range(engine.accumulation):
            loss = _micro_step(engine, objective, config, len(classes), size, ranks.device)
        loss.item()
        ranks.all_reduce_sum([0.0])
        seconds, sent = time.perf_counter() - begin, loopback_bytes_sent() - before_step
    measured = peak_memory(ranks.device) - before
    planned, link = None, _Link(None, None)
    if ranks.world_size == 1:
        planned = plan_here(config, classes, ranks.device.type)
    else:
        link = _measure_link(ranks, _DTYPES[config.train.precision])
    return MeasuredStep(
        measured=measured,
        planned=planned,
        seconds=seconds,
        sent=sent,
        latency=link.latency,
        bandwidth=link.bandwidth,
        image_size=size,
        micro_batch=engine.micro_batch,
        accumulation=engine.accumulation,
    )


def _micro_step(
    engine: Engine,
    objective: Objective,
    config: Config,
    num_classes: int,
    size: int,
    device: torch.device,
) -> Tensor:
    """Train on a micro batch of random clips, and return its loss."""
    frames = torch.randint(
        0, 256, (engine.micro_batch, config.data.num_frames, 3, size, size), dtype=torch.uint8
    )
    labels = torch.randint(num_classes, (engine.micro_batch,))
    valid = torch.ones(engine.micro_batch, dtype=torch.bool)
    tokens = has_text = None
    if config.train.objective is not Supervision.labels:
        tokens = torch.randint(1, 1000, (engine.micro_batch, CONTEXT), device=device)
        has_text = valid
    outputs = engine.deepspeed(frames.to(device), tokens=tokens, with_logits=objective.uses_labels)
    loss = objective(outputs, labels, valid, has_text).mean()
    engine.micro_step(loss)
    return loss


def _measure_link(ranks: Ranks, dtype: torch.dtype) -> _Link:
    """Return the latency and bandwidth that explain the median times of all-reduces.

    With them :func:`~dfer_dist.planning.estimate.network_seconds` gives the time of a small and of
    a large all-reduce.
    """
    seconds = {}
    for size in (1, _LARGE):
        x, times = torch.zeros(size, dtype=dtype, device=ranks.device), []
        for _ in range(20):
            begin = time.perf_counter()
            dist.all_reduce(x)
            # On a GPU, wait for it.
            float(x[0])
            times.append(time.perf_counter() - begin)
        seconds[size] = statistics.median(times)
    sent = 2 * (ranks.world_size - 1) / ranks.world_size * x.nbytes
    return _Link(
        latency=seconds[1] / (2 * math.ceil(math.log2(ranks.world_size))),
        bandwidth=sent / (seconds[_LARGE] - seconds[1]),
    )


def bytes_in_use(ranks: Ranks) -> float:
    """Return the bytes that torch has allocated on a GPU, or that this process has resident."""
    if ranks.device.type == "cuda":
        return float(torch.cuda.memory_allocated())
    return float(resident_bytes())


def main() -> None:
    """Measure the steps of stored settings and print them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved settings of a run")
    config = read_config(parser.parse_args().config)
    print(json.dumps(asdict(measure(config, data_size(config).classes))))
    exit_process(0)


if __name__ == "__main__":
    main()
