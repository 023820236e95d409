"""The parent run of a cross-validation: scores and cost as metrics, so that runs can be sorted."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING

from dfer_dist.evaluation.metrics import metric_values
from dfer_dist.runs.calibration import CalibrationSummary
from dfer_dist.runs.records import METRICS
from dfer_dist.runs.summary import RunCost, Summary
from dfer_dist.tracking.metric_names import MetricNames, metric_suffix, recall_names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Earlier versions sent these as tags.
_OLD_TAGS = ("trained_parameters", "clips_per_second", "peak_bytes")


def log_summary(api: MlflowClient, parent: Run, summary: Summary, names: MetricNames) -> bool:
    """Log a summary to the parent run; return whether anything was new there."""
    from mlflow.entities import Metric, RunTag

    now, old = int(time.time() * 1000), parent.data
    values = {names.of(name): value for name, value in summary_metrics(summary).items()}
    metrics = [
        Metric(name, value, now, 0)
        for name, value in values.items()
        if value is not None and old.metrics.get(name) != value
    ]
    tags = [RunTag(k, v) for k, v in _summary_tags(summary).items() if old.tags.get(k) != v]
    for name in old.tags.keys() & _OLD_TAGS:
        api.delete_tag(parent.info.run_id, name)
    if metrics or tags:
        api.log_batch(parent.info.run_id, metrics=metrics, tags=tags)
    return bool(metrics or tags)


def summary_metrics(summary: Summary) -> dict[str, float | None]:
    """Return scores over folds, recall by class over all clips, and cost, by name.

    A number of ranks is one only if all folds had the same.
    """
    values: dict[str, float | None] = {}
    for metric in METRICS:
        spread, by_fold = getattr(summary, metric), [getattr(r, metric) for r in summary.folds]
        # those of older versions have no F1, those without logits no top-2 accuracy
        if spread is None:
            continue
        low, high = spread.ci95
        values |= {
            f"{metric}_mean": spread.mean,
            f"{metric}_ci95_low": low,
            f"{metric}_ci95_high": high,
            f"{metric}_std": spread.std,
            f"{metric}_best": max(by_fold),
            f"{metric}_worst": min(by_fold),
        }
        if summary.shuffled and metric in ("uar", "war"):
            values[f"{metric}_shuffled"] = getattr(summary.shuffled, metric).mean
    values |= _calibration(summary.calibration)
    values |= _other_sets(summary)
    for metric, spread in summary.multilabel.items():
        values |= {f"{metric}_mean": spread.mean, f"{metric}_std": spread.std}
    if summary.votes:
        for metric in ("kl", "any_annotator"):
            spread = getattr(summary.votes, metric)
            low, high = spread.ci95
            values |= {
                f"{metric}_mean": spread.mean,
                f"{metric}_ci95_low": low,
                f"{metric}_ci95_high": high,
                f"{metric}_std": spread.std,
            }
    return values | recall_names(summary.pooled.recall) | _cost_metrics(summary.cost)


def _calibration(found: CalibrationSummary | None) -> dict[str, float | None]:
    """Return the means of the calibration over folds and, where there are some, their intervals."""
    if found is None:
        return {}
    means = {f"{name}_mean": value for name, value in asdict(found.mean).items()}
    low = {f"{name}_ci95_low": value for name, value in found.low.items()}
    high = {f"{name}_ci95_high": value for name, value in found.high.items()}
    return means | low | high


def _other_sets(summary: Summary) -> dict[str, float | None]:
    """Return the mean scores over folds of the sets but the first that were trained on."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for other in (other for fold in summary.folds for other in fold.others):
        for metric, value in metric_values(other.scores).items():
            by_name[f"{metric}_mean/{metric_suffix(other.dataset)}"].append(value)
    return {name: sum(values) / len(values) for name, values in by_name.items()}


def _cost_metrics(cost: RunCost | None) -> dict[str, float | None]:
    # Summaries of older runs have no cost.
    if cost is None:
        return {}
    return {
        "ranks": cost.ranks[0] if len(cost.ranks) == 1 else None,
        "clips_per_second": cost.clips_per_second,
        "device_hours": cost.device_hours,
        "peak_memory_gib": cost.peak_bytes and cost.peak_bytes / 2**30,
        "parameters": cost.parameters,
        "trained_parameters": cost.trained_parameters,
    }


def _summary_tags(summary: Summary) -> dict[str, str]:
    """Return which folds are missing, and which have the best and the worst scores."""
    tags = {"folds_missing": ",".join(map(str, summary.missing)) or "none"}
    for metric in ("uar", "war"):
        by_fold = {r.fold: getattr(r, metric) for r in summary.folds}
        for name, choose in (("best", max), ("worst", min)):
            tags[f"{metric}_{name}_fold"] = str(choose(by_fold, key=by_fold.__getitem__))
    return tags
