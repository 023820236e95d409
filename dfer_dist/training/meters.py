"""Speed of training, and log lines on its progress."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch

from dfer_dist.config.schema import TrainConfig
from dfer_dist.distributed.process_group import peak_memory
from dfer_dist.runs.records import Scores
from dfer_dist.training.speed.utilization import Utilization

logger = logging.getLogger(__name__)


class Throughput(NamedTuple):
    """Clips a second over all ranks, and the share of time that this rank waited for data."""

    clips_per_second: float
    data_wait_share: float


class Meter:
    """Measures clips a second, time spent waiting for data and the length of steps."""

    def __init__(self) -> None:
        # Of the last steps; validation and saves between steps do not count.
        self._step_seconds: deque[float] = deque(maxlen=100)
        self._step_start = 0.0
        self._clips = 0
        self._seconds_waited = 0.0
        # Time, clips and seconds waited when a reader last asked, by its name.
        self._windows = dict.fromkeys(("metrics", "log"), (time.perf_counter(), 0, 0.0))

    def start_step(self) -> None:
        """Mark the beginning of a step."""
        self._step_start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for data."""
        before = time.perf_counter()
        yield
        self._seconds_waited += time.perf_counter() - before

    def end_step(self, clips: int) -> None:
        """Mark the end of a step on ``clips`` clips over all ranks."""
        self._clips += clips
        self._step_seconds.append(time.perf_counter() - self._step_start)

    @property
    def longest_step(self) -> float:
        """Seconds of the longest of the last hundred steps."""
        return max(self._step_seconds, default=0.0)

    @property
    def mean_step(self) -> float:
        """Mean seconds of the last hundred steps."""
        return statistics.fmean(self._step_seconds or [0.0])

    def throughput(self, reader: str) -> Throughput:
        """Return the throughput since the last call for ``reader``: ``metrics`` or ``log``."""
        begin, clips, waited = self._windows[reader]
        now = time.perf_counter()
        self._windows[reader] = now, self._clips, self._seconds_waited
        elapsed = now - begin
        return Throughput(
            (self._clips - clips) / elapsed, (self._seconds_waited - waited) / elapsed
        )


class ProgressLog:
    """Logs a line every ``train.print_every`` steps and one an epoch.

    The lines hold only what the training loop has on the host: they cost no synchronization with
    the device and no communication between ranks.

    Parameters
    ----------
    config : TrainConfig
    steps_per_epoch : int
    meter : Meter
        Of the training loop.
    utilization : Utilization
    device : torch.device
        Whose memory an epoch's line reports.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        steps_per_epoch: int,
        meter: Meter,
        utilization: Utilization,
        device: torch.device,
    ) -> None:
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * config.epochs
        self.meter = meter
        self.utilization = utilization
        self.device = device
        self._epoch_start = time.monotonic()

    def log_step(self, step: int, loss: float, learning_rates: Mapping[str, float]) -> None:
        """Log the line of a step, if one is due; ``step`` counts the steps done."""
        if step % self.config.print_every and step != self.total_steps:
            return
        throughput = self.meter.throughput("log")
        speed = throughput.clips_per_second
        rates = ", ".join(f"{name} {rate:.2e}" for name, rate in learning_rates.items())
        seconds_left = (self.total_steps - step) * self.meter.mean_step
        logger.info(
            f"step {step} of {self.total_steps}, "
            f"epoch {(step - 1) // self.steps_per_epoch + 1} of {self.config.epochs}: "
            f"loss {loss:.4f}, lr {rates}, {speed:.1f} clips/s, "
            f"{self.utilization.text(speed)}, "
            f"data wait {throughput.data_wait_share:.0%}, "
            f"{timedelta(seconds=round(seconds_left))} left"
        )

    def log_epoch(self, epoch: int, scores: Scores | None, split: str) -> None:
        """Log the line of an epoch; ``epoch`` counts the epochs done.

        Parameters
        ----------
        epoch : int
        scores : Scores, optional
            None where the epoch was not validated.
        split : str
            What was validated on: ``val`` or ``test``.
        """
        now = time.monotonic()
        metrics = f"{split} UAR {scores.uar:.2f}, WAR {scores.war:.2f}, " if scores else ""
        logger.info(
            f"epoch {epoch} of {self.config.epochs}: {metrics}{now - self._epoch_start:.1f} s, "
            f"peak memory {peak_memory(self.device) / 1e9:.2f} GB"
        )
        self._epoch_start = now
