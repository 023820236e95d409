"""How a fold was trained: curves from ``metrics.jsonl``, and cost from ``status.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import prod
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from dfer_dist.reporting.wording import NOT_RECORDED, duration_text, join
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import AttemptRecord, FoldResult, FoldStatus
from dfer_dist.runs.summary import RunCost
from dfer_dist.utils.errors import UserError

T = TypeVar("T", int, float)
Line = Mapping[str, Any]  # of metrics.jsonl
MAX_POINTS = 60  # of a loss curve
_SCORES = ("val_war", "val_uar", "test_war", "test_uar")


class Curve(NamedTuple):
    """Values over steps or epochs, which may be fractions."""

    x: list[float]
    values: list[float]


@dataclass(frozen=True)
class Cost:
    """What training a fold took; None where it was not recorded.

    Attributes
    ----------
    ranks : tuple of int
        World sizes of the attempts, without repetition.
    attempts : int
    steps_repeated : int
        Steps that were trained again after an interruption.
    hours : float or None
        Over all attempts.
    device_hours : float or None
        Hours times ranks, over all attempts.
    at_least : bool
        An attempt was killed and is counted up to its last line.
    clips_per_second : float or None
        Median over lines, without steps that were trained again.
    data_wait_share : float or None
        Median over lines.
    device : str or None
        ``cuda`` or ``cpu``.
    device_name : str or None
    peak_bytes : int or None
        The largest peak of rank 0 over attempts: of its GPU, or of main memory.
    trained, parameters : int or None
        Number of trained parameters, and of all.
    """

    ranks: tuple[int, ...]
    attempts: int
    steps_repeated: int
    hours: float | None
    device_hours: float | None
    at_least: bool
    clips_per_second: float | None
    data_wait_share: float | None
    device: str | None
    device_name: str | None
    peak_bytes: int | None
    trained: int | None
    parameters: int | None

    @property
    def ranks_text(self) -> str:
        """Return text such as ``2 × NVIDIA H200``, or ``2, 4 × …`` if attempts differ."""
        if not self.ranks:
            return NOT_RECORDED
        return f"{join(self.ranks)} × {self._device_text}"

    @property
    def ranks_sentence(self) -> str:
        """Return text such as ``2 ranks (NVIDIA H200)``."""
        if not self.ranks:
            return NOT_RECORDED
        plural = "s" * (self.ranks != (1,))
        return f"{join(self.ranks)} rank{plural} ({self._device_text})"

    @property
    def _device_text(self) -> str:
        return self.device_name or self.device or "unknown device"


def read_lines(fold: FoldDir) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl``, without one that a crash cut short."""
    lines: list[dict[str, Any]] = []
    if fold.metrics.is_file():
        for text in fold.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and "step" in line:
                    lines.append(line)
    return lines


def steps_of_epoch(lines: Sequence[Line], result: FoldResult) -> float | None:
    """Return the steps of an epoch, from the result or else from the last line of an epoch."""
    if result.step and result.epoch:
        return result.step / result.epoch
    for line in reversed(lines):
        if line.get("epoch"):
            return float(line["step"] / line["epoch"])
    return None


def curve(lines: Sequence[Line], name: str, unit: float = 1) -> Curve:
    """Return a metric, such as ``val_war``, over units of ``unit`` steps."""
    rows = [x for x in lines if name in x]
    return Curve([x["step"] / unit for x in rows], [x[name] for x in rows])


def training_curves(lines: Sequence[Line], result: FoldResult) -> dict[str, Curve]:
    """Return the curves of a fold over epochs; none if the steps of an epoch are not known.

    They are ``step`` (the loss of each), ``loss`` (its means), and the scores that were measured
    more than once: a single point is the result itself.
    """
    steps = steps_of_epoch(lines, result)
    if not steps:
        return {}
    curves = {name: curve(lines, name, steps) for name in _SCORES}
    scores = {name: scored for name, scored in curves.items() if len(scored.x) > 1}
    return {"step": curve(lines, "loss", steps), "loss": loss_curve(lines, steps), **scores}


def loss_curve(lines: Sequence[Line], steps_per_epoch: float) -> Curve:
    """Return the mean training loss of each epoch, or of a quarter of one if they are few.

    It is at the mean of its steps, not after them: the curve falls where the loss falls.
    """
    epochs, losses = map(np.asarray, curve(lines, "loss", steps_per_epoch))
    if not len(epochs):
        return Curve([], [])
    last = epochs[-1]
    parts = round(last) if last >= 20 else round(last * 4)
    parts = min(max(1, parts), MAX_POINTS)
    part = np.minimum(parts - 1, ((epochs - 1e-9) / last * parts).astype(int))
    counts = np.bincount(part)
    used = np.flatnonzero(counts)
    means = [np.bincount(part, values)[used] / counts[used] for values in (epochs, losses)]
    return Curve(means[0].tolist(), means[1].tolist())


def training_cost(fold: FoldDir, result: FoldResult) -> Cost:
    """Return hours, speed and attempts of a fold."""
    lines, attempts = read_lines(fold), _attempts(fold)
    ends = [_seconds(a.ended) for a in attempts]
    # The last attempt, if it was killed, lasted at least until the last line of the fold. Nothing
    # is known of earlier ones: lines after a checkpoint are removed on resume.
    if attempts and not attempts[-1].ended:
        ends[-1] = max((x["time"] for x in lines if "time" in x), default=None)
    hours = []
    for attempt, end in zip(attempts, ends, strict=True):
        start = _seconds(attempt.started)
        if start is not None and end is not None:
            hours.append((max(0.0, end - start) / 3600, attempt.world_size))
    return Cost(
        ranks=tuple(dict.fromkeys(a.world_size for a in attempts)),
        attempts=len(attempts),
        steps_repeated=sum(a.steps_repeated or 0 for a in attempts),
        hours=_over(sum, [h for h, _ in hours]),
        device_hours=_over(sum, [h * ranks for h, ranks in hours]),
        at_least=any(a.ended is None for a in attempts),
        clips_per_second=_over(median, [x.get("clips_per_second") for x in lines]),
        data_wait_share=_over(median, [x.get("data_wait_share") for x in lines]),
        device=result.device,
        device_name=", ".join(sorted({a.device for a in attempts if a.device})) or None,
        peak_bytes=_over(max, [a.peak_bytes or None for a in attempts]),
        trained=_trained_parameters(fold, result),
        parameters=result.parameters,
    )


def run_cost(costs: Sequence[Cost]) -> RunCost:
    """Return the cost over finished folds."""
    return RunCost(
        trained_parameters=_over(max, [c.trained for c in costs]),
        clips_per_second=_over(median, [c.clips_per_second for c in costs]),
        peak_bytes=_over(max, [c.peak_bytes for c in costs]),
        parameters=_over(max, [c.parameters for c in costs]),
        ranks=sorted({ranks for c in costs for ranks in c.ranks}),
        device_hours=_over(sum, [c.device_hours for c in costs]),
    )


def ranks_text(costs: Sequence[Cost]) -> str:
    """Return what the folds were trained on, such as ``2 × NVIDIA H200``."""
    return "; ".join(dict.fromkeys(c.ranks_text for c in costs))


def total_time(costs: Sequence[Cost]) -> str:
    """Return the time of all folds, such as ``27 s``; with ``≥`` if it is known in part only."""
    hours = [c.hours for c in costs if c.hours is not None]
    if len(hours) < len(costs):
        return NOT_RECORDED
    at_least = "≥ " if any(c.at_least for c in costs) else ""
    return at_least + duration_text(3600 * sum(hours))


def device_unit(costs: Sequence[Cost]) -> str:
    """Return ``GPU`` if all folds were trained on GPUs, else ``rank``."""
    return "GPU" if all(c.device == "cuda" for c in costs) else "rank"


def time_text(costs: Sequence[Cost]) -> str:
    """Return the time of all folds and on what, such as ``27 s on 2 ranks``."""
    sizes = sorted({n for c in costs for n in c.ranks})
    if not sizes:
        return total_time(costs)
    plural = "s" * (sizes != [1])
    return f"{total_time(costs)} on {join(sizes)} {device_unit(costs)}{plural}"


def rank_speed(costs: Sequence[Cost]) -> float | None:
    """Return clips a second per rank, median over folds with one number of ranks."""
    pairs = [(c.clips_per_second, c.ranks) for c in costs if len(c.ranks) == 1]
    return _over(median, [speed / ranks[0] for speed, ranks in pairs if speed is not None])


def _attempts(fold: FoldDir) -> list[AttemptRecord]:
    """Return the attempts on record; a damaged ``status.json`` must not prevent a report."""
    with suppress(UserError):
        return FoldStatus.read(fold.status).attempts
    return []


def _seconds(time: str | None) -> float | None:
    """Return an ISO 8601 time in seconds since 1970."""
    return None if time is None else datetime.fromisoformat(time).timestamp()


def _over(statistic: Callable[[Iterable[T]], T], values: Iterable[T | None]) -> T | None:
    """Return a statistic of the recorded values; None if no value is recorded."""
    recorded = [v for v in values if v is not None]
    return statistic(recorded) if recorded else None


def _trained_parameters(fold: FoldDir, result: FoldResult) -> int | None:
    """Return the parameters in the tested checkpoint; None if it was moved or removed."""
    try:
        with safe_open(fold.root / result.checkpoint / "model.safetensors", "numpy") as weights:
            names = list(weights.keys())
            return sum(prod(weights.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError):
        return None
