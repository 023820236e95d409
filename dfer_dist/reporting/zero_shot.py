"""Zero-shot results of a run's checkpoints: what ``dfer eval --zero-shot --out fold-K/zero-shot-SET.parquet`` left in the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dfer_dist.reporting.results import check_figures, read_predictions
from dfer_dist.reporting.tables import Table
from dfer_dist.reporting.wording import heading, join, p_text, trained_text
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

NAMES = "zero-shot*.json"


def zero_shot_table(run: RunDir, summary: Mapping[str, Any]) -> Table | None:
    """A row for each result in the folders of the folds that are done, and the mean over folds for each set; None if there is no result.

    Raises
    ------
    UserError
        A result whose figures its predictions do not give, or of another training.
    """
    found = [(r, result) for r in summary["folds"] for result in _results(run, r)]
    if not found:
        return None
    rows, rules = [], set[int]()
    for name in dict.fromkeys(result["dataset"] for _, result in found):
        own = [(fold["fold"], result) for fold, result in found if result["dataset"] == name]
        rows += [_row(fold, result) for fold, result in own]
        if len({fold for fold, _ in own}) == len(own) > 1:
            means = [f"{np.mean([result[m] for _, result in own]):.2f}" for m in ("uar", "war")]
            rows.append(
                [
                    name,
                    f"mean of {join([fold for fold, _ in own])}",
                    "",
                    means[0],
                    "",
                    "",
                    means[1],
                    "",
                    "",
                ]
            )
            rules |= {len(rows) - 1}
    header = [
        "Tested on",
        "Fold of the training",
        "Clips",
        "UAR %",
        "Chance",
        "p",
        "WAR %",
        "Chance",
        "p",
    ]
    title = f"{heading(summary)}: zero-shot"
    return Table(
        "zero-shot",
        title,
        header,
        rows,
        (),
        _notes([result for _, result in found]),
        2,
        frozenset(rules),
    )


def _results(run: RunDir, fold: Mapping[str, Any]) -> list[dict[str, Any]]:
    results = []
    for path in sorted(run.fold(fold["fold"]).root.glob(NAMES)):
        result = read_json(path)
        origin = result.get("trained_on") or {}
        if any(origin.get(key) != fold[key] for key in ("fold", "config_hash", "index_hash")):
            raise UserError(f"{path} is no result of this fold's checkpoints: move it elsewhere")
        table = read_predictions(path.with_suffix(".parquet"), result["classes"])
        check_figures(path, result, table.scores, ("n", "support", "confusion", "uar", "war"))
        results.append(result)
    return results


def _row(fold: int, result: Mapping[str, Any]) -> list[str]:
    chance, row = result["chance"], [result["dataset"], str(fold), str(result["n"])]
    for metric in ("uar", "war"):
        row += [f"{result[metric]:.2f}", f"{chance[metric]:.2f}", p_text(chance[f"{metric}_p"])]
    return row


def _notes(results: list[dict[str, Any]]) -> list[str]:
    first = results[0]["trained_on"]
    lines = [
        f"The models were {trained_text({**first, 'fold': None})}, of the classes {', '.join(first['classes'])}; the tested sets were not seen, their "
        "classes are read as texts. Chance and p: for UAR the same predictions in random orders, for WAR always the commonest class (exact binomial)."
    ]
    for name in dict.fromkeys(r["dataset"] for r in results if r["context"] == "left out"):
        lines.append(
            f"{name}: the learned context belongs to the classes of the training and was left out."
        )
    for name in dict.fromkeys(r["dataset"] for r in results if r["classes"] == first["classes"]):
        lines.append(f"{name} has the classes of the training: another set, and no new classes.")
    return lines
