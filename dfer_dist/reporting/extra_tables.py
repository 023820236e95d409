"""Scores next to a run's own: zero-shot results of its checkpoints, and scores from papers.

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
from dfer_dist.reporting.results import check_scores, read_predictions
from dfer_dist.reporting.tables import Table
from dfer_dist.reporting.wording import (
    PROTOCOLS,
    heading,
    interval_text,
    join,
    mean_text,
    p_text,
    trained_text,
    warnings,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

ZERO_SHOT_FILES = "zero-shot*.json"
_METRICS = ("uar", "war")


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
    published = load_as(Published, path, {})
    for method in published.methods:
        for dataset, scores in method.figures.items():
            named = method.name and method.paper and method.venue
            if not (named and 0 < scores.uar <= 100 and 0 < scores.war <= 100):
                raise UserError(
                    f"{path}: '{method.name}', {dataset}: needs name, paper, venue, and uar and "
                    "war in percent"
                )
    return published


def published_table(name: str, summary: Mapping[str, Any], published: Published) -> Table:
    """Return the run ``name`` on top of all methods with scores on its data set, by WAR.

    Raises
    ------
    UserError
        If no method has scores on the data set.
    """
    dataset = str(summary["dataset"]).lower()
    methods = [m for m in published.methods if dataset in m.figures]
    if not methods:
        known = sorted({d for m in published.methods for d in m.figures})
        raise UserError(
            f"no scores are published for the data set '{dataset}', only for {', '.join(known)}"
        )
    selection = PROTOCOLS[summary["selection"]].partition(":")[0]
    means, intervals = zip(
        *((mean_text(summary, m), interval_text(summary, m)) for m in _METRICS), strict=True
    )
    rows = [
        [f"{name} (this run)", "video", selection, *means],
        ["95 % interval", "", "", *intervals],
    ]
    for method in sorted(methods, key=lambda m: m.figures[dataset].war):
        scores = method.figures[dataset]
        source = f"published: {method.venue}"
        rows.append([method.name, method.input, source, f"{scores.uar:.2f}", f"{scores.war:.2f}"])
    notes = [
        "Scores of papers are as published, not reproduced here; how each paper chose its epoch, "
        "its frames and its weights is its own."
    ]
    notes += [f"{m.name}: {m.paper}, {', '.join(filter(None, [m.venue, m.id]))}." for m in methods]
    return Table(
        "published",
        f"{summary['dataset']}: this run and published scores",
        ["Method", "Input", "Selection, or source", "UAR %", "WAR %"],
        rows,
        warnings(summary),
        notes,
        left=3,
        rules=frozenset([2]),
    )


@dataclass(frozen=True)
class _ZeroShot:
    """A zero-shot result and the training fold of its checkpoint."""

    fold: int
    result: Mapping[str, Any]


def zero_shot_table(run: RunDir, summary: Mapping[str, Any]) -> Table | None:
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
    found = [z for r in summary["folds"] for z in _read_zero_shot(run, r)]
    if not found:
        return None
    rows: list[list[str]] = []
    rules = set[int]()
    for name in dict.fromkeys(z.result["dataset"] for z in found):
        own = [z for z in found if z.result["dataset"] == name]
        rows += [_zero_shot_row(z) for z in own]
        if len({z.fold for z in own}) == len(own) > 1:
            uar, war = (f"{np.mean([z.result[m] for z in own]):.2f}" for m in _METRICS)
            folds = f"mean of {join([z.fold for z in own])}"
            rules.add(len(rows))
            rows.append([name, folds, "", uar, "", "", war, "", ""])
    header = ["Tested on", "Fold of the training", "Clips"]
    for metric in ("UAR %", "WAR %"):
        header += [metric, "Chance", "p"]
    return Table(
        "zero-shot",
        f"{heading(summary)}: zero-shot",
        header,
        rows,
        notes=_zero_shot_notes([z.result for z in found]),
        left=2,
        rules=frozenset(rules),
    )


def _read_zero_shot(run: RunDir, fold: Mapping[str, Any]) -> list[_ZeroShot]:
    found = []
    for path in sorted(run.fold(fold["fold"]).root.glob(ZERO_SHOT_FILES)):
        result = read_json(path)
        origin = result.get("trained_on") or {}
        if any(origin.get(key) != fold[key] for key in ("fold", "config_hash", "index_hash")):
            raise UserError(f"{path} is no result of this fold's checkpoints: move it elsewhere")
        table = read_predictions(path.with_suffix(".parquet"), result["classes"])
        check_scores(path, result, table.scores, ("n", "support", "confusion", "uar", "war"))
        found.append(_ZeroShot(fold["fold"], result))
    return found


def _zero_shot_row(z: _ZeroShot) -> list[str]:
    result, chance = z.result, z.result["chance"]
    row = [result["dataset"], str(z.fold), str(result["n"])]
    for metric in _METRICS:
        row += [f"{result[metric]:.2f}", f"{chance[metric]:.2f}", p_text(chance[f"{metric}_p"])]
    return row


def _zero_shot_notes(results: list[Mapping[str, Any]]) -> list[str]:
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
