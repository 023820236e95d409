"""What a report says of one run, in its order: scores, classes, cost, protocol, provenance. Terminal, files and page all show these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfer_dist.reporting.history import Cost, cost
from dfer_dist.reporting.protocol import protocol_rows, provenance_rows
from dfer_dist.reporting.tables import Table, latex, markdown, slug, terminal
from dfer_dist.reporting.wording import (
    PROTOCOLS,
    done,
    folds_text,
    frames_text,
    heading,
    interval_text,
    join,
    mean_text,
    notes,
    warnings,
)
from dfer_dist.reporting.zero_shot import zero_shot_table
from dfer_dist.runs.layout import RunDir

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, and tables."""

    key: str
    title: str
    text: Sequence[str]
    tables: Sequence[Table]


def run_sections(run: RunDir, summary: Mapping[str, Any]) -> list[Section]:
    """All sections of a run; ``summary`` is what :func:`~dfer_dist.reporting.summary.summarize` returns."""
    pooled = summary["pooled"]
    scores = f"UAR {pooled['uar']:.2f} %, WAR {pooled['war']:.2f} %"
    recall = f"All {pooled['n']} test clips of {folds_text(done(summary))} pooled: {scores}."
    first = summary["folds"][0]
    told = warnings(summary)
    protocol = Table(
        "protocol",
        f"{heading(summary)}: protocol",
        ["Setting", "In words"],
        protocol_rows(run, first),
        told,
        left=2,
    )
    origin = Table(
        "provenance",
        f"{heading(summary)}: provenance",
        ["What", "From"],
        provenance_rows(run, first),
        told,
        left=2,
    )
    elsewhere = zero_shot_table(run, summary)
    return [
        Section("scores", "UAR and WAR", [], [scores_table(summary)]),
        Section("recall", "Recall of each class", [recall], [recall_table(summary)]),
        *([Section("zero_shot", "Zero-shot", [], [elsewhere])] if elsewhere else []),
        Section("cost", "Speed and cost", [], [cost_table(run, summary)]),
        Section("protocol", "Protocol", [], [protocol]),
        Section("provenance", "Provenance", [], [origin]),
    ]


def summary_table(summary: Mapping[str, Any]) -> RichTable:
    """The folds and their mean as a table for the terminal."""
    return terminal(scores_table(summary))


def scores_table(summary: Mapping[str, Any]) -> Table:
    """The folds, their mean with its interval, and what to hold it against."""
    rows = _fold_rows(summary)
    alert = frozenset(i for i, row in enumerate(rows) if row[1] == "missing")
    header, rule = ["Fold", "Clips", "UAR %", "WAR %", "Epoch"], frozenset([len(rows)])
    return Table(
        "scores",
        heading(summary),
        header,
        rows + _mean_rows(summary),
        warnings(summary),
        notes(summary),
        1,
        rule,
        alert,
    )


def recall_table(summary: Mapping[str, Any]) -> Table:
    """Recall of each class: pooled, with Wilson's 95 % interval, and in each fold."""
    pooled, folds = summary["pooled"], summary["folds"]
    missing = summary["missing"]
    several = len(folds) + len(missing) > 1
    header = [
        "Class",
        "Clips",
        "Recall %",
        "95 % interval",
        *(f"Fold {r['fold']}" for r in folds if several),
    ]
    rows = []
    for i, (name, recall) in enumerate(pooled["recall"].items()):
        n, right = pooled["support"][name], pooled["confusion"][i][i]
        interval = "absent"
        if n:
            interval = "{:.2f} to {:.2f}".format(*wilson(right, n))
        of_folds = [r["confusion"][i] for r in folds if several]
        rows.append(
            [
                name,
                str(n),
                _percent(recall),
                interval,
                *(_percent(_share(row, i)) for row in of_folds),
            ]
        )
    alert: frozenset[int] = frozenset()
    if missing:
        alert = frozenset([len(rows)])
        rows.append([folds_text(missing), *["missing"] * 3, *[""] * len(folds)])
    return Table(
        "recall",
        f"{heading(summary)}: recall of each class, folds pooled",
        header,
        rows,
        warnings(summary),
        alert=alert,
    )


def wilson(right: int, clips: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a recall, percent: it holds for a handful of clips and for those that are all right."""
    from scipy.stats import binomtest

    interval = binomtest(right, clips).proportion_ci(method="wilson")
    return 100.0 * interval.low, 100.0 * interval.high


def cost_table(run: RunDir, summary: Mapping[str, Any]) -> Table:
    """Speed, attempts and hours of each fold."""
    costs = {r["fold"]: cost(run.fold(r["fold"]), r) for r in summary["folds"]}
    kinds = {c.device for c in costs.values()}
    unit = "GPU hours" if kinds == {"cuda"} else "Rank hours"
    rows = []
    for k in sorted([*costs, *summary["missing"]]):
        rows.append([str(k), *_cost_row(costs[k])] if k in costs else [str(k), *["missing"] * 7])
    header = [
        "Fold",
        "Ranks",
        "Attempts",
        "Steps again",
        "Clips / s",
        "Waiting for data %",
        "Hours",
        unit,
    ]
    alert = frozenset(i for i, row in enumerate(rows) if row[1] == "missing")
    total, rules = (
        [c.device_hours for c in costs.values() if c.device_hours is not None],
        frozenset[int](),
    )
    if len(total) == len(costs):
        hours = [c.hours for c in costs.values() if c.hours is not None]
        rules, over = (
            frozenset([len(rows)]),
            f" of folds {join(done(summary))}" if summary["missing"] else "",
        )
        rows.append(
            [f"sum{over}", "", "", "", "", "", hours_text(sum(hours)), hours_text(sum(total))]
        )
    return Table(
        "cost",
        f"{heading(summary)}: speed and cost",
        header,
        rows,
        warnings(summary),
        _cost_notes(costs, unit),
        1,
        rules,
        alert,
    )


def _cost_row(c: Cost) -> list[str]:
    wait = "not recorded" if c.data_wait_share is None else f"{100 * c.data_wait_share:.1f}"
    speed = "not recorded" if c.clips_per_second is None else f"{c.clips_per_second:.1f}"
    counts = [", ".join(map(str, c.ranks)) or "not recorded", str(c.attempts), str(c.undone_steps)]
    atleast = "≥ " if c.at_least else ""
    hours = [
        "not recorded" if h is None else atleast + hours_text(h) for h in (c.hours, c.device_hours)
    ]
    return [*counts, speed, wait, *hours]


def hours_text(hours: float) -> str:
    """Hours, with enough digits for a run of minutes."""
    return f"{hours:.3f}" if hours < 1 else f"{hours:.1f}"


def _cost_notes(costs: Mapping[int, Cost], unit: str) -> list[str]:
    meaning = "times the number of GPUs" if unit == "GPU hours" else "times the number of ranks"
    lines = [
        f"Clips a second over all ranks, median over steps; hours of all attempts, tests and start included; {unit} are hours {meaning}."
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
    """The text of ``summary.md``."""
    count = len(summary["folds"]) + len(summary["missing"])
    words = [f"Protocol: {PROTOCOLS[summary['selection']]}.", frames_text(summary["folds"][0])]
    lines = [f"# {summary['dataset']}: {len(summary['folds'])} of {count} folds"]
    for text in warnings(summary):
        lines += ["", f"**{text}**"]
    lines += ["", " ".join(filter(None, words))]
    for section in sections:
        lines += ["", f"## {section.title}"] if section.key != "scores" else []
        lines += [part for text in section.text for part in ("", text)]
        for table in section.tables:
            lines += ["", *markdown(table)]
    return "\n".join(
        [*lines, "", "![Scores of each fold and the pooled confusion matrix](summary.png)", ""]
    )


def run_latex(run: RunDir, summary: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The text of ``summary.tex``."""
    tables = [
        t
        for s in sections
        for t in s.tables
        if s.key in ("scores", "recall", "zero_shot", "cost", "published")
    ]
    return latex_document(tables, slug(run.root.name), heading(summary), warnings(summary))


def latex_document(tables: Sequence[Table], label: str, title: str, told: Sequence[str]) -> str:
    """Floats to be read by ``\\input``, with what they need in a comment above."""
    head = [r"% for \input; needs \usepackage{booktabs}", *(f"% {text}" for text in (title, *told))]
    return "\n".join([*head, *(line for t in tables for line in ("", *latex(t, label)))]) + "\n"


def _fold_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = {
        r["fold"]: [str(r["n"]), f"{r['uar']:.2f}", f"{r['war']:.2f}", str(r["epoch"])]
        for r in summary["folds"]
    }
    return [[str(k), *rows.get(k, ["missing"] * 4)] for k in sorted([*rows, *summary["missing"]])]


def _mean_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    over = f" of {folds_text(done(summary))}" if summary["missing"] else ""
    deviation = " ± deviation" if len(summary["folds"]) > 1 else ""
    interval = [interval_text(summary, m) for m in ("uar", "war")]
    rows = [
        [
            f"mean{deviation}{over}",
            str(summary["pooled"]["n"]),
            mean_text(summary, "uar"),
            mean_text(summary, "war"),
            "",
        ]
    ]
    rows += [["95 % interval", "", *interval, ""]]
    if summary["shuffled"]:
        rows.append(
            [
                "frames shuffled",
                "",
                mean_text(summary["shuffled"], "uar"),
                mean_text(summary["shuffled"], "war"),
                "",
            ]
        )
    return [
        *rows,
        [f"always {summary['majority']['class']}", "", "", f"{summary['majority']['war']:.2f}", ""],
    ]


def _share(row: Sequence[int], i: int) -> float | None:
    return 100.0 * row[i] / sum(row) if sum(row) else None


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"
