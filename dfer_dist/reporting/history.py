"""How a fold was trained: curves from ``metrics.jsonl``, and cost from ``status.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import prod
from statistics import median
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = Mapping[str, Any]  # of metrics.jsonl
MAX_POINTS = 60  # of a loss curve
_SMOOTHED_LINES = 20
_SCORE_CURVES = (
    ("val_war", "validation WAR", "C1"),
    ("test_war", "test WAR", "C2"),
    ("test_uar", "test UAR", "C3"),
)


@dataclass(frozen=True)
class Curve:
    """Values over epochs, which may be fractions."""

    epochs: list[float]
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
    trained : int or None
        Number of trained parameters.
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


@dataclass(frozen=True)
class RunCost:
    """What training the folds of a run took; None where no fold recorded it."""

    trained_parameters: int | None
    clips_per_second: float | None  # median over folds
    peak_bytes: int | None  # the largest peak of a rank


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


def steps_of_epoch(lines: Sequence[Line], result: Mapping[str, Any]) -> float | None:
    """Return the steps of an epoch, from the result or else from the last line of an epoch."""
    if result.get("step") and result.get("epoch"):
        return float(result["step"]) / float(result["epoch"])
    for line in reversed(lines):
        if line.get("epoch"):
            return float(line["step"] / line["epoch"])
    return None


def loss_curve(lines: Sequence[Line], steps_per_epoch: float) -> Curve:
    """Return the mean training loss of each epoch, or of a quarter of one if they are few."""
    rows = [(x["step"] / steps_per_epoch, x["loss"]) for x in lines if "loss" in x]
    if not rows:
        return Curve([], [])
    last = rows[-1][0]
    parts = round(last) if last >= 20 else round(last * 4)
    parts = min(max(1, parts), MAX_POINTS)
    losses: dict[int, list[float]] = {}
    for epoch, loss in rows:
        part = min(parts - 1, int((epoch - 1e-9) / last * parts))
        losses.setdefault(part, []).append(loss)
    ordered = sorted(losses)
    return Curve(
        [(i + 1) * last / parts for i in ordered],
        [sum(losses[i]) / len(losses[i]) for i in ordered],
    )


def score_curve(lines: Sequence[Line], name: str, steps_per_epoch: float) -> Curve:
    """Return the curve of a score that is measured after epochs, such as ``val_war``."""
    rows = [x for x in lines if name in x]
    return Curve([x["step"] / steps_per_epoch for x in rows], [x[name] for x in rows])


def curves_png(fold: FoldDir, title: str) -> None:
    """Draw loss, scores and learning rates over steps to ``curves.png``."""
    from matplotlib.figure import Figure

    from dfer_dist.reporting.plots import save

    lines = [json.loads(line) for line in fold.metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, scores, rates = figure.subplots(1, 3)
    steps, values = _column(lines, "loss")
    loss.plot(steps, values, linewidth=0.6, alpha=0.4, color="C0")
    label = f"mean of {_SMOOTHED_LINES} lines"
    loss.plot(steps, _running_mean(values), linewidth=1.5, color="C0", label=label)
    loss.set_ylabel("loss")
    for name, label, color in _SCORE_CURVES:
        steps, values = _column(lines, name)
        if steps:
            scores.plot(steps, values, marker="o", markersize=4, label=label, color=color)
    scores.set_ylabel("%")
    scores.set_ylim(0, 100)
    for name in sorted({k for line in lines for k in line if k.startswith("lr_")}):
        steps, values = _column(lines, name)
        rates.plot(steps, values, label=name.removeprefix("lr_"))
    rates.set_ylabel("learning rate")
    rates.set_yscale("symlog", linthresh=1e-8)
    for ax in (loss, scores, rates):
        _finish_panel(ax)
    with atomic_path(fold.curves) as temporary:
        save(figure, temporary)


def _finish_panel(ax: Axes) -> None:
    ax.set_xlabel("step")
    ax.grid(alpha=0.25)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")


def _column(lines: Sequence[Line], name: str) -> tuple[list[int], list[float]]:
    rows = [line for line in lines if name in line]
    return [x["step"] for x in rows], [x[name] for x in rows]


def _running_mean(values: list[float], width: int = _SMOOTHED_LINES) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [
        (sums[i + 1] - sums[max(0, i + 1 - width)]) / min(width, i + 1) for i in range(len(values))
    ]


def cost(fold: FoldDir, result: Mapping[str, Any]) -> Cost:
    """Return hours, speed and attempts of a fold."""
    lines = read_lines(fold)
    attempts = _attempts(fold)
    last = max((x["time"] for x in lines if "time" in x), default=None)
    spans = [_span(a, i + 1 == len(attempts), last) for i, a in enumerate(attempts)]
    device_hours = [
        s.hours * a["world_size"]
        for s, a in zip(spans, attempts, strict=True)
        if s.hours is not None
    ]
    names = sorted({a["device"] for a in attempts if a.get("device")})
    return Cost(
        ranks=tuple(dict.fromkeys(a["world_size"] for a in attempts)),
        attempts=len(attempts),
        steps_repeated=sum(a.get("undone_steps") or 0 for a in attempts),
        hours=_over(sum, [s.hours for s in spans]),
        device_hours=_over(sum, device_hours),
        at_least=any(s.is_lower_bound for s in spans),
        clips_per_second=_over(median, [x.get("clips_per_second") for x in lines]),
        data_wait_share=_over(median, [x.get("data_wait_share") for x in lines]),
        device=result.get("device"),
        device_name=", ".join(names) or None,
        peak_bytes=max((a["peak_bytes"] for a in attempts if a.get("peak_bytes")), default=None),
        trained=_trained_parameters(fold, result),
    )


def run_cost(run: RunDir, results: Sequence[Mapping[str, Any]]) -> RunCost:
    """Return the cost over finished folds."""
    costs = [cost(run.fold(r["fold"]), r) for r in results]
    return RunCost(
        max((c.trained for c in costs if c.trained is not None), default=None),
        _over(median, [c.clips_per_second for c in costs]),
        max((c.peak_bytes for c in costs if c.peak_bytes is not None), default=None),
    )


def _attempts(fold: FoldDir) -> list[dict[str, Any]]:
    """Return the attempts on record; a damaged ``status.json`` must not prevent a report."""
    if fold.status.exists():
        with suppress(UserError, KeyError):
            attempts: list[dict[str, Any]] = read_json(fold.status)["attempts"]
            return attempts
    return []


def _over(
    statistic: Callable[[list[float]], float], values: Sequence[float | None]
) -> float | None:
    """Return a statistic of the recorded values; None if no value is recorded."""
    recorded = [v for v in values if v is not None]
    return statistic(recorded) if recorded else None


def _trained_parameters(fold: FoldDir, result: Mapping[str, Any]) -> int | None:
    """Return the parameters in the tested checkpoint; None if it was moved or removed."""
    try:
        with safe_open(fold.root / result["checkpoint"] / "model.safetensors", "numpy") as weights:
            names = list(weights.keys())
            return sum(prod(weights.get_slice(name).get_shape()) for name in names)
    except (OSError, KeyError, SafetensorError):
        return None


@dataclass(frozen=True)
class _Span:
    """Hours of an attempt; a lower bound if its end is unknown."""

    hours: float | None
    is_lower_bound: bool


def _span(attempt: Mapping[str, Any], is_last: bool, last_line: float | None) -> _Span:
    """Measure an attempt; one without an end lasted at least until the last line of the fold.

    That holds for the last attempt only: lines after a checkpoint are removed on resume.
    """
    begin = datetime.fromisoformat(attempt["started"]).timestamp()
    if attempt["ended"]:
        end = datetime.fromisoformat(attempt["ended"]).timestamp()
        return _Span(max(0.0, end - begin) / 3600, is_lower_bound=False)
    if not is_last or last_line is None:
        return _Span(None, is_lower_bound=True)
    return _Span(max(0.0, last_line - begin) / 3600, is_lower_bound=True)
