"""Sections of the report of one run: scores, classes, cost, protocol, provenance.

Terminal, files and page all show these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfer_dist.reporting.extra_tables import zero_shot_table
from dfer_dist.reporting.history import Cost, cost
from dfer_dist.reporting.protocol import protocol_rows, provenance_rows
from dfer_dist.reporting.tables import Table, render_template, slug, terminal
from dfer_dist.reporting.wording import (
    NOT_RECORDED,
    PROTOCOLS,
    done,
    folds_text,
    frames_text,
    heading,
    interval_text,
    join,
    mean_text,
    notes,
    optional,
    warnings,
)
from dfer_dist.runs.layout import RunDir

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_METRICS = ("uar", "war")
_LATEX_SECTIONS = ("scores", "recall", "zero_shot", "cost", "published")


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, and tables."""

    key: str
    title: str
    text: Sequence[str]
    tables: Sequence[Table]


def run_sections(run: RunDir, summary: Mapping[str, Any]) -> list[Section]:
    """Return all sections of a run.

    Parameters
    ----------
    run : RunDir
    summary : mapping
        From :func:`~dfer_dist.reporting.summary.summarize`.
    """
    pooled, first = summary["pooled"], summary["folds"][0]
    recall = (
        f"All {pooled['n']} test clips of {folds_text(done(summary))} pooled: "
        f"UAR {pooled['uar']:.2f} %, WAR {pooled['war']:.2f} %."
    )
    protocol = Table(
        "protocol",
        f"{heading(summary)}: protocol",
        ["Setting", "Description"],
        protocol_rows(run, first),
        warnings(summary),
        left=2,
    )
    provenance = Table(
        "provenance",
        f"{heading(summary)}: provenance",
        ["What", "From"],
        provenance_rows(run, first),
        warnings(summary),
        left=2,
    )
    sections = [
        Section("scores", "UAR and WAR", [], [scores_table(summary)]),
        Section("recall", "Recall of each class", [recall], [recall_table(summary)]),
        Section("cost", "Speed and cost", [], [cost_table(run, summary)]),
        Section("protocol", "Protocol", [], [protocol]),
        Section("provenance", "Provenance", [], [provenance]),
    ]
    zero_shot = zero_shot_table(run, summary)
    if zero_shot:
        sections.insert(2, Section("zero_shot", "Zero-shot", [], [zero_shot]))
    return sections


def summary_table(summary: Mapping[str, Any]) -> RichTable:
    """Return the folds and their mean as a table for the terminal."""
    return terminal(scores_table(summary))


def scores_table(summary: Mapping[str, Any]) -> Table:
    """Return the folds, their mean with its interval, and the baselines."""
    folds = _fold_rows(summary)
    return Table(
        "scores",
        heading(summary),
        ["Fold", "Clips", "UAR %", "WAR %", "Epoch"],
        [*folds, *_mean_rows(summary)],
        warnings(summary),
        notes(summary),
        rules=frozenset([len(folds)]),
        alert=_missing_rows(folds),
    )


def recall_table(summary: Mapping[str, Any]) -> Table:
    """Return the recall of each class: pooled with Wilson's 95 % interval, and in each fold."""
    pooled, folds, missing = summary["pooled"], summary["folds"], summary["missing"]
    shown_folds = folds if len(folds) + len(missing) > 1 else []
    header = ["Class", "Clips", "Recall %", "95 % interval"]
    header += [f"Fold {r['fold']}" for r in shown_folds]
    rows = []
    for i, (name, recall) in enumerate(pooled["recall"].items()):
        n, interval = pooled["support"][name], "absent"
        if n:
            low, high = wilson(pooled["confusion"][i][i], n)
            interval = f"{low:.2f} to {high:.2f}"
        of_folds = [_recall(r["confusion"][i], i) for r in shown_folds]
        rows.append([name, str(n), _percent(recall), interval, *map(_percent, of_folds)])
    alert: frozenset[int] = frozenset()
    if missing:
        alert = frozenset([len(rows)])
        rows.append([folds_text(missing), *["missing"] * 3, *[""] * len(folds)])
    title = f"{heading(summary)}: recall of each class, folds pooled"
    return Table("recall", title, header, rows, warnings(summary), alert=alert)


def wilson(right: int, clips: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a recall, in percent.

    It holds for a handful of clips too, and for a recall of 0 or 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(right, clips).proportion_ci(method="wilson")
    return 100.0 * interval.low, 100.0 * interval.high


def cost_table(run: RunDir, summary: Mapping[str, Any]) -> Table:
    """Return speed, attempts and hours of each fold."""
    costs = {r["fold"]: cost(run.fold(r["fold"]), r) for r in summary["folds"]}
    unit = hours_unit(list(costs.values()))
    cells = {k: _cost_row(c) for k, c in costs.items()}
    rows = [[str(k), *cells.get(k, ["missing"] * 7)] for k in sorted([*costs, *summary["missing"]])]
    alert, rules = _missing_rows(rows), frozenset[int]()
    device_hours = [c.device_hours for c in costs.values() if c.device_hours is not None]
    if len(device_hours) == len(costs):
        hours = [c.hours for c in costs.values() if c.hours is not None]
        rules = frozenset([len(rows)])
        over = f" of folds {join(done(summary))}" if summary["missing"] else ""
        sums = [hours_text(sum(hours)), hours_text(sum(device_hours))]
        rows.append([f"sum{over}", "", "", "", "", "", *sums])
    header = ["Fold", "Ranks", "Attempts", "Steps again", "Clips / s"]
    header += ["Waiting for data %", "Hours", unit]
    return Table(
        "cost",
        f"{heading(summary)}: speed and cost",
        header,
        rows,
        warnings(summary),
        _cost_notes(costs, unit),
        rules=rules,
        alert=alert,
    )


def _cost_row(c: Cost) -> list[str]:
    wait = None if c.data_wait_share is None else 100 * c.data_wait_share
    at_least = "≥ " if c.at_least else ""
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
    if hours < 1:
        return f"{hours:.3f}"
    return f"{hours:.1f}"


def _cost_notes(costs: Mapping[int, Cost], unit: str) -> list[str]:
    factor = "GPUs" if unit == "GPU hours" else "ranks"
    lines = [
        "Clips a second over all ranks, median over steps; hours of all attempts, tests and start "
        f"included; {unit} are hours times the number of {factor}."
    ]
    names = sorted({c.device_name for c in costs.values() if c.device_name})
    if names:
        lines.append(f"Trained on: {'; '.join(names)}.")
    if any(c.device is None for c in costs.values()):
        lines.append("The kind of device was not recorded in all folds.")
    if any(c.at_least for c in costs.values()):
        lines.append("≥: an attempt was killed; its time is counted as far as it is known.")
    return lines


def run_markdown(summary: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the text of ``summary.md``."""
    return render_template(
        "run.md",
        summary=summary,
        sections=sections,
        warnings=warnings(summary),
        protocol=PROTOCOLS[summary["selection"]],
        frames=frames_text(summary["folds"][0]),
    )


def run_latex(run: RunDir, summary: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the text of ``summary.tex``."""
    tables = [t for s in sections for t in s.tables if s.key in _LATEX_SECTIONS]
    comments = [heading(summary), *warnings(summary)]
    return latex_document(tables, slug(run.root.name), comments)


def latex_document(tables: Sequence[Table], label: str, comments: Sequence[str]) -> str:
    """Return LaTeX floats, with their requirements in comments on top."""
    return render_template("tables.tex", tables=tables, label=label, comments=comments)


def _missing_rows(rows: Sequence[Sequence[str]]) -> frozenset[int]:
    return frozenset(i for i, row in enumerate(rows) if row[1] == "missing")


def _fold_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = {
        r["fold"]: [str(r["n"]), f"{r['uar']:.2f}", f"{r['war']:.2f}", str(r["epoch"])]
        for r in summary["folds"]
    }
    return [[str(k), *rows.get(k, ["missing"] * 4)] for k in sorted([*rows, *summary["missing"]])]


def _mean_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    over = f" of {folds_text(done(summary))}" if summary["missing"] else ""
    deviation = " ± deviation" if len(summary["folds"]) > 1 else ""
    means = [mean_text(summary, m) for m in _METRICS]
    rows = [
        [f"mean{deviation}{over}", str(summary["pooled"]["n"]), *means, ""],
        ["95 % interval", "", *(interval_text(summary, m) for m in _METRICS), ""],
    ]
    if summary["shuffled"]:
        shuffled = [mean_text(summary["shuffled"], m) for m in _METRICS]
        rows.append(["frames shuffled", "", *shuffled, ""])
    majority = summary["majority"]
    return [*rows, [f"always {majority['class']}", "", "", f"{majority['war']:.2f}", ""]]


def _recall(row: Sequence[int], i: int) -> float | None:
    return 100.0 * row[i] / sum(row) if sum(row) else None


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"
