"""Names of metrics in MLflow: what they are, and that its pages show scores first."""

from __future__ import annotations

# Importing MLflow starts a process, which a unit test must not do.
import mlflow.entities  # noqa: F401
import pytest
from mlflow.utils.validation import _validate_metric_name

from dfer_dist.tracking.metric_names import CURRENT, MetricNames, recall_names
from tests.helpers.made_runs import SPECIAL_NAMES

NAMES = {
    "uar_mean": "1_scores/uar",
    "war_ci95_low": "1_scores/war_ci95_low",
    "uar_shuffled": "1_scores/uar_shuffled",
    "test_uar": "1_scores/test_uar",
    "test_macro_f1": "1_scores/test_macro_f1",
    "weighted_f1_ci95_high": "1_scores/weighted_f1_ci95_high",
    "shuffled_war": "1_scores/test_war_shuffled",
    "kappa_mean": "1_scores/kappa",
    "test_top2": "1_scores/test_top2",
    "nll_mean": "1_scores/nll",
    "brier_ci95_low": "1_scores/brier_ci95_low",
    "test_ece": "1_scores/test_ece",
    "recall/anger": "2_recall/anger",
    "test_war/mafw": "1_scores/test_war/mafw",
    "uar_mean/mafw": "1_scores/uar/mafw",
    "ranks": "3_cost/ranks",
    "clips_per_second": "3_cost/clips_per_second",
    "loss": "4_training/loss",
    "lr_image": "4_training/lr_image",
    "system/n1/cpu_utilization_percentage": "system/n1/cpu_utilization_percentage",
}


def test_names_are_sorted_by_section() -> None:
    found = {name: CURRENT.of(name) for name in NAMES}
    assert found == NAMES
    sections = [name.split("/")[0] for name in sorted(found.values())]
    order = ["1_scores", "2_recall", "3_cost", "4_training", "system"]
    assert list(dict.fromkeys(sections)) == order


@pytest.mark.parametrize("name", [*NAMES, "skipped_steps"])
def test_run_of_an_earlier_version_keeps_the_names_of_the_files(name: str) -> None:
    assert MetricNames(1).of(name) == name
    assert not MetricNames(1).is_rare(name)


def test_classes_of_any_name_have_a_recall_that_mlflow_takes() -> None:
    classes = [*SPECIAL_NAMES, "a&b", "wütend", "100_"]
    named = recall_names({name: float(i) for i, name in enumerate(classes)})
    assert sorted(filter(None, named.values())) == [float(i) for i in range(1, len(classes))]
    assert named["recall/a_b"] == 0.0
    for name in named:
        _validate_metric_name(CURRENT.of(name))
