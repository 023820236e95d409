"""The outcome of a training step, on one rank and over all ranks."""

from __future__ import annotations

import logging
from typing import NamedTuple, Self

from dfer_dist.data.loading.loader import Batch
from dfer_dist.distributed.process_group import Ranks

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """The part that one rank has in an optimizer step."""

    clip_losses: list[tuple[list[str], float]]  # keys of the clips in a mixture, and loss
    lost_clips: set[str]  # keys of damaged clips
    learning_rates: dict[str, float]  # by parameter group


class StepVotes(NamedTuple):
    """Numbers that are summed over ranks after each step."""

    loss: float  # sum over a rank's clips
    lost_clips: float
    preempted: float
    save_due: float
    save_failed: float

    def reduce(self, ranks: Ranks) -> Self:
        """Return the sums over ranks. Collective."""
        return type(self)(*ranks.all_reduce_sum(list(self)))


def log_lost_clips(batch: Batch) -> set[str]:
    """Log a line for each damaged clip of a batch; return the keys of these clips."""
    for line in batch.lost:
        logger.warning(f"lost: {line}")
    clips = zip(batch.keys, batch.valid.tolist(), strict=True)
    return {key for key, valid in clips if key and not valid}
