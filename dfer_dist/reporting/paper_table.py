"""The table that papers of the field print: a row for each method, recalls by class, UAR, WAR."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dfer_dist.reporting.class_scores import class_recalls
from dfer_dist.reporting.comparison.published import Published
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Cell, Table
from dfer_dist.reporting.wording import (
    UNKNOWN,
    join,
    mean_text,
    protocol_text,
    tested_text,
    warnings,
)
from dfer_dist.runs.endpoint import own_classes

_MAX_CLASSES = 16  # whose recalls fit a page
_WHOLE = {"sadness": "Sad"}


def abbreviate(classes: Sequence[str]) -> list[str]:
    """Return class names as papers print them: ``Hap.``, ``Sad``, ``Neu.``.

    They have three letters, or as many more as it takes to tell two classes apart.
    """
    out = []
    for name in classes:
        others = [other.lower() for other in classes if other != name]
        length = 3
        while length < len(name) and any(o.startswith(name[:length].lower()) for o in others):
            length += 1
        short = name[:length]
        dot = "." * (len(short) < len(name))
        out.append(_WHOLE.get(name, short[0].upper() + short[1:] + dot))
    return out


def paper_table(
    runs: Sequence[LoadedRun],
    published: Published | None = None,
    unfair: Sequence[str] = (),
) -> Table:
    """Return a row for each run, below the published methods with scores on the same data set.

    Recalls are pooled over folds, UAR and WAR are means over folds. The best value of a column is
    bold, if there are several. Recalls of more classes than fit a page are left out. ``unfair`` are
    warnings about the comparison of the runs.
    """
    dataset = runs[0].result.dataset.lower()
    classes = own_classes(runs[0].result.classes)
    if len(classes) > _MAX_CLASSES:
        classes = []
    published = published or Published()
    methods = published.on(dataset)
    values: list[list[float]] = []
    rows: list[list[str]] = []
    for method in methods:
        scores = method.scores[dataset]
        known = [math.nan if x is None else x for x in (scores.uar, scores.war)]
        values.append([math.nan] * len(classes) + known)
        rows.append([method.name, *map(_percent, values[-1])])
    for run in runs:
        recalls = {c.name: c.recall for c in class_recalls(run.summary)}
        means = run.summary.uar, run.summary.war
        values.append([recalls.get(c, math.nan) for c in classes] + [s.mean for s in means])
        rows.append([run.name, *map(_percent, values[-1][:-2]), *map(mean_text, means)])
    # the first note is about recalls
    notes = _notes(runs)[not classes :]
    if methods:
        about = [filter(None, (m.venue, published.why_not(m, runs[0]))) for m in methods]
        named = [f"{m.name} ({join(texts)})" for m, texts in zip(methods, about, strict=True)]
        notes.append(f"Scores of {join(named)} are as published; brackets say what differs.")
    if len(rows) > 1:
        notes.append("The best value of a column is bold, which is no test of a difference.")
    alerts = [f"{run.name}: {text}" for run in runs for text in warnings(run.summary)]
    alerts += unfair
    header = ["Method", *abbreviate(classes), "UAR", "WAR"]
    names = join(run.name for run in runs)
    datasets = join(dict.fromkeys(run.result.dataset for run in runs))
    what = "Recall of each class, UAR and WAR" if classes else "UAR and WAR"
    title = f"{what} of {names} on {datasets}, in percent"
    rules = [len(methods)] * bool(methods)
    best = _best(values)
    return Table("paper", title, header, rows, alerts, notes, rules=rules, bold=best)


def _percent(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.2f}"


def _notes(runs: Sequence[LoadedRun]) -> list[str]:
    """Return sentences on the protocol, and on what the numbers are."""
    protocols = dict.fromkeys(protocol_text(run.summary) for run in runs)
    clips = " or ".join(dict.fromkeys(str(run.summary.pooled.n) for run in runs))
    folds = dict.fromkeys(str(len(run.folds)) for run in runs)
    parts = " or ".join(dict.fromkeys(tested_text(run.summary.validation) for run in runs))
    means = f"UAR and WAR are of one {parts}."
    if any(len(run.folds) > 1 for run in runs):
        means = (
            f"UAR and WAR are means over {' or '.join(folds)} test folds, ± is their sample "
            "deviation."
        )
    kinds = " or ".join(
        dict.fromkeys(tested_text(run.summary.validation).split()[0] for run in runs)
    )
    pooled = f"Recalls are over all {clips} {kinds} clips."
    return [pooled, means, *(f"Protocol {text}." for text in protocols)]


def _best(values: Sequence[Sequence[float]]) -> list[Cell]:
    """Return the cells with the best value of their column, as printed; none of a single row."""
    cells = []
    for column, numbers in enumerate(zip(*values, strict=True), 1):
        known = [round(x, 2) for x in numbers if not math.isnan(x)]
        if len(known) > 1:
            cells += [Cell(i, column) for i, x in enumerate(numbers) if round(x, 2) == max(known)]
    return cells
