"""Sections of the report of one run: scores, classes, cost, protocol, provenance.

Terminal, files and page all show these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfer_dist.evaluation.metrics import wilson_interval
from dfer_dist.reporting.extra_tables import Published, published_table, zero_shot_table
from dfer_dist.reporting.history import Cost
from dfer_dist.reporting.protocol import protocol_rows, provenance_rows
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.wording import (
    NOT_RECORDED,
    done,
    folds_text,
    heading,
    interval_text,
    join,
    mean_text,
    notes,
    optional,
    warnings,
)
from dfer_dist.runs.records import Summary


def run_sections(loaded: LoadedRun, published: Published | None = None) -> list[Section]:
    """Return all sections of a run, with scores of papers if ``published`` are given."""
    summary = loaded.summary
    pooled = summary.pooled
    recall = (
        f"All {pooled.n} test clips of {folds_text(done(summary))} pooled: "
        f"UAR {pooled.uar:.2f} %, WAR {pooled.war:.2f} %."
    )
    sections = [
        Section("scores", "UAR and WAR", [_scores_table(loaded)]),
        Section("recall", "Recall of each class", [_recall_table(loaded)], [recall]),
    ]
    if published:
        table = published_table(loaded, published)
        sections.append(Section("published", "Published scores", [table]))
    if zero_shot := zero_shot_table(loaded):
        sections.append(Section("zero_shot", "Zero-shot", [zero_shot]))
    rows, header = protocol_rows(loaded), ["Setting", "Description"]
    protocol = _table(loaded, "protocol", header, rows, left=2)
    rows, header = provenance_rows(loaded), ["What", "From"]
    provenance = _table(loaded, "provenance", header, rows, left=2)
    return [
        *sections,
        Section("cost", "Speed and cost", [_cost_table(loaded)]),
        Section("protocol", "Protocol", [protocol]),
        Section("provenance", "Provenance", [provenance]),
    ]


def _table(
    loaded: LoadedRun,
    name: str,
    header: list[str],
    rows: list[list[str]],
    title: str = "",
    **more: Any,
) -> Table:
    """Return a table of a run, whose title and warnings name the run and its missing folds."""
    title, run = title or name, heading(loaded.name, loaded.summary)
    caption = f"{title[0].upper()}{title[1:]} of {run}."
    return Table(
        name, f"{run}: {title}", header, rows, warnings(loaded.summary), caption=caption, **more
    )


@dataclass(frozen=True)
class ClassRecall:
    """Recall of a class in percent, folds pooled, with Wilson's 95 % interval; and of each fold.

    A recall without clips is NaN.
    """

    name: str
    clips: int
    recall: float
    interval: tuple[float, float]
    by_fold: list[float]


def class_recalls(summary: Summary) -> list[ClassRecall]:
    """Return the recall of each class."""
    matrices = np.array([summary.pooled.confusion, *(r.confusion for r in summary.folds)])
    correct, clips = np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2)
    with np.errstate(invalid="ignore"):
        recalls = (100.0 * correct / clips).T.tolist()
    found = []
    for i, (name, (pooled, *by_fold)) in enumerate(
        zip(summary.pooled.classes, recalls, strict=True)
    ):
        interval, n = (0.0, 0.0), int(clips[0, i])
        if n:
            interval = wilson_interval(int(correct[0, i]), n)
        found.append(ClassRecall(name, n, pooled, interval, by_fold))
    return found


def _scores_table(loaded: LoadedRun) -> Table:
    """Return the folds, their mean with its interval, and the baselines."""
    summary = loaded.summary
    cells = {
        r.fold: [str(r.n), f"{r.uar:.2f}", f"{r.war:.2f}", str(r.epoch)] for r in summary.folds
    }
    folds = _fold_rows(summary, cells)
    deviation = " ± deviation" if len(cells) > 1 else ""
    spreads, majority = (summary.uar, summary.war), summary.majority
    rows = [
        *folds,
        [
            f"mean{deviation}{_of_folds(summary)}",
            str(summary.pooled.n),
            *map(mean_text, spreads),
            "",
        ],
        ["95 % interval", "", *(interval_text(*s.ci95) for s in spreads), ""],
    ]
    if summary.shuffled:
        shuffled = mean_text(summary.shuffled.uar), mean_text(summary.shuffled.war)
        rows.append(["frames shuffled", "", *shuffled, ""])
    rows.append([f"always {majority.class_name}", "", "", f"{majority.war:.2f}", ""])
    header = ["Fold", "Clips", "UAR %", "WAR %", "Epoch"]
    lines, rules = notes(summary), [len(folds)]
    return _table(loaded, "scores", header, rows, notes=lines, rules=rules)


def _fold_rows(summary: Summary, cells: Mapping[int, list[str]]) -> list[list[str]]:
    """Return a row for each fold; those of missing folds say so."""
    missing = ["missing"] * len(next(iter(cells.values())))
    return [[str(k), *cells.get(k, missing)] for k in sorted([*cells, *summary.missing])]


def _of_folds(summary: Summary) -> str:
    return f" of {folds_text(done(summary))}" if summary.missing else ""


def _recall_table(loaded: LoadedRun) -> Table:
    """Return the recall of each class: pooled with Wilson's 95 % interval, and in each fold."""
    summary = loaded.summary
    missing, num_folds = summary.missing, len(summary.folds)
    header = ["Class", "Clips", "Recall %", "95 % interval"]
    if num_folds + len(missing) > 1:
        header += [f"Fold {k}" for k in done(summary)]
    rows = []
    for c in class_recalls(summary):
        interval = interval_text(*c.interval) if c.clips else "absent"
        by_fold = map(_percent, c.by_fold)
        row = [c.name, str(c.clips), _percent(c.recall), interval, *by_fold]
        rows.append(row[: len(header)])
    if missing:
        rows.append([folds_text(missing), *["missing"] * 3, *[""] * num_folds])
    return _table(loaded, "recall", header, rows, "pooled recall of each class")


def _percent(value: float) -> str:
    return "absent" if np.isnan(value) else f"{value:.2f}"


def _cost_table(loaded: LoadedRun) -> Table:
    """Return speed, attempts and hours of each fold."""
    summary, costs = loaded.summary, loaded.costs
    unit = hours_unit(costs)
    rows = _fold_rows(summary, {k: _cost_cells(fold.cost) for k, fold in loaded.folds.items()})
    rules = []
    if all(c.hours is not None for c in costs):
        rules = [len(rows)]
        totals = [sum(c.hours or 0 for c in costs), sum(c.device_hours or 0 for c in costs)]
        rows.append([f"sum{_of_folds(summary)}", *[""] * 5, *map(hours_text, totals)])
    header = ["Fold", "Ranks", "Attempts", "Steps again", "Clips / s"]
    header += ["Waiting for data %", "Hours", unit]
    factor = "GPUs" if unit == "GPU hours" else "ranks"
    devices = "; ".join(sorted({c.device_name for c in costs if c.device_name}))
    lines = [
        "Clips a second over all ranks, median over steps; hours of all attempts, tests and start "
        f"included; {unit} are hours times the number of {factor}."
    ]
    if devices:
        lines.append(f"Trained on: {devices}.")
    if any(c.device is None for c in costs):
        lines.append("The kind of device was not recorded in all folds.")
    if any(c.at_least for c in costs):
        lines.append("≥: an attempt was killed; its time is counted as far as it is known.")
    return _table(loaded, "cost", header, rows, "speed and cost", notes=lines, rules=rules)


def _cost_cells(c: Cost) -> list[str]:
    at_least = "≥ " if c.at_least else ""
    wait = None if c.data_wait_share is None else 100 * c.data_wait_share
    hours = [
        NOT_RECORDED if h is None else at_least + hours_text(h) for h in (c.hours, c.device_hours)
    ]
    return [
        join(c.ranks) or NOT_RECORDED,
        str(c.attempts),
        str(c.steps_repeated),
        optional(c.clips_per_second, 1),
        optional(wait, 1),
        *hours,
    ]


def hours_unit(costs: Sequence[Cost]) -> str:
    """Return ``GPU hours`` if all folds were trained on GPUs, else ``Rank hours``."""
    return "GPU hours" if all(c.device == "cuda" for c in costs) else "Rank hours"


def hours_text(hours: float) -> str:
    """Return hours, with enough digits for a run of minutes."""
    return f"{hours:.3f}" if hours < 1 else f"{hours:.1f}"
