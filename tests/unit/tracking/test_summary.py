"""Scores and cost of a cross-validation at the tracking server, without a server."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

# Importing MLflow starts a process, which a unit test must not do.
import mlflow.entities  # noqa: F401
import pytest

from dfer_dist.reporting.results import load_run
from dfer_dist.runs.records import SetScores
from dfer_dist.runs.summary import RunCost, Summary
from dfer_dist.tracking.metric_names import CURRENT, MetricNames
from dfer_dist.tracking.summary import log_summary
from tests.helpers.made_runs import make_run


class Server:
    """Keeps the metrics and tags of one run."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}

    @property
    def run(self) -> Any:
        data = SimpleNamespace(metrics=self.metrics, tags=self.tags)
        return SimpleNamespace(info=SimpleNamespace(run_id="parent"), data=data)

    def log_batch(self, run_id: str, metrics: list[Any], tags: list[Any]) -> None:
        assert run_id == "parent"
        self.metrics |= {m.key: m.value for m in metrics}
        self.tags |= {t.key: t.value for t in tags}

    def delete_tag(self, run_id: str, key: str) -> None:
        self.tags = {k: v for k, v in self.tags.items() if k != key}


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    root = tmp_path_factory.mktemp("runs") / "made"
    return load_run(make_run(root, (1, 2), shuffled=True)).summary


def test_scores_and_cost_are_sent_once(summary: Summary) -> None:
    server = Server()
    assert log_summary(server, server.run, summary, CURRENT)
    assert summary.shuffled
    scores = {
        "uar": summary.uar.mean,
        "uar_ci95_low": summary.uar.ci95[0],
        "uar_ci95_high": summary.uar.ci95[1],
        "uar_std": summary.uar.std,
        "uar_best": max(r.uar for r in summary.folds),
        "uar_worst": min(r.uar for r in summary.folds),
        "uar_shuffled": summary.shuffled.uar.mean,
        "war": summary.war.mean,
    }
    assert {k: server.metrics[f"1_scores/{k}"] for k in scores} == scores
    assert server.metrics["2_recall/anger"] == summary.pooled.recall["anger"]
    cost = {k: v for k, v in server.metrics.items() if k.startswith("3_cost")}
    # two folds of half an hour on four ranks
    hours = {"3_cost/ranks": 4, "3_cost/clips_per_second": 50.0, "3_cost/device_hours": 4.0}
    assert cost == hours
    best = max(summary.folds, key=lambda r: r.uar).fold
    assert (server.tags["folds_missing"], server.tags["uar_best_fold"]) == ("3", str(best))
    assert not log_summary(server, server.run, summary, CURRENT)


def test_memory_is_in_gib_and_ranks_are_one_number(summary: Summary) -> None:
    server = Server()
    cost = RunCost(4500, None, 3 * 2**29, parameters=9000, ranks=[2, 4])
    log_summary(server, server.run, replace(summary, cost=cost), CURRENT)
    assert {k: v for k, v in server.metrics.items() if k.startswith("3_cost")} == {
        "3_cost/peak_memory_gib": 1.5,
        "3_cost/parameters": 9000,
        "3_cost/parameters_trained": 4500,
    }


def test_run_of_an_earlier_version_keeps_its_names(summary: Summary) -> None:
    server = Server()
    server.tags["peak_bytes"] = "7"
    assert log_summary(server, server.run, summary, MetricNames(1))
    assert {"uar_mean", "uar_std", "war_best", "recall/fear", "ranks"} <= server.metrics.keys()
    assert not [name for name in server.metrics if name[0].isdigit()]
    # a tag would keep what was true of fewer folds
    assert "peak_bytes" not in server.tags


def test_f1_is_sent_with_its_interval(summary: Summary) -> None:
    server = Server()
    log_summary(server, server.run, summary, CURRENT)
    assert server.metrics["1_scores/macro_f1"] == summary.macro_f1.mean
    assert server.metrics["1_scores/weighted_f1_ci95_low"] == summary.weighted_f1.ci95[0]


def test_calibration_is_sent_with_its_intervals_where_it_has_some(summary: Summary) -> None:
    server, found = Server(), summary.calibration
    log_summary(server, server.run, summary, CURRENT)
    assert found is not None
    assert server.metrics["1_scores/brier"] == found.mean.brier
    assert server.metrics["1_scores/nll_ci95_low"] == found.low["nll"]
    assert server.metrics["1_scores/accuracy_80_ci95_high"] == found.high["accuracy_80"]
    assert "1_scores/ece" in server.metrics and "1_scores/ece_ci95_low" not in server.metrics


def test_summary_of_an_older_run_has_no_cost_and_no_f1(summary: Summary) -> None:
    server = Server()
    older = replace(summary, cost=None, macro_f1=None, weighted_f1=None)
    log_summary(server, server.run, older, CURRENT)
    assert "1_scores/uar" in server.metrics
    assert not [name for name in server.metrics if "cost" in name or "f1" in name]


def test_other_sets_are_sent_with_their_names(summary: Summary) -> None:
    scores = [replace(summary.pooled, uar=uar, war=60.0) for uar in (40.0, 50.0)]
    folds = [
        replace(fold, others=[SetScores("mafw #2", "", own)])
        for fold, own in zip(summary.folds, scores, strict=True)
    ]
    server = Server()
    log_summary(server, server.run, replace(summary, folds=folds), CURRENT)
    assert server.metrics["1_scores/uar/mafw _2"] == 45.0
    assert server.metrics["1_scores/war/mafw _2"] == 60.0
