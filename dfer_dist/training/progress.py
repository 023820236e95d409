"""Log lines on the progress of training."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import timedelta

import torch

from dfer_dist.config.schema import TrainConfig
from dfer_dist.distributed.process_group import peak_memory
from dfer_dist.runs.records import Scores
from dfer_dist.training.meters import Meter

logger = logging.getLogger(__name__)


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
    device : torch.device
        Whose memory an epoch's line reports.
    """

    def __init__(
        self, config: TrainConfig, *, steps_per_epoch: int, meter: Meter, device: torch.device
    ) -> None:
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * config.epochs
        self.meter = meter
        self.device = device
        self._window = meter.snapshot()
        self._epoch_start = time.monotonic()

    def log_step(self, step: int, loss: float, learning_rates: Mapping[str, float]) -> None:
        """Log the line of a step, if one is due; ``step`` counts the steps done."""
        if step % self.config.print_every and step != self.total_steps:
            return
        throughput = self.meter.since(self._window)
        self._window = self.meter.snapshot()
        rates = ", ".join(f"{name} {rate:.2e}" for name, rate in learning_rates.items())
        seconds_left = (self.total_steps - step) * self.meter.mean_step
        logger.info(
            f"step {step} of {self.total_steps}, "
            f"epoch {(step - 1) // self.steps_per_epoch + 1} of {self.config.epochs}: "
            f"loss {loss:.4f}, lr {rates}, {throughput.clips_per_second:.1f} clips/s, "
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
