"""Summarize the finished folds of a run: the content of ``summary.json``.

A mean over fewer folds than the data set has is marked wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.evaluation.metrics import Scores, bootstrap_ci, score
from dfer_dist.reporting.history import run_cost
from dfer_dist.reporting.results import LoadedFold, ScoredPredictions, load_folds
from dfer_dist.reporting.wording import PROTOCOLS
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import VERSION, atomic_path


def summarize(run_dir: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Return mean, deviation and interval over the finished folds, and the pooled scores.

    Parameters
    ----------
    run_dir : Path
    folds : sequence of int
        All folds of the data set; one without a ``result.json`` is listed under ``missing``.

    Returns
    -------
    dict
        The content of ``summary.json``. UAR, WAR and recalls are in percent. ``std`` is the sample
        deviation over folds (None for one fold). ``ci95`` is
        :func:`~dfer_dist.evaluation.metrics.bootstrap_ci` of the mean. ``shuffled`` is None unless
        all finished folds have it. ``cost`` is a :class:`~dfer_dist.reporting.history.RunCost`.

    Raises
    ------
    UserError
        No fold is finished, a fold is damaged, or two folds are of different runs.
    """
    run = RunDir(run_dir)
    summary = summarize_folds(load_folds(run, folds), folds)
    return {**summary, "cost": asdict(run_cost(run, summary["folds"]))}


def summarize_folds(loaded: Sequence[LoadedFold], folds: Sequence[int]) -> dict[str, Any]:
    """Summarize loaded folds as :func:`summarize` does, without ``cost``."""
    first = loaded[0].result
    tables = [f.table for f in loaded]
    pooled = score(
        np.concatenate([t.labels for t in tables]),
        np.concatenate([t.predicted for t in tables]),
        first["classes"],
    )
    most = max(pooled.support, key=pooled.support.__getitem__)
    shuffled = [f.shuffled for f in loaded if f.shuffled is not None]
    finished = [f.result["fold"] for f in loaded]
    return {
        "version": VERSION,
        "dataset": first["dataset"],
        "selection": first["selection"],
        "folds": [f.result for f in loaded],
        "missing": [k for k in folds if k not in finished],
        **_over_folds(tables),
        "pooled": asdict(pooled),
        "majority": {"class": most, "war": 100.0 * pooled.support[most] / pooled.n},
        "shuffled": _over_folds(shuffled) if len(shuffled) == len(loaded) else None,
    }


def confusion_png(result: Mapping[str, Any] | Scores, path: Path) -> None:
    """Draw the confusion matrix of one fold; ``result`` is a ``result.json`` or its scores."""
    from dfer_dist.reporting.plots import confusion_figure, save

    if isinstance(result, Scores):
        result = asdict(result)
    title = f"UAR {result['uar']:.2f} %, WAR {result['war']:.2f} %, {result['n']} clips"
    if "selection" in result:
        fold = f"{result['dataset']}, fold {result['fold']}"
        title = f"{fold}: {title}\n{PROTOCOLS[result['selection']]}"
    with atomic_path(path) as temporary:
        save(confusion_figure(result["confusion"], result["classes"], title), temporary)


def _over_folds(tables: Sequence[ScoredPredictions]) -> dict[str, Any]:
    num_classes = len(tables[0].scores.classes)
    pairs = [(t.labels, t.predicted) for t in tables]
    out: dict[str, Any] = {}
    for metric in ("uar", "war"):
        values = [getattr(t.scores, metric) for t in tables]
        out[metric] = {
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "ci95": list(bootstrap_ci(pairs, num_classes, metric)),
        }
    return out
