"""The progress of training, as a checkpoint's ``state.json`` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dfer_dist.runs.records import DriftRecord
from dfer_dist.training.meters import SpikeDetector
from dfer_dist.utils.records import from_json, to_json


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


@dataclass
class TrainState:
    """The progress of training a fold.

    Attributes
    ----------
    step : int
        Steps done.
    epoch_ended : bool
        False if training was preempted during the validation at the end of an epoch.
    lost_clips : set of str
        Keys of training clips found to be damaged.
    bad_steps : list of BadStep
        Steps that were skipped.
    best : BestEpoch, optional
        The best epoch, where one is selected.
    spikes : SpikeDetector
        Holds the recent losses.
    drift : set of str
        Settings changed with ``--allow-drift`` since the fold began.
    num_drifts : int
        Entries of the run's drift record that ``drift`` covers.
    """

    step: int = 0
    epoch_ended: bool = True
    lost_clips: set[str] = field(default_factory=set)
    bad_steps: list[BadStep] = field(default_factory=list)
    best: BestEpoch | None = None
    spikes: SpikeDetector = field(default_factory=SpikeDetector)
    drift: set[str] = field(default_factory=set)
    num_drifts: int = 0

    @property
    def selected_step(self) -> int:
        """The step of the best epoch, or the last one where none is selected."""
        return (self.best or self).step

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON types."""
        return {
            "step": self.step,
            "epoch_ended": self.epoch_ended,
            "lost_clips": sorted(self.lost_clips),
            "skipped_steps": len(self.bad_steps),
            "bad_steps": to_json(self.bad_steps),
            "best": to_json(self.best),
            "recent_losses": self.spikes.recent,
            "drift": sorted(self.drift),
            "drifts": self.num_drifts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state to what :meth:`state_dict` returned; further keys are ignored."""
        self.step = state["step"]
        self.epoch_ended = state["epoch_ended"]
        self.lost_clips = set(state["lost_clips"])
        self.bad_steps = [from_json(BadStep, values) for values in state["bad_steps"]]
        self.best = state["best"] and from_json(BestEpoch, state["best"])
        self.spikes = SpikeDetector(state["recent_losses"])
        self.drift = set(state["drift"])
        self.num_drifts = state["drifts"]

    def add_drifts(self, drifts: Sequence[DriftRecord]) -> None:
        """Add what changed since the state was saved; ``drifts`` is the run's whole record."""
        for drift in drifts[self.num_drifts :]:
            self.drift |= set(drift.changes)
        self.num_drifts = len(drifts)

    @property
    def bad_steps_in_a_row(self) -> int:
        """How many of the last steps, up to the latest, were skipped."""
        skipped = {bad.step for bad in self.bad_steps}
        count = 0
        while self.step - count in skipped:
            count += 1
        return count
