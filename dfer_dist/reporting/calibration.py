"""The calibration of a run's probabilities: a section of its report, and its curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dfer_dist.evaluation.calibration import (
    BINS,
    Outputs,
    score_calibration,
    summarize_calibration,
)
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.wording import done, folds_text, heading, interval_text, warnings
from dfer_dist.runs.calibration import CalibrationScores, CalibrationSummary

_NOTE = (
    "NLL: negative log likelihood, in nats. ECE: expected calibration error, "
    f"{BINS} bins of equal width or equal mass; a calibrated model has some, too, so it has no "
    "interval. Unbiased error: root of the mean squared distance of accuracy and confidence, "
    "without that bias. AURC: mean error over all coverages. WAR of the most confident clips."
)
_NO_TEMPERATURE = (
    "No temperature: it is fitted on clips that were held out of the training, which only "
    "train.selection=best_val does."
)
_NO_PROBABILITIES = (
    "The model at the endpoint names a class and gives no probabilities: scores of calibration, "
    "top 2, mAP and AUC, which need them, are left out."
)


@dataclass(frozen=True)
class _Column:
    """A column of the table: the score it shows, and how a score is shown."""

    name: str
    header: str
    convert: Callable[[float], float]
    decimals: int = 2

    def text(self, value: float) -> str:
        return f"{self.convert(value):.{self.decimals}f}"


def _percent(value: float) -> float:
    return 100 * value


def _root_percent(value: float) -> float:
    """Return the root of a squared error; an estimate below 0 is shown as 0."""
    return 100 * math.sqrt(max(value, 0))


_COLUMNS = (
    _Column("nll", "NLL", float, 3),
    _Column("brier", "Brier score", float, 3),
    _Column("ece", "ECE %", _percent),
    _Column("ece_equal_mass", "ECE, equal mass %", _percent),
    _Column("squared_error", "Unbiased error %", _root_percent),
    _Column("risk_coverage_area", "AURC %", _percent),
    _Column("accuracy_80", "WAR at 80 % coverage", _percent),
    _Column("accuracy_90", "WAR at 90 % coverage", _percent),
)


def calibration_section(loaded: LoadedRun) -> Section | None:
    """Return the section of a run; None if its outputs are no distribution over the classes.

    With a second table of the logits divided by the temperature of each fold, if all have one. Of a
    model that gives no probabilities it is a sentence that says so.
    """
    if loaded.result.output == "class":
        return Section("calibration", "Calibration", text=[_NO_PROBABILITIES])
    found = loaded.summary.calibration
    if found is None:
        return None
    outputs = {k: fold.table.outputs for k, fold in loaded.folds.items()}
    tables = [_table(loaded, "calibration", "calibration", outputs, found)]
    temperatures = {k: fold.result.temperature for k, fold in loaded.folds.items()}
    if loaded.result.selection != "best_val":
        tables[0] = replace(tables[0], notes=[*tables[0].notes, _NO_TEMPERATURE])
    scaled = {k: outputs[k].scaled(t) for k, t in temperatures.items() if t}
    if len(scaled) == len(outputs):
        title = "calibration after temperature scaling"
        summary = summarize_calibration(list(scaled.values()))
        table = _table(loaded, "scaled-calibration", title, scaled, summary)
        fitted = ", ".join(f"{t:.3f} in fold {k}" for k, t in temperatures.items())
        note = f"Temperatures, fitted on the validation part of each fold: {fitted}."
        tables.append(replace(table, notes=[note]))
    return Section("calibration", "Calibration", tables)


def _table(
    loaded: LoadedRun,
    name: str,
    title: str,
    outputs: Mapping[int, Outputs],
    found: CalibrationSummary,
) -> Table:
    """Return a row for each fold, their mean and its interval."""
    rows, run = [], heading(loaded.name, loaded.summary)
    for k in loaded.all_folds:
        cells = ["missing"] * len(_COLUMNS)
        if k in outputs:
            cells = _cells(score_calibration(outputs[k]))
        rows.append([str(k), *cells])
    rules, mean = [len(rows)], "mean"
    if loaded.summary.missing:
        mean = f"mean of {folds_text(done(loaded.summary))}"
    rows.append([mean, *_cells(found.mean)])
    rows.append(["95 % interval", *(_interval(c, found.low, found.high) for c in _COLUMNS)])
    header, caption = ["Fold", *(c.header for c in _COLUMNS)], f"{title.capitalize()} of {run}."
    lost = warnings(loaded.summary)
    return Table(name, f"{run}: {title}", header, rows, lost, [_NOTE], rules=rules, caption=caption)


def _cells(scores: CalibrationScores) -> list[str]:
    return [c.text(getattr(scores, c.name)) for c in _COLUMNS]


def _interval(c: _Column, low: dict[str, float | None], high: dict[str, float | None]) -> str:
    bounds = low[c.name], high[c.name]
    if bounds[0] is None or bounds[1] is None:
        return ""
    if c.decimals == 2:
        return interval_text(c.convert(bounds[0]), c.convert(bounds[1]))
    return f"{c.text(bounds[0])} to {c.text(bounds[1])}"
