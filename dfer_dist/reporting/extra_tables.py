"""Scores next to a run's own: other sets, zero-shot results, and scores from papers.

``configs/published.yaml`` lists the scores from papers. They are as published; none of them was
reproduced here. Zero-shot results come from ``dfer eval --zero-shot --out
fold-K/zero-shot-SET.parquet``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.config.load import PUBLISHED, config_dir, load_as
from dfer_dist.reporting.results import (
    LoadedRun,
    ScoredPredictions,
    check_scores,
    read_predictions,
    score_spread,
)
from dfer_dist.reporting.tables import Table
from dfer_dist.reporting.wording import (
    heading,
    interval_text,
    join,
    mean_text,
    p_text,
    trained_text,
    warnings,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult, Scores
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from dfer_dist.utils.records import from_json

ZERO_SHOT_FILES = "zero-shot*.json"


@dataclass
class PublishedScores:
    """Scores of a method on one data set, in percent, mean over folds."""

    uar: float = 0.0
    war: float = 0.0


@dataclass
class Method:
    """A published method; ``figures`` (the key in the file) are its scores by data set."""

    name: str = ""
    paper: str = ""
    venue: str = ""
    id: str = ""  # where to find it, such as a DOI
    input: str = "video"
    figures: dict[str, PublishedScores] = field(default_factory=dict)


@dataclass
class Published:
    """The methods of a file such as ``configs/published.yaml``."""

    methods: list[Method] = field(default_factory=list)


def read_published(source: str) -> Published:
    """Read the file that ``source`` names: ``published``, or a YAML file of the same form.

    Raises
    ------
    UserError
        If there is no such file, or a method in it is incomplete.
    """
    path = Path(source)
    if source == PUBLISHED:
        path = config_dir() / f"{PUBLISHED}.yaml"
    elif path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise UserError(
            f"--against {source}: give 'published', or a YAML file like configs/published.yaml"
        )
    published = load_as(Published, path)
    for method in published.methods:
        for dataset, scores in method.figures.items():
            named = method.name and method.paper and method.venue
            if not (named and 0 < scores.uar <= 100 and 0 < scores.war <= 100):
                raise UserError(
                    f"{path}: '{method.name}', {dataset}: needs name, paper, venue, and uar and "
                    "war in percent"
                )
    return published


def published_table(loaded: LoadedRun, published: Published) -> Table:
    """Return the run on top of all methods with scores on its data set, by WAR.

    Raises
    ------
    UserError
        If no method has scores on the data set.
    """
    summary, name = loaded.summary, loaded.name
    dataset = summary.dataset.lower()
    methods = [m for m in published.methods if dataset in m.figures]
    if not methods:
        known = sorted({d for m in published.methods for d in m.figures})
        raise UserError(
            f"no scores are published for the data set '{dataset}', only for {join(known)}"
        )
    spreads = (summary.uar, summary.war)
    rows = [
        [f"{name} (this run)", "video", summary.selection, *map(mean_text, spreads)],
        ["95 % interval", "", "", *(interval_text(*s.ci95) for s in spreads)],
    ]
    for method in sorted(methods, key=lambda m: m.figures[dataset].war):
        scores = method.figures[dataset]
        source = f"published: {method.venue}"
        rows.append([method.name, method.input, source, f"{scores.uar:.2f}", f"{scores.war:.2f}"])
    notes = [
        "Scores of papers are as published, not reproduced here; how each paper chose its epoch, "
        "its frames and its weights is its own."
    ]
    notes += [f"{m.name}: {join(filter(None, [m.paper, m.venue, m.id]))}." for m in methods]
    header = ["Method", "Input", "Selection, or source", "UAR %", "WAR %"]
    title = f"{name} on {summary.dataset}, and published scores"
    alerts = warnings(summary)
    return Table("published", title, header, rows, alerts, notes, left=3, rules=[2])


def sets_table(loaded: LoadedRun) -> Table | None:
    """Return a row for each of several sets that a run was trained on; None for a single one.

    Raises
    ------
    UserError
        If the predictions of a set are missing, damaged, or contradict its result.
    """
    results = [fold.result for fold in loaded.folds.values()]
    first = results[0]
    if not first.sets:
        return None
    tables = [[fold.table for fold in loaded.folds.values()]]
    for i in range(len(first.others)):
        tables.append([_read_other(loaded.run, result, i) for result in results])
    rows = []
    for i, (own, of_folds) in enumerate(zip(first.sets, tables, strict=True)):
        trained = sorted({result.sets[i].clips for result in results})
        tested = sum(table.scores.n for table in of_folds)
        row = [own.name, " to ".join(map(str, trained)), f"{own.weight:g}", str(tested)]
        for metric in ("uar", "war"):
            spread = score_spread(of_folds, metric)
            row += [mean_text(spread), interval_text(*spread.ci95)]
        rows.append(row)
    scores = [x for metric in ("UAR %", "WAR %") for x in (metric, "95 % interval")]
    header = ["Set", "Training clips of a fold", "Weight", "Test clips", *scores]
    return Table(
        "sets",
        f"{heading(loaded.name, loaded.summary)}: each set",
        header,
        rows,
        warnings(loaded.summary),
        _sets_notes(first),
        left=1,
    )


def _read_other(run: RunDir, result: FoldResult, number: int) -> ScoredPredictions:
    other = result.others[number]
    path = run.fold(result.fold).predictions_of(other.dataset)
    table = read_predictions(path, result.classes)
    check_scores(path, other.scores, table.scores)
    return table


def _sets_notes(result: FoldResult) -> list[str]:
    names = [own.name for own in result.sets]
    lines = [
        f"Trained on {join(names)}, each set's folds kept apart; every test is of one set alone. "
        f"All other tables, and the choice of an epoch, are of {names[0]}."
    ]
    for own in result.sets:
        lost = [f"{count} of {name}" for name, count in own.without_class.items()]
        if lost:
            lines.append(f"{own.name}: left out, since the model has no such class: {join(lost)}.")
    return lines


def zero_shot_table(loaded: LoadedRun) -> Table | None:
    """Return a row for each zero-shot result of the finished folds, and the means by data set.

    Returns
    -------
    Table or None
        None without any result.

    Raises
    ------
    UserError
        For a result that its predictions contradict, or of another training.
    """
    results = [
        r for fold in loaded.folds.values() for r in _read_zero_shot(loaded.run, fold.result)
    ]
    if not results:
        return None
    rows: list[list[str]] = []
    rules = []
    for name in dict.fromkeys(r["dataset"] for r in results):
        own = [r for r in results if r["dataset"] == name]
        rows += [_zero_shot_row(r) for r in own]
        folds = [r["trained_on"]["fold"] for r in own]
        if len(set(folds)) == len(own) > 1:
            uar, war = (f"{np.mean([r[m] for r in own]):.2f}" for m in ("uar", "war"))
            rules.append(len(rows))
            rows.append([name, f"mean of {join(folds)}", "", uar, "", "", war, "", ""])
    scores = [x for metric in ("UAR %", "WAR %") for x in (metric, "Chance", "p")]
    header = ["Tested on", "Fold of the training", "Clips", *scores]
    title, notes = f"{heading(loaded.name, loaded.summary)}: zero-shot", _zero_shot_notes(results)
    return Table("zero-shot", title, header, rows, notes=notes, left=2, rules=rules)


def _read_zero_shot(run: RunDir, fold: FoldResult) -> list[dict[str, Any]]:
    results = []
    for path in sorted(run.fold(fold.fold).root.glob(ZERO_SHOT_FILES)):
        result = read_json(path)
        origin = result.get("trained_on") or {}
        if any(origin.get(k) != getattr(fold, k) for k in ("fold", "config_hash", "index_hash")):
            raise UserError(f"{path} is no result of this fold's checkpoints: move it elsewhere")
        table = read_predictions(path.with_suffix(".parquet"), result["classes"])
        check_scores(path, from_json(Scores, result), table.scores)
        results.append(result)
    return results


def _zero_shot_row(result: Mapping[str, Any]) -> list[str]:
    chance = result["chance"]
    row = [result["dataset"], str(result["trained_on"]["fold"]), str(result["n"])]
    for m in ("uar", "war"):
        row += [f"{result[m]:.2f}", f"{chance[m]:.2f}", p_text(chance[f"{m}_p"])]
    return row


def _zero_shot_notes(results: list[dict[str, Any]]) -> list[str]:
    first = results[0]["trained_on"]
    lines = [
        f"The models were {trained_text({**first, 'fold': None})}, of the classes "
        f"{', '.join(first['classes'])}; the tested sets were not seen, their classes are read as "
        "texts. Chance and p: for UAR the same predictions in random orders, for WAR always the "
        "commonest class (exact binomial)."
    ]
    for name in dict.fromkeys(r["dataset"] for r in results if r["context"] == "left out"):
        lines.append(
            f"{name}: the learned context belongs to the classes of the training and was left out."
        )
    for name in dict.fromkeys(r["dataset"] for r in results if r["classes"] == first["classes"]):
        lines.append(f"{name} has the classes of the training: another set, and no new classes.")
    return lines
