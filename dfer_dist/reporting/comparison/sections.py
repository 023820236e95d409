"""A comparison of runs as sections of a report and as files: each run against the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfer_dist.config.applicable import idle_settings
from dfer_dist.config.schema import NEUTRAL, flatten
from dfer_dist.evaluation.significance import Difference
from dfer_dist.reporting.class_scores import Share
from dfer_dist.reporting.comparison.paired import POOLED, Comparison, Paired
from dfer_dist.reporting.comparison.verdict import comparison_verdict
from dfer_dist.reporting.history import rank_speed, ranks_text, run_cost, total_time
from dfer_dist.reporting.protocol import parameters_text
from dfer_dist.reporting.results import LoadedRun, folds_name, read_settings
from dfer_dist.reporting.tables import Section, Table, slug
from dfer_dist.reporting.votes import compared_votes_table
from dfer_dist.reporting.wording import (
    MAX_NAMES,
    folds_text,
    join,
    mean_text,
    optional,
    p_text,
    signed,
    warnings,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldStatus
from dfer_dist.runs.summary import Summary
from dfer_dist.runs.sweep import is_pruned
from dfer_dist.utils.errors import UserError, first_of
from dfer_dist.utils.files import csv_text, write_text

_OTHER_DEVICES = (
    "Numbers of ranks or devices differ, or are not recorded: clips / s and memory do not compare "
    "the methods."
)
_CAPTIONS = {
    "differences": "Differences of UAR and WAR",
    "folds": "UAR and WAR of each fold",
    "classes": "Recall of each class",
    "calibration": "Calibration",
    "clips": "Clips with other predictions",
}
# Of settings in the overview.
_LABELS = {"data.folds_hash": "folds"}
_CALIBRATION = {"nll": "NLL, nats", "brier": "Brier score"}
_DEVIATION = "± is the sample deviation over folds."
MAX_CLIPS = 20  # changed clips in a report; the CSV file has all


def overview_table(runs: Sequence[RunDir], summaries: Sequence[Summary | None]) -> Table:
    """Return a row for each run: mean and deviation over its finished folds, and their number.

    Parameters
    ----------
    runs : sequence of RunDir
    summaries : sequence of Summary or None
        None for a run without a finished fold.
    """
    configs = [read_settings(run) for run in runs]
    settings = [flatten(config) if config else {} for config in configs]
    known = [s for s in settings if s]
    changed = [
        key
        for key in next(iter(known), {})
        if key not in NEUTRAL and len({repr(s[key]) for s in known}) > 1
    ]
    rows, warned = [], dict[str, list[str]]()
    for run, values, summary in zip(runs, settings, summaries, strict=True):
        differs = "settings of another version"
        if summary and (endpoint := summary.folds[0].endpoint):
            differs = f"{endpoint.model} at an endpoint"
        if values:
            if "data.folds_hash" in changed:
                values["data.folds_hash"] = folds_name(run, values["data.folds_hash"])
            # the set's own folds have no file, and differ from those of one
            idle = idle_settings(values) - {"data.folds_hash"}
            own = [key for key in changed if key not in idle]
            differs = join(f"{_LABELS.get(key, key)}={values[key]}" for key in own)
            differs = differs or "no setting"
        finished, means = 0, [_without_result(run)] * 2
        if summary:
            finished, means = len(summary.folds), [mean_text(summary.uar), mean_text(summary.war)]
            for text in warnings(summary):
                warned.setdefault(text, []).append(run.root.name)
        rows.append([run.root.name, *means, f"{finished} of {len(run.info().folds)}", differs])
    alerts = [f"{first_of(names, MAX_NAMES)}: {text}" for text, names in warned.items()]
    header = ["Run", "UAR %", "WAR %", "Folds", "What differs"]
    title = f"{first_of([run.root.name for run in runs], MAX_NAMES)}: side by side"
    datasets = join(dict.fromkeys(s.dataset for s in summaries if s))
    caption = f"Scores of {first_of([r.root.name for r in runs], MAX_NAMES)} on {datasets}."
    return Table("runs", title, header, rows, alerts, [_DEVIATION], caption=caption)


def _without_result(run: RunDir) -> str:
    """Return why a run has no finished fold."""
    if is_pruned(run):
        return "pruned"
    for k in run.info().folds:
        with suppress(UserError):
            if FoldStatus.read(run.fold(k).status).state == "FAILED":
                return "failed"
    return "missing"


def systems_table(runs: Sequence[LoadedRun]) -> Table:
    """Return a row for each run: ranks, time, speed, memory and trained parameters.

    It warns if the runs were trained on different devices or numbers of ranks.
    """
    rows = []
    for loaded in runs:
        cost = run_cost(loaded.costs)
        speeds = [optional(cost.clips_per_second, 1), optional(rank_speed(loaded.costs), 1)]
        memory = optional(cost.peak_bytes, 2, 2**30)
        row = [loaded.name, ranks_text(loaded.costs), total_time(loaded.costs), *speeds, memory]
        rows.append([*row, parameters_text(loaded)])
    header = ["Run", "Ranks × device", "Time", "Clips / s", "Clips / s per rank"]
    header += ["Memory, GiB", "Trained, million"]
    note = (
        "Time of all attempts and folds; clips a second in training, over all ranks and per rank, "
        "median over steps and folds; the largest peak of a rank: its GPU's, or main memory with "
        "all imports; parameters that are trained, of all of the model."
    )
    names = first_of([r.name for r in runs], MAX_NAMES)
    datasets = join(dict.fromkeys(r.result.dataset for r in runs))
    caption = f"Size, speed and memory of {names} on {datasets}."
    title = f"{names}: size, speed and memory"
    alerts = [_OTHER_DEVICES] * (len({row[1] for row in rows}) > 1)
    return Table("systems", title, header, rows, alerts, [note], caption=caption)


def comparison_sections(
    runs: Sequence[LoadedRun], comparisons: Sequence[Comparison]
) -> list[Section]:
    """Return the sections of a comparison of ``runs``."""
    text = (
        f"All differences are against {runs[0].name}, on the same clips; positive: "
        "the other run is better."
    )
    tables = [overview_table([r.run for r in runs], [r.summary for r in runs])]
    if trained := [r for r in runs if not r.result.endpoint]:
        tables.append(systems_table(trained))
    differences = [_difference_table(c, c.paired) for c in comparisons]
    sections = [
        Section("runs", "Runs side by side", tables),
        Section("differences", "Differences", differences, [text]),
    ]
    of_votes = [table for table in map(compared_votes_table, comparisons) if table]
    if of_votes:
        sections.append(Section("votes", "Votes of annotators", of_votes))
    paired = [(c, c.paired) for c in comparisons if c.paired]
    if paired:
        changed = "Classes that gained and lost"
        sections += [
            Section("folds", "Fold by fold", [_fold_table(c, p) for c, p in paired]),
            Section("classes", changed, [_class_table(c, p) for c, p in paired]),
            *_calibration_sections(paired),
            Section("clips", "Clips that changed", [_clip_table(c, p) for c, p in paired]),
        ]
    return sections


def _table(
    c: Comparison, kind: str, header: list[str], rows: list[list[str]], **more: Any
) -> Table:
    name, title = f"{kind}-{slug(c.second.name)}", f"{c.title}: {kind}"
    caption = f"{_CAPTIONS[kind]} on {c.first.result.dataset}, {c.title}."
    return Table(name, title, header, rows, c.warnings, caption=caption, **more)


def _difference_cells(d: Difference, decimals: int = 2) -> list[str]:
    low, high = signed(d.low, decimals), signed(d.high, decimals)
    return [signed(d.value, decimals), f"{low} to {high}"]


def _difference_table(c: Comparison, p: Paired | None) -> Table:
    header = ["Measure", "Difference", "95 % interval", "Test", "Statistic", "p"]
    if p is None:
        return _table(c, "differences", header, [["not compared", *[""] * 5]])
    rows = []
    for metric, t in p.t_test.items():
        test = ["", "", ""]
        if t:
            statistic = "" if t.t is None else f"t({t.df}) = {signed(t.t)}"
            test = ["corrected t", statistic, p_text(t.p)]
        label = f"{metric.upper()}, {'all folds pooled' if p.is_pooled else 'mean over folds'}"
        rows.append([label, *_difference_cells(p.difference[metric]), *test])
    gained, lost = p.mcnemar.gained, p.mcnemar.lost
    share = signed(100.0 * (gained - lost) / p.clips)
    test = ["McNemar, exact", f"{gained} gained, {lost} lost", p_text(p.mcnemar.p)]
    rows.append(["clips right, pooled", share, "", *test])
    tested = "all folds, pooled" if p.is_pooled else folds_text([f.fold for f in p.folds])
    notes = [
        f"{p.clips} clips of {tested}; in percent points; paired "
        "bootstrap over clips within folds.",
        "A t-test over folds needs two folds or more.",
    ]
    if p.is_pooled:
        notes[1] = "Different folds have no test over folds."
    if len(p.folds) > 1:
        sizes = f"{p.n_train:.0f} / {p.n_test:.0f}"
        notes[1] = f"Corrected t-test: n_train / n_test = {sizes} clips."
    return _table(c, "differences", header, rows, notes=notes)


def _fold_cell(fold: int) -> str:
    return "all" if fold == POOLED else str(fold)


def _fold_table(c: Comparison, p: Paired) -> Table:
    header = ["Fold", "Clips"]
    for label in ("UAR %", "WAR %"):
        header += [f"{label} {c.first.name}", f"{label} {c.second.name}", "difference"]
    rows = []
    for f in p.folds:
        row = [_fold_cell(f.fold), str(f.clips)]
        for first, second in (f.uar, f.war):
            row += [f"{first:.2f}", f"{second:.2f}", signed(second - first)]
        rows.append(row)
    return _table(c, "folds", header, rows)


def _class_table(c: Comparison, p: Paired) -> Table:
    header = ["Class", "Clips", f"Recall % {c.first.name}", f"Recall % {c.second.name}"]
    header += ["Difference", "95 % interval", "Gained", "Lost", "p", "Verdict"]
    rows = []
    for x in p.classes:
        right = (round(recall * x.clips / 100) for recall in (x.first, x.second))
        recalls = [Share(part, x.clips).text for part in right]
        counts = [*_difference_cells(x.difference), str(x.gained), str(x.lost)]
        rows.append(
            [x.name, str(x.clips), *recalls, *counts, p_text(x.p), x.verdict or "not shown"]
        )
    note = (
        "Folds pooled. Gained, lost: clips. p: McNemar's test, Holm's correction for all classes; "
        "a verdict where it is below 0.05."
    )
    return _table(c, "classes", header, rows, notes=[note])


def _calibration_sections(paired: Sequence[tuple[Comparison, Paired]]) -> list[Section]:
    """Return the section of the runs whose outputs are probabilities; none without such."""
    tables = [_calibration_table(c, p) for c, p in paired if p.calibration]
    return [Section("calibration", "Calibration", tables)] * bool(tables)


def _calibration_table(c: Comparison, p: Paired) -> Table:
    header = ["Score", c.first.name, c.second.name, "Difference", "95 % interval"]
    rows = []
    for x in p.calibration:
        values = [f"{x.first:.3f}", f"{x.second:.3f}", *_difference_cells(x.difference, 3)]
        rows.append([_CALIBRATION[x.name], *values])
    note = (
        f"{p.clips} clips. Lower is better: where the whole interval is below zero, the "
        f"probabilities of {c.second.name} fit better. Without temperatures; paired bootstrap over "
        "clips within folds."
    )
    return _table(c, "calibration", header, rows, notes=[note])


def _prediction_cell(name: str, probability: float) -> str:
    if math.isnan(probability):
        return name
    return f"{name} ({probability:.2f})"


def _clip_table(c: Comparison, p: Paired) -> Table:
    by_confidence = sorted(p.changes, key=lambda x: -x.confidence)
    rows = []
    for x in by_confidence[:MAX_CLIPS]:
        first = _prediction_cell(x.first, x.first_probability)
        second = _prediction_cell(x.second, x.second_probability)
        rows.append([x.key, _fold_cell(x.fold), x.truth, first, second, x.kind])
    kinds = [x.kind for x in p.changes]
    counts = join(f"{kinds.count(k)} {k}" for k in ("gained", "lost", "other mistake"))
    notes = [
        f"{len(kinds)} of {p.clips} clips were predicted differently: {counts}; "
        "probabilities in brackets."
    ]
    if len(kinds) > MAX_CLIPS:
        notes.append(
            f"Shown are the {MAX_CLIPS} with the highest probabilities; all are in {clips_file(c)}."
        )
    header = ["Clip", "Fold", "Truth", c.first.name, c.second.name, "Change"]
    return _table(c, "clips", header, rows, notes=notes, left=6)


def clips_file(c: Comparison) -> str:
    """Return the name of the file that lists the changed clips."""
    return f"clips-{slug(c.second.name)}.csv"


def write_clips(c: Comparison, p: Paired, path: Path) -> None:
    """Write all changed clips as CSV."""
    a, b = c.first.name, c.second.name
    header = ["fold", "key", "truth", a, f"{a}_probability", b, f"{b}_probability", "change"]
    rows: list[list[Any]] = [header]
    for x in p.changes:
        # empty for a run without probabilities
        first = [x.first, f"{x.first_probability:.6f}".removesuffix("nan")]
        second = [x.second, f"{x.second_probability:.6f}".removesuffix("nan")]
        rows.append([_fold_cell(x.fold), x.key, x.truth, *first, *second, x.kind])
    write_text(path, csv_text(rows))


def comparison_json(c: Comparison) -> dict[str, Any]:
    """Return an item of ``comparison.json``; the changed clips are in files of their own."""
    paired: dict[str, Any] | None = None
    if c.paired:
        paired = asdict(c.paired)
        paired["changed_clips"] = len(paired.pop("changes"))
    return {
        "first": c.first.name,
        "second": c.second.name,
        "verdict": comparison_verdict(c).sentences[0],
        "warnings": c.warnings,
        "paired": paired,
    }
