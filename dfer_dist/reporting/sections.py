"""Sections of the report of one run: scores, classes, cost, protocol, provenance.

Terminal, files and page all show these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfer_dist.data.sources.compound import single_classes
from dfer_dist.evaluation.metrics import metric_values
from dfer_dist.evaluation.multilabel import THRESHOLD
from dfer_dist.reporting.calibration import calibration_section
from dfer_dist.reporting.class_scores import (
    MIN_CLIPS,
    Share,
    class_precisions,
    class_recalls,
    top_confusions,
)
from dfer_dist.reporting.comparison.published import Published, published_sections
from dfer_dist.reporting.extra_tables import features_section, sets_table, zero_shot_table
from dfer_dist.reporting.history import Cost, device_unit, total_time
from dfer_dist.reporting.protocol import protocol_rows, provenance_rows
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.votes import votes_table
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
    tested_text,
    warnings,
)
from dfer_dist.runs.endpoint import NO_CLASS
from dfer_dist.runs.records import METRICS, MULTILABEL_METRICS
from dfer_dist.runs.summary import Summary

_MAX_CONFUSIONS = 8  # in the table
_TOP2 = "Top-2: clips whose class is one of the two most probable."
_NO_TOP2 = "Top-2 needs probabilities, which a model at an endpoint does not give."
_KAPPA = "Kappa: agreement beyond chance, from 0 for chance to 1."


def run_sections(loaded: LoadedRun, published: Published | None = None) -> list[Section]:
    """Return all sections of a run, with scores of papers if ``published`` are given."""
    summary = loaded.summary
    pooled = summary.pooled
    kind = tested_text(summary.validation).split()[0]
    recall = (
        f"All {pooled.n} {kind} clips of {folds_text(done(summary))} pooled: "
        f"UAR {pooled.uar:.2f} %, WAR {pooled.war:.2f} %."
    )
    sections = [
        Section("scores", "UAR and WAR", [_scores_table(loaded)]),
        Section("f1", "F1, top-2 accuracy and kappa", [_f1_table(loaded)]),
    ]
    if each_set := sets_table(loaded):
        sections.append(Section("sets", "Each set", [each_set]))
    sections += [
        *_multilabel_sections(loaded),
        Section("recall", "Recall of each class", [_recall_table(loaded)], [recall]),
        Section(
            "confusion",
            "Confusion",
            [_confusions_table(loaded), _precision_table(loaded)],
            files=[loaded.run.confusion.name],
        ),
    ]
    if of_votes := votes_table(loaded):
        sections.insert(1, Section("votes", "Votes of annotators", [of_votes]))
    if calibration := calibration_section(loaded):
        sections.append(calibration)
    if features := features_section(loaded):
        sections.append(features)
    if published:
        sections += published_sections([loaded], published)
    if zero_shot := zero_shot_table(loaded):
        sections.append(Section("zero_shot", "Zero-shot", [zero_shot]))
    rows, header = protocol_rows(loaded), ["Setting", "Description"]
    protocol = _table(loaded, "protocol", header, rows, left=2)
    rows, header = provenance_rows(loaded), ["What", "From"]
    provenance = _table(loaded, "provenance", header, rows, left=2)
    return [
        *sections,
        Section("cost", "Speed and cost", [_endpoint_table(loaded) or _cost_table(loaded)]),
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


def _scores_table(loaded: LoadedRun) -> Table:
    """Return the folds, their mean with its interval, and the baselines."""
    summary = loaded.summary
    cells = {
        r.fold: [f"{r.uar:.2f}", f"{r.war:.2f}", str(r.n), str(r.epoch)] for r in summary.folds
    }
    folds, majority = _fold_rows(summary, cells), summary.majority
    mean, interval = _mean_rows(summary, ["uar", "war"])
    rows = [*folds, [*mean, str(summary.pooled.n), ""], [*interval, "", ""]]
    if summary.shuffled:
        shuffled = mean_text(summary.shuffled.uar), mean_text(summary.shuffled.war)
        rows.append(["frames shuffled", *shuffled, "", ""])
    rows.append([f"always {majority.class_name}", "", f"{majority.war:.2f}", "", ""])
    header = ["Fold", "UAR %", "WAR %", "Clips", "Epoch"]
    if loaded.result.endpoint:
        header, rows = header[:-1], [row[:-1] for row in rows]
    lines, rules = notes(summary), [len(folds)]
    return _table(loaded, "scores", header, rows, notes=lines, rules=rules)


def _f1_table(loaded: LoadedRun) -> Table:
    """Return F1, top-2 accuracy and kappa of each fold, their means and intervals."""
    summary = loaded.summary
    names = [m for m in METRICS if m not in ("uar", "war") and getattr(summary, m)]
    cells = {
        r.fold: [f"{getattr(r, m):.{METRICS[m].decimals}f}" for m in names] for r in summary.folds
    }
    folds = _fold_rows(summary, cells)
    rows = [*folds, *_mean_rows(summary, names)]
    header = ["Fold", *(METRICS[m].header for m in names)]
    title = "F1 over the classes, top-2 accuracy and Cohen's kappa"
    lines = [_NO_TOP2 if loaded.result.endpoint else _TOP2, _KAPPA]
    return _table(loaded, "f1", header, rows, title, notes=[" ".join(lines)], rules=[len(folds)])


def _mean_rows(summary: Summary, names: Sequence[str]) -> list[list[str]]:
    """Return the row of the means over folds of metrics, and that of their intervals."""
    deviation = " ± deviation" if len(summary.folds) > 1 else ""
    means, intervals = [f"mean{deviation}{_of_folds(summary)}"], ["95 % interval"]
    for name in names:
        spread, decimals = getattr(summary, name), METRICS[name].decimals
        means.append(mean_text(spread, decimals))
        intervals.append(interval_text(*spread.ci95, decimals=decimals))
    return [means, intervals]


def _multilabel_sections(loaded: LoadedRun) -> list[Section]:
    """Return the section of a set with compound classes, or of sigmoid outputs; else none."""
    summary, spreads = loaded.summary, loaded.summary.multilabel
    if not spreads:
        return []
    names = list(spreads)
    by_fold = {r.fold: metric_values(r.scores) for r in summary.folds}
    cells = {k: [f"{values[name]:.2f}" for name in names] for k, values in by_fold.items()}
    folds = _fold_rows(summary, cells)
    rows = [*folds, [f"mean{_of_folds(summary)}", *map(mean_text, spreads.values())]]
    header = ["Fold", *(f"{MULTILABEL_METRICS[name]} %" for name in names)]
    rule = "the components of the class with the highest probability"
    if loaded.result.output == "sigmoid":
        rule = (
            f"all whose probability is at least {THRESHOLD}, or the most probable one. UAR, WAR "
            "and confusion are of the class with the highest sum of its components' logits"
        )
    singles = single_classes(loaded.result.classes)
    text = (
        f"A clip has one or more of {len(singles)} labels; predicted are {rule}. mAP and AUC rank "
        "clips by the probability of a label, and are means over labels, as macro F1."
    )
    table = _table(loaded, "multilabel", header, rows, "sets of labels", rules=[len(folds)])
    return [Section("multilabel", "Sets of labels", [table], [text])]


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
    rows, recalls = [], class_recalls(summary)
    for c in recalls:
        interval = interval_text(*c.interval) if c.clips else "absent"
        row = [c.name, str(c.clips), c.pooled.text, interval, *(f.text for f in c.folds)]
        rows.append(row[: len(header)])
    if missing:
        rows.append([folds_text(missing), *["missing"] * 3, *[""] * num_folds])
    few = any(0 < share.whole < MIN_CLIPS for c in recalls for share in (c.pooled, *c.folds))
    lines = [f"Fractions: clips that are right, of fewer than {MIN_CLIPS}."] * few
    return _table(loaded, "recall", header, rows, "pooled recall of each class", notes=lines)


def _confusions_table(loaded: LoadedRun) -> Table:
    """Return the most frequent confusions."""
    rows = [
        [x.truth, x.predicted, str(x.count), Share(x.count, x.support).text]
        for x in top_confusions(loaded.summary.pooled, _MAX_CONFUSIONS)
    ]
    header = ["Truth", "Predicted as", "Clips", "% of the class"]
    return _table(loaded, "confusions", header, rows, "most frequent confusions", left=2)


def _precision_table(loaded: LoadedRun) -> Table:
    """Return precision and F1 of each class, and the mean of F1."""
    found = class_precisions(loaded)
    rows = []
    for c in found:
        precision = "never predicted" if math.isnan(c.precision) else f"{c.precision:.2f}"
        f1 = "absent" if not c.clips else f"{c.f1:.2f}"
        rows.append([c.name, str(c.clips), str(c.predicted), precision, f1])
    mean = f"{np.mean([c.f1 for c in found if c.clips]):.2f}"
    rows.append(["mean of the classes", "", "", "", mean])
    header = ["Class", "Clips", "Predicted", "Precision %", "F1 %"]
    title, rules = "pooled precision and F1 of each class", [len(found)]
    return _table(loaded, "precision", header, rows, title, rules=rules)


def _cost_table(loaded: LoadedRun) -> Table:
    """Return ranks, time, speed and attempts of each fold."""
    summary, costs = loaded.summary, loaded.costs
    rows = _fold_rows(summary, {k: _cost_cells(fold.cost) for k, fold in loaded.folds.items()})
    rules = []
    if all(c.hours is not None for c in costs):
        rules = [len(rows)]
        rows.append([f"sum{_of_folds(summary)}", "", total_time(costs), *[""] * 4])
    header = ["Fold", "Ranks", "Time", "Clips / s", "Waiting for data %", "Attempts"]
    header.append("Steps again")
    lines = [
        "Time of all attempts, tests and start included; clips a second over all ranks, median "
        "over steps."
    ]
    hours = sum(c.device_hours or 0 for c in costs)
    # Of a run of minutes they would be 0.0.
    if all(c.device_hours is not None for c in costs) and hours >= 1:
        lines.append(f"{hours:.1f} {device_unit(costs)} hours in all: time times ranks.")
    devices = "; ".join(sorted({c.device_name for c in costs if c.device_name}))
    if devices:
        lines.append(f"Trained on: {devices}.")
    if any(c.device is None for c in costs):
        lines.append("The kind of device was not recorded in all folds.")
    if any(c.at_least for c in costs):
        lines.append("≥: an attempt was killed; its time is counted as far as it is known.")
    return _table(loaded, "cost", header, rows, "speed and cost", notes=lines, rules=rules)


def _endpoint_table(loaded: LoadedRun) -> Table | None:
    """Return requests, tokens and clips without a class of each fold; None for a trained model."""
    rows = {}
    for k, fold in loaded.folds.items():
        test = fold.result.endpoint
        if test is None:
            return None
        numbers = [test.requests, test.prompt_tokens, test.completion_tokens]
        rows[k] = [fold.result.n, *fold.result.without_class.values(), *numbers]
    cells = {k: [f"{number:,}" for number in numbers] for k, numbers in rows.items()}
    header = ["Fold", "Clips", *(name.strip("()").capitalize() for name in NO_CLASS)]
    header += ["Requests", "Prompt tokens", "Completion tokens"]
    total = [
        f"sum{_of_folds(loaded.summary)}",
        *(f"{sum(x):,}" for x in zip(*rows.values(), strict=True)),
    ]
    lines = [
        "Refused, unreadable, failed: clips whose answer refuses, clips whose answer does not name "
        "one class, clips without an answer after all tries. They count as wrong in UAR and WAR.",
        "Requests: of answered clips, with repeated ones. Tokens: as the server counts them.",
    ]
    body = [*_fold_rows(loaded.summary, cells), total]
    title, rules = "requests and clips without a class", [len(body) - 1]
    return _table(loaded, "cost", header, body, title, notes=lines, rules=rules)


def _cost_cells(c: Cost) -> list[str]:
    wait = None if c.data_wait_share is None else 100 * c.data_wait_share
    return [
        join(c.ranks) or NOT_RECORDED,
        total_time([c]),
        optional(c.clips_per_second, 1),
        optional(wait, 1),
        str(c.attempts),
        str(c.steps_repeated),
    ]
