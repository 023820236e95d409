"""The progress of training, as a checkpoint's ``state.json`` holds it."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from dfer_dist.runs.records import DriftRecord
from dfer_dist.utils.files import write_json
from dfer_dist.utils.records import from_json, stored_as, to_json

logger = logging.getLogger(__name__)

_MIN_LOSSES = 10  # before any loss is called a spike
_NUM_DEVIATIONS = 6.0


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the highest WAR so far; ``war`` and ``uar`` are in percent."""

    epoch: int
    step: int
    war: float
    uar: float


@dataclass(frozen=True)
class BadStep:
    """A skipped step.

    ``not_finite`` is ``loss`` or ``gradient``; ``clips`` are the keys of the clips with such a
    loss, or of all clips of the step.
    """

    step: int
    not_finite: str
    clips: list[str]

    @classmethod
    def of(cls, step: int, losses: Iterable[tuple[Sequence[str], float]]) -> Self:
        """Return the record of a skipped step.

        Parameters
        ----------
        step : int
        losses : iterable
            Of all ranks: the keys of the clips in a mixture, and its loss.
        """
        clips = [(key, loss) for keys, loss in losses for key in keys]
        bad = dict.fromkeys(key for key, loss in clips if not math.isfinite(loss))
        if bad:
            return cls(step, "loss", list(bad))
        # Every loss is finite, so any clip of the step may have caused it.
        return cls(step, "gradient", list(dict(clips)))


@dataclass
class TrainState:
    """The progress of training a fold.

    Attributes
    ----------
    step : int
        Steps done.
    epoch_ended : bool
        False if training was preempted during the validation at the end of an epoch.
    lost_clips : list of str
        Keys of training clips found to be damaged, sorted.
    bad_steps : list of BadStep
        Steps that were skipped because their loss or gradient was not finite.
    overflow_steps : int
        Steps in float16 that were skipped because their loss scale was too large.
    best : BestEpoch, optional
        The best epoch, where one is selected.
    recent_losses : list of float
        The last :data:`WINDOW` losses that were finite.
    drift : list of str
        Settings changed with ``--allow-drift`` since the fold began, sorted.
    num_drifts : int
        Entries of the run's drift record that ``drift`` covers.
    """

    WINDOW: ClassVar[int] = 50

    step: int = 0
    epoch_ended: bool = True
    lost_clips: list[str] = field(default_factory=list)
    bad_steps: list[BadStep] = field(default_factory=list)
    overflow_steps: int = 0
    best: BestEpoch | None = None
    recent_losses: list[float] = field(default_factory=list)
    drift: list[str] = field(default_factory=list)
    num_drifts: int = field(default=0, metadata=stored_as("drifts"))

    @property
    def selected_step(self) -> int:
        """The step of the best epoch, or the last one where none is selected."""
        return (self.best or self).step

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON types."""
        skipped = len(self.bad_steps) + self.overflow_steps
        return {**to_json(self), "skipped_steps": skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state to what :meth:`state_dict` returned; further keys are ignored."""
        vars(self).update(vars(from_json(TrainState, state)))

    def add_drifts(self, drifts: Sequence[DriftRecord]) -> None:
        """Add what changed since the state was saved; ``drifts`` is the run's whole record."""
        for drift in drifts[self.num_drifts :]:
            self.drift = sorted({*self.drift, *drift.changes})
        self.num_drifts = len(drifts)

    def write_bad_steps(self, path: Path) -> None:
        """Write all bad steps to ``bad_steps.json``, if there are some or it exists."""
        if not self.bad_steps and not path.exists():
            return
        try:
            write_json(path, {"steps": to_json(self.bad_steps)})
        except OSError as e:
            # The disk is full; the next checkpoint has them too.
            logger.warning(f"{path} cannot be written: {e}")

    def is_spike(self, loss: float) -> bool:
        """Judge a loss and add it to the recent ones; one that is not finite is neither.

        A spike exceeds their median by six standard deviations, estimated robustly from the median
        absolute deviation, and by a tenth of the median at least.
        """
        if not math.isfinite(loss):
            return False
        recent, limit = self.recent_losses, math.inf
        self.recent_losses = [*recent, loss][-self.WINDOW :]
        if len(recent) >= _MIN_LOSSES:
            median = statistics.median(recent)
            # 1.4826 times the median absolute deviation estimates the deviation of a normal law.
            deviation = 1.4826 * statistics.median(abs(x - median) for x in recent)
            limit = median + max(_NUM_DEVIATIONS * deviation, 0.1 * abs(median))
        return loss > limit

    @property
    def bad_steps_in_a_row(self) -> int:
        """How many of the last steps, up to the latest, were skipped."""
        skipped = {bad.step for bad in self.bad_steps}
        count = 0
        while self.step - count in skipped:
            count += 1
        return count
