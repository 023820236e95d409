"""Measure the memory and time of real training steps on this machine, to compare with an estimate.

Random weights and random clips, the engine of a run.
``python -m dfer_dist.planning.measure CONFIG`` (which ``dfer plan --measure`` starts for each rank,
with the resolved settings of a run) takes two steps, the second with moments, and prints one JSON
line.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Device, Supervision
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed, peak_memory
from dfer_dist.models.build import build_untrained, model_dtype, resolve_image_size
from dfer_dist.models.dferclip import OutputsModule
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.estimate import data_size, plan_here
from dfer_dist.training.engine import build_engine
from dfer_dist.training.losses import Objective
from dfer_dist.utils.hardware import loopback_bytes_sent, resident_bytes

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


class RandomStep:
    """The engine of a run with random weights, and its optimizer step on random clips."""

    def __init__(self, config: Config, classes: Sequence[str], ranks: Ranks) -> None:
        model = build_untrained(config, classes)
        self.engine = build_engine(OutputsModule(model), param_groups(model), config, ranks, 1000)
        self.objective = Objective(config, [1] * len(classes), ranks.device, classes)
        self.device = ranks.device
        micro = self.engine.micro_batch
        self.clips, self.labels = random_clips(config, micro), torch.arange(micro) % len(classes)
        self.valid = torch.ones(micro, dtype=torch.bool)
        self.tokens: Tensor | None = None
        if config.train.objective is not Supervision.labels:
            assert model.text is not None, "config.checks refuses descriptions without a text tower"
            length = model.text.context_length
            self.tokens = torch.randint(1, 1000, (micro, length), device=self.device)

    def train(self) -> None:
        """Take one optimizer step."""
        self.step(
            (self.clips.to(self.device, non_blocking=True), self.labels, self.valid)
            for _ in range(self.engine.accumulation)
        )

    def step(self, micro_batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Take one optimizer step on frames, labels and validity of micro batches."""
        self.engine.set_learning_rates(0)
        has_text = None if self.tokens is None else self.valid
        for frames, labels, valid in micro_batches:
            outputs = self.engine.deepspeed(
                frames, tokens=self.tokens, with_logits=self.objective.uses_labels
            )
            losses = self.objective(outputs, labels, valid, has_text)
            self.engine.micro_step(losses.mean())
        losses.tolist()


def random_clips(config: Config, clips: int) -> Tensor:
    """Return frames and pictures of modalities of noise, uint8 [clips, (1 + L) T, 3, S, S]."""
    size, inputs = resolve_image_size(config), 1 + len(config.model.modalities)
    shape = (clips, inputs * config.data.num_frames, 3, size, size)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    # The loader returns pinned memory too.
    if torch.cuda.is_available() and config.train.device is not Device.cpu:
        return frames.pin_memory()
    return frames


def measure(config: Config, classes: Sequence[str]) -> MeasuredStep:
    """Take two optimizer steps in this process, which must not have used torch before.

    Parameters
    ----------
    classes : sequence of str
        In label order.
    """
    ranks = init_distributed(config.train.device)
    # Imported here so that its memory is not counted.
    import deepspeed  # noqa: F401

    before = bytes_in_use(ranks)
    random = RandomStep(config, classes, ranks)
    seconds, sent = 0.0, 0
    for _ in range(2):
        # All ranks begin together.
        ranks.all_reduce_sum([0.0])
        begin, before_step = time.perf_counter(), loopback_bytes_sent()
        random.train()
        ranks.all_reduce_sum([0.0])
        seconds, sent = time.perf_counter() - begin, loopback_bytes_sent() - before_step
    measured = peak_memory(ranks.device) - before
    planned = latency = bandwidth = None
    if ranks.world_size == 1:
        planned = plan_here(config, classes, ranks.device.type)
    else:
        latency, bandwidth = _measure_link(ranks, model_dtype(config.train.precision))
    return MeasuredStep(
        measured=measured,
        planned=planned,
        seconds=seconds,
        sent=sent,
        latency=latency,
        bandwidth=bandwidth,
        image_size=resolve_image_size(config),
        micro_batch=random.engine.micro_batch,
        accumulation=random.engine.accumulation,
    )


def _measure_link(ranks: Ranks, dtype: torch.dtype) -> tuple[float, float]:
    """Return the latency and bandwidth that explain the median times of all-reduces.

    With them :attr:`~dfer_dist.planning.estimate.PlannedStep.network_seconds` gives the time of a
    small and of a large all-reduce.
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
    latency = seconds[1] / (2 * math.ceil(math.log2(ranks.world_size)))
    return latency, sent / (seconds[_LARGE] - seconds[1])


def bytes_in_use(ranks: Ranks) -> float:
    """Return the bytes that torch has allocated on a GPU, or that this process has resident."""
    if ranks.device.type == "cuda":
        return float(torch.cuda.memory_allocated())
    return float(resident_bytes())


def main() -> None:
    """Measure the steps of stored settings and print them as JSON."""
    config = read_config(Path(sys.argv[1]))
    print(json.dumps(asdict(measure(config, data_size(config).classes))))
    exit_process(0)


if __name__ == "__main__":
    main()
