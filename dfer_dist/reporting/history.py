"""How a fold was trained: its curves from ``metrics.jsonl``, and what it cost from ``status.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import prod
from statistics import median
from typing import Any

from safetensors import SafetensorError, safe_open

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

POINTS = 60  # of a loss curve, at most


@dataclass(frozen=True)
class Curve:
    """Values over epochs, which need not be whole."""

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class Cost:
    """What a fold took. ``device_hours`` are hours times ranks, over all attempts; None where no attempt is on record.

    ``at_least`` says that an attempt was killed and is counted up to its last sign of life. Speeds are of the steps that stand.
    """

    ranks: tuple[int, ...]
    attempts: int
    undone_steps: int
    hours: float | None
    device_hours: float | None
    at_least: bool
    clips_per_second: float | None  # median over lines
    data_wait_share: float | None
    device: str | None  # ``cuda`` or ``cpu``
    device_name: str | None
    peak_bytes: int | None  # of rank 0 in the attempt that took most: of its GPU, or of main memory
    trained: int | None  # parameters


def read_lines(fold: FoldDir) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that a crash cut short is left out, and a file that is not there has none."""
    lines: list[dict[str, Any]] = []
    if fold.metrics.is_file():
        for text in fold.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and "step" in line:
                    lines.append(line)
    return lines


def steps_of_epoch(lines: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> float | None:
    """Steps of an epoch, from the result or else from the last line that ends one."""
    if result.get("step") and result.get("epoch"):
        return float(result["step"]) / float(result["epoch"])
    ends = [x for x in lines if x.get("epoch")]
    return ends[-1]["step"] / ends[-1]["epoch"] if ends else None


def loss_curve(lines: Sequence[Mapping[str, Any]], per_epoch: float) -> Curve:
    """Training loss, mean over an epoch, or over a part of it where epochs are few; each point stands at the end of its part."""
    rows = [(x["step"] / per_epoch, x["loss"]) for x in lines if "loss" in x]
    if not rows:
        return Curve([], [])
    last = rows[-1][0]
    parts = max(1, round(last)) if last >= 20 else max(1, round(last * 4))
    parts = min(parts, POINTS)
    sums: dict[int, list[float]] = {}
    for epoch, loss in rows:
        sums.setdefault(min(parts - 1, int((epoch - 1e-9) / last * parts)), []).append(loss)
    return Curve(
        [(i + 1) * last / parts for i in sorted(sums)],
        [sum(sums[i]) / len(sums[i]) for i in sorted(sums)],
    )


def score_curve(lines: Sequence[Mapping[str, Any]], name: str, per_epoch: float) -> Curve:
    """A score that is measured at the end of epochs, such as ``val_war``."""
    rows = [(x["step"] / per_epoch, x[name]) for x in lines if name in x]
    return Curve([e for e, _ in rows], [v for _, v in rows])


def cost(fold: FoldDir, result: Mapping[str, Any]) -> Cost:
    """Hours, speed and attempts of a fold; what an older run did not record is None."""
    lines = read_lines(fold)
    try:
        attempts = read_json(fold.status)["attempts"] if fold.status.exists() else []
    except (UserError, KeyError):  # a report is worth having without
        attempts = []
    last = max((x["time"] for x in lines if "time" in x), default=None)
    spans = [_span(a, attempts[i + 1 :], last) for i, a in enumerate(attempts)]
    hours = [s for s, _ in spans if s is not None]
    speeds = [x["clips_per_second"] for x in lines if "clips_per_second" in x]
    waits = [x["data_wait_share"] for x in lines if "data_wait_share" in x]
    names = sorted({a["device"] for a in attempts if a.get("device")})
    return Cost(
        ranks=tuple(dict.fromkeys(a["world_size"] for a in attempts)),
        attempts=len(attempts),
        undone_steps=sum(a.get("undone_steps") or 0 for a in attempts),
        hours=sum(hours) if hours else None,
        device_hours=sum(
            s * a["world_size"] for (s, _), a in zip(spans, attempts, strict=True) if s is not None
        )
        if hours
        else None,
        at_least=any(cut for _, cut in spans),
        clips_per_second=median(speeds) if speeds else None,
        data_wait_share=median(waits) if waits else None,
        device=result.get("device"),
        device_name=", ".join(names) or None,
        peak_bytes=max((a["peak_bytes"] for a in attempts if a.get("peak_bytes")), default=None),
        trained=_trained(fold, result),
    )


@dataclass(frozen=True)
class RunCost:
    """What training the folds of a run took; None where no fold recorded it."""

    trained_parameters: int | None
    clips_per_second: float | None  # median over folds
    peak_bytes: int | None  # the largest peak of a rank


def run_cost(run: RunDir, results: Sequence[Mapping[str, Any]]) -> RunCost:
    """Over the folds that are done; what none of them recorded is None."""
    costs = [cost(run.fold(r["fold"]), r) for r in results]
    trained = [c.trained for c in costs if c.trained is not None]
    speeds = [c.clips_per_second for c in costs if c.clips_per_second is not None]
    peaks = [c.peak_bytes for c in costs if c.peak_bytes is not None]
    return RunCost(
        max(trained, default=None), median(speeds) if speeds else None, max(peaks, default=None)
    )


def _trained(fold: FoldDir, result: Mapping[str, Any]) -> int | None:
    """Parameters in the checkpoint that was tested, which holds those that are trained."""
    try:
        with safe_open(fold.root / result["checkpoint"] / "model.safetensors", "numpy") as weights:
            return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (it is no mapping)
    except (OSError, KeyError, SafetensorError):  # moved away since
        return None


def _span(
    attempt: Mapping[str, Any], later: Sequence[Mapping[str, Any]], last_line: float | None
) -> tuple[float | None, bool]:
    """Hours of an attempt, and whether its end is not known: then they go to its last line, if that can be told."""
    begin = datetime.fromisoformat(attempt["started"]).timestamp()
    if attempt["ended"]:
        return max(0.0, datetime.fromisoformat(attempt["ended"]).timestamp() - begin) / 3600, False
    if (
        later or last_line is None
    ):  # its lines may be gone: what came after the last checkpoint was trained again
        return None, True
    return max(0.0, last_line - begin) / 3600, True
