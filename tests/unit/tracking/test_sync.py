"""The summary of a cross-validation at the tracking server, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

# Importing MLflow starts a process, which a unit test must not do.
import mlflow.entities  # noqa: F401
import pytest

from dfer_dist.tracking.sync import _log_summary

SUMMARY: dict[str, Any] = {
    "missing": [3],
    "folds": [{"fold": 1, "uar": 50.0, "war": 60.0}, {"fold": 2, "uar": 52.0, "war": 58.0}],
    "uar": {"mean": 51.0, "std": 1.5},
    "war": {"mean": 59.0, "std": None},
}
COST = {"trained_parameters": 4500, "clips_per_second": 50.0, "peak_bytes": None}


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


@pytest.mark.parametrize(
    ("summary", "cost_tags"),
    [
        ({**SUMMARY, "cost": COST}, {"trained_parameters": "4500", "clips_per_second": "50.0"}),
        (SUMMARY, {}),
    ],
    ids=["with cost", "of an older run"],
)
def test_log_summary_sends_scores_and_cost_once(
    summary: dict[str, Any], cost_tags: dict[str, str]
) -> None:
    server = Server()
    assert _log_summary(server, server.run, summary)
    assert server.metrics == {
        "uar_mean": 51.0,
        "uar_std": 1.5,
        "uar_best": 52.0,
        "uar_worst": 50.0,
        "war_mean": 59.0,
        "war_best": 60.0,
        "war_worst": 58.0,
    }
    assert server.tags == cost_tags | {
        "folds_missing": "3",
        "uar_best_fold": "2",
        "uar_worst_fold": "1",
        "war_best_fold": "1",
        "war_worst_fold": "2",
    }
    assert not _log_summary(server, server.run, summary)
