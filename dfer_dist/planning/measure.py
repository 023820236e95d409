"""The memory of real training steps on this machine, to hold a plan against.

Random weights, made-up clips, the real engine.

``python -m dfer_dist.planning.measure --config FILE`` (what ``dfer plan --measure`` starts, once
a rank) takes two steps, the second with moments, and prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Precision, Supervision
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed, peak_memory
from dfer_dist.models.build import build_model, resolve_image_size
from dfer_dist.models.outputs import OutputsModule
from dfer_dist.models.tokenizer import CONTEXT
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.estimate import data_size, plan_here
from dfer_dist.training.engine import build_engine
from dfer_dist.training.losses import Objective
from dfer_dist.utils.hardware import loopback_bytes_sent, resident_bytes

STEPS = 2
_LARGE = 8_000_000  # elements of a large all-reduce


@dataclass(frozen=True)
class MeasuredStep:
    """Bytes in use at the peak, above what the imports take.

    ``measured`` (the model's construction included) and, for one rank, ``planned``; ``seconds`` of
    the last step, and the bytes that all ranks of this machine ``sent`` in it over the loopback
    interface; ``latency`` in seconds and ``bandwidth`` in bytes a second of an all-reduce between
    them, None for one rank; what the step was made of.
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


def measure(config: Config, classes: tuple[str, ...]) -> MeasuredStep:
    """Take :data:`STEPS` optimizer steps in this process, which must not have done anything with
    torch before.

    Parameters
    ----------
    classes : tuple of str
        In label order.
    """
    ranks = init_distributed(config.train.device)
    import deepspeed  # noqa: F401  (so that it is not counted)

    before = bytes_in_use(ranks)
    size = resolve_image_size(config)
    model = build_model(
        replace(config.model, pretrained="none"), classes, config.data.num_frames, size
    )
    engine = build_engine(OutputsModule(model), param_groups(model), config, ranks, STEPS)
    objective = Objective(config, [1] * len(classes), ranks.device)
    shape = (engine.micro_batch, config.data.num_frames, 3, size, size)
    seconds, sent = 0.0, 0
    for step in range(STEPS):
        ranks.all_reduce_sum([0.0])  # all begin together
        begin, before_step = time.perf_counter(), loopback_bytes_sent()
        engine.set_learning_rates(step)
        for _ in range(engine.accumulation):
            frames = torch.randint(0, 256, shape, dtype=torch.uint8)
            labels, valid = (
                torch.randint(len(classes), shape[:1]),
                torch.ones(shape[0], dtype=torch.bool),
            )
            tokens = None
            if config.train.objective is not Supervision.labels:
                tokens = torch.randint(1, 1000, (engine.micro_batch, CONTEXT), device=ranks.device)
            outputs = engine.deepspeed(
                frames.to(ranks.device), tokens=tokens, with_logits=objective.uses_labels
            )
            loss = objective(outputs, labels, valid, None if tokens is None else valid).mean()
            engine.micro_step(loss)
        loss.item()
        ranks.all_reduce_sum([0.0])
        seconds, sent = time.perf_counter() - begin, loopback_bytes_sent() - before_step
    measured = peak_memory(ranks.device) - before
    planned = plan_here(config, classes, ranks.device.type) if ranks.world_size == 1 else None
    link: tuple[float | None, float | None] = (None, None)
    if ranks.world_size > 1:
        is_bf16 = config.train.precision is Precision.bf16
        link = _all_reduces(ranks, torch.bfloat16 if is_bf16 else torch.float32)
    return MeasuredStep(
        measured,
        planned,
        seconds,
        sent,
        link[0],
        link[1],
        size,
        engine.micro_batch,
        engine.accumulation,
    )


def _all_reduces(ranks: Ranks, dtype: torch.dtype) -> tuple[float, float]:
    """Latency and bandwidth by which the formula of
    :func:`~dfer_dist.planning.estimate.network_seconds` gives the median time of small and of large
    all-reduces.
    """
    taken = {}
    for size in (1, _LARGE):
        x, times = torch.zeros(size, dtype=dtype, device=ranks.device), []
        for _ in range(20):
            begin = time.perf_counter()
            dist.all_reduce(x)
            float(x[0])  # on a GPU, wait for it
            times.append(time.perf_counter() - begin)
        taken[size] = statistics.median(times)
    sent = 2 * (ranks.world_size - 1) / ranks.world_size * x.nbytes
    return taken[1] / (2 * math.ceil(math.log2(ranks.world_size))), sent / (
        taken[_LARGE] - taken[1]
    )


def bytes_in_use(ranks: Ranks) -> float:
    if ranks.device.type == "cuda":
        return float(torch.cuda.memory_allocated())
    return float(resident_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved settings of a run")
    config = read_config(parser.parse_args().config)
    print(json.dumps(asdict(measure(config, data_size(config).classes))))
    exit_process(0)


if __name__ == "__main__":
    main()
