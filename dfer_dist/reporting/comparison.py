"""A comparison of runs as sections of a report and as files: each run against the first."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import NEUTRAL, flatten
from dfer_dist.evaluation.significance import Difference, TTest
from dfer_dist.reporting.history import run_cost
from dfer_dist.reporting.paired import Comparison, Paired
from dfer_dist.reporting.sections import Section, latex_document
from dfer_dist.reporting.tables import Table, markdown, render_template, slug, terminal
from dfer_dist.reporting.wording import (
    folds_text,
    mean_text,
    missing_text,
    optional,
    p_text,
    signed,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, read_json, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table as RichTable

MAX_CLIPS = 20  # changed clips in a report; the CSV file has all
_METRICS = (("uar", "UAR"), ("war", "WAR"))

Summary = Mapping[str, Any]


def overview_table(runs: Sequence[RunDir], summaries: Sequence[Summary | None]) -> Table:
    """Return a row for each run: mean and deviation over its finished folds, and their number.

    Parameters
    ----------
    runs : sequence of RunDir
    summaries : sequence of mapping or None
        None for a run without a finished fold.
    """
    settings = [_settings(run) for run in runs]
    changed = _changed_keys([s for s in settings if s is not None])
    rows, warnings = [], []
    for run, config, summary in zip(runs, settings, summaries, strict=True):
        differs = "settings of another version"
        if config is not None:
            differs = ", ".join(f"{k}={config[k]}" for k in changed)
        if summary and (text := missing_text(summary)):
            warnings.append(f"{run.root.name}: {text}")
        folds = f"{len(_finished(summary))} of {len(run.info().folds)}"
        rows.append([run.root.name, differs, folds, *_mean_cells(summary)])
    header = ["Run", "What differs", "Folds", "UAR %", "WAR %"]
    return Table("runs", "Runs side by side", header, rows, warnings, left=2)


def systems_table(runs: Sequence[RunDir], summaries: Sequence[Summary | None]) -> Table:
    """Return a row for each run: trained parameters, scores, speed and memory."""
    rows = []
    for run, summary in zip(runs, summaries, strict=True):
        cost = run_cost(run, _finished(summary))
        rows.append(
            [
                run.root.name,
                optional(cost.trained_parameters, 3, 1e6),
                *_mean_cells(summary),
                optional(cost.clips_per_second, 1),
                optional(cost.peak_bytes, 2, 2**30),
            ]
        )
    header = ["Run", "Trained, million", "UAR %", "WAR %", "Clips / s", "Memory, GiB"]
    note = (
        "Parameters that are trained; clips a second in training, over all ranks, median over "
        "steps and folds; the largest peak of a rank: its GPU's, or main memory with all imports."
    )
    return Table("systems", "Size, speed and memory", header, rows, notes=[note])


def _finished(summary: Summary | None) -> list[dict[str, Any]]:
    """Return the results of the finished folds."""
    return summary["folds"] if summary else []


def _mean_cells(summary: Summary | None) -> list[str]:
    if not summary:
        return ["missing", "missing"]
    return [mean_text(summary, metric) for metric, _ in _METRICS]


def _settings(run: RunDir) -> dict[str, Any] | None:
    """Return the settings by dotted key; None if this version cannot read them."""
    try:
        return flatten(read_config(run.config))
    except UserError:
        return None


def _changed_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [k for k in next(iter(settings), {}) if not k.startswith(NEUTRAL)]
    return [k for k in keys if len({repr(s[k]) for s in settings}) > 1]


def write_overview(runs: Sequence[RunDir], path: Path) -> RichTable:
    """Write the overview from each ``summary.json`` as Markdown; return it for the terminal."""
    summaries = [read_json(run.summary) if run.summary.exists() else None for run in runs]
    table = overview_table(runs, summaries)
    write_text(path, markdown(table) + "\n")
    return terminal(table)


def comparison_sections(
    tables: Sequence[Table], comparisons: Sequence[Comparison]
) -> list[Section]:
    """Return the sections of a comparison; ``tables`` have a row for each run."""
    text = (
        f"All differences are against {comparisons[0].first.name}, on the same clips; positive: "
        "the other run is better."
    )
    differences = [_difference_table(c) for c in comparisons]
    sections = [
        Section("runs", "Runs side by side", [], list(tables)),
        Section("differences", "Differences", [text], differences),
    ]
    paired = [(c, c.paired) for c in comparisons if c.paired]
    if paired:
        changed = "Classes that gained and lost"
        sections += [
            Section("folds", "Fold by fold", [], [_fold_table(c, p) for c, p in paired]),
            Section("classes", changed, [], [_class_table(c, p) for c, p in paired]),
            Section("clips", "Clips that changed", [], [_clip_table(c, p) for c, p in paired]),
        ]
    return sections


def _title(c: Comparison) -> str:
    return f"{c.second.name} against {c.first.name}"


def _difference_cells(d: Difference) -> list[str]:
    return [signed(d.value), f"{signed(d.low)} to {signed(d.high)}"]


def _difference_table(c: Comparison) -> Table:
    name, title = f"differences-{slug(c.second.name)}", _title(c)
    header = ["Measure", "Difference", "95 % interval", "Test", "Statistic", "p"]
    p = c.paired
    if p is None:
        return Table(name, title, header, [["not compared", *[""] * 5]], c.warnings)
    rows = []
    for metric, label in _METRICS:
        cells = _difference_cells(p.difference[metric])
        rows.append([f"{label}, mean over folds", *cells, *_t_cells(p.t_test[metric])])
    gained, lost = p.mcnemar.gained, p.mcnemar.lost
    share = signed(100.0 * (gained - lost) / p.clips)
    statistic = f"{gained} gained, {lost} lost"
    rows.append(
        ["clips right, pooled", share, "", "McNemar, exact", statistic, p_text(p.mcnemar.p)]
    )
    notes = [
        f"{p.clips} clips of {folds_text([f.fold for f in p.folds])}; in percent points; paired "
        "bootstrap over clips within folds.",
        "A t-test over folds needs two folds or more.",
    ]
    if len(p.folds) > 1:
        sizes = f"{p.n_train:.0f} / {p.n_test:.0f}"
        notes[1] = f"Corrected t-test: n_train / n_test = {sizes} clips."
    return Table(name, title, header, rows, c.warnings, notes)


def _t_cells(t: TTest | None) -> list[str]:
    if t is None:
        return ["", "", ""]
    statistic = ""
    if t.t is not None:
        statistic = f"t({t.df}) = {signed(t.t)}"
    return ["corrected t", statistic, p_text(t.p)]


def _fold_table(c: Comparison, p: Paired) -> Table:
    header = ["Fold", "Clips"]
    for _, label in _METRICS:
        header += [f"{label} % {c.first.name}", f"{label} % {c.second.name}", "difference"]
    rows = []
    for f in p.folds:
        row = [str(f.fold), str(f.clips)]
        for first, second in (f.uar, f.war):
            row += [f"{first:.2f}", f"{second:.2f}", signed(second - first)]
        rows.append(row)
    return Table(f"folds-{slug(c.second.name)}", _title(c), header, rows, c.warnings)


def _class_table(c: Comparison, p: Paired) -> Table:
    header = ["Class", "Clips", f"Recall % {c.first.name}", f"Recall % {c.second.name}"]
    header += ["Difference", "95 % interval", "Gained", "Lost", "p", "Verdict"]
    rows = []
    for x in p.classes:
        recalls = [f"{x.first:.2f}", f"{x.second:.2f}", *_difference_cells(x.difference)]
        counts = [str(x.gained), str(x.lost)]
        rows.append([x.name, str(x.clips), *recalls, *counts, p_text(x.p), x.verdict])
    note = (
        "Folds pooled. Gained, lost: clips. p: McNemar's test, Holm's correction for all classes; "
        "a verdict where it is below 0.05."
    )
    return Table(f"classes-{slug(c.second.name)}", _title(c), header, rows, c.warnings, [note])


def _clip_table(c: Comparison, p: Paired) -> Table:
    a, b = c.first.name, c.second.name
    by_confidence = sorted(p.changes, key=lambda x: -(x.first_probability + x.second_probability))
    rows = [
        [
            x.key,
            str(x.fold),
            x.truth,
            f"{x.first} ({x.first_probability:.2f})",
            f"{x.second} ({x.second_probability:.2f})",
            x.kind,
        ]
        for x in by_confidence[:MAX_CLIPS]
    ]
    kinds = [x.kind for x in p.changes]
    counts = [f"{kinds.count(k)} {k}" for k in ("gained", "lost", "other mistake")]
    notes = [
        f"{len(kinds)} of {p.clips} clips were predicted differently: {', '.join(counts)}; "
        "probabilities in brackets."
    ]
    if len(kinds) > MAX_CLIPS:
        notes.append(
            f"Shown are the {MAX_CLIPS} of which both are most confident; all are in "
            f"{clips_file(c)}."
        )
    header = ["Clip", "Fold", "Truth", a, b, "Change"]
    return Table(f"clips-{slug(b)}", _title(c), header, rows, c.warnings, notes, left=6)


def clips_file(c: Comparison) -> str:
    """Return the name of the file that lists the changed clips."""
    return f"clips-{slug(c.second.name)}.csv"


def write_clips(c: Comparison, p: Paired, path: Path) -> None:
    """Write all changed clips as CSV."""
    a, b = c.first.name, c.second.name
    header = ["fold", "key", "truth", a, f"{a}_probability", b, f"{b}_probability", "change"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        out.writerow(header)
        for x in p.changes:
            first = [x.first, f"{x.first_probability:.6f}"]
            second = [x.second, f"{x.second_probability:.6f}"]
            out.writerow([x.fold, x.key, x.truth, *first, *second, x.kind])


def comparison_title(comparisons: Sequence[Comparison]) -> str:
    """Return the names of all runs."""
    names = ", ".join(c.second.name for c in comparisons)
    return f"{names} against {comparisons[0].first.name}"


def comparison_markdown(sections: Sequence[Section], comparisons: Sequence[Comparison]) -> str:
    """Return the text of ``comparison.md``."""
    title = comparison_title(comparisons)
    return render_template("comparison.md", title=title, sections=sections)


def comparison_latex(sections: Sequence[Section], comparisons: Sequence[Comparison]) -> str:
    """Return the text of ``comparison.tex``: all tables except the one of single clips."""
    tables = [t for s in sections for t in s.tables if s.key != "clips"]
    return latex_document(tables, "compare", [comparison_title(comparisons)])


def comparison_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the content of ``comparison.json``; the changed clips are in files of their own."""
    return {"comparisons": [_as_json(c) for c in comparisons]}


def _as_json(c: Comparison) -> dict[str, Any]:
    paired: dict[str, Any] | None = None
    if c.paired:
        paired = asdict(c.paired)
        paired["changed_clips"] = len(paired.pop("changes"))
    return {
        "first": c.first.name,
        "second": c.second.name,
        "warnings": c.warnings,
        "paired": paired,
    }
