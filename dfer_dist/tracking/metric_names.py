"""What metrics are called in MLflow, whose pages sort them by name and group them by its sections.

``metrics.jsonl`` and ``summary.json`` have names of their own, which never change. A run keeps the
names in MLflow that it began with: MLflow cannot rename what it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from dfer_dist.runs.calibration import CalibrationScores
from dfer_dist.runs.records import METRICS, MULTILABEL_METRICS

# 1 is the names of the files, as earlier versions sent them.
VERSION = 2

_TRAINING = "4_training"
_CALIBRATION = [field.name for field in fields(CalibrationScores)]
# Of each metric of a test. A fold has test, val and shuffled; a run has the others, over its folds.
_SCORES = {
    "{}_mean": "1_scores/{}",
    "{}_std": "1_scores/{}_std",
    "{}_ci95_low": "1_scores/{}_ci95_low",
    "{}_ci95_high": "1_scores/{}_ci95_high",
    "{}_best": "1_scores/{}_best",
    "{}_worst": "1_scores/{}_worst",
    "{}_shuffled": "1_scores/{}_shuffled",
    "test_{}": "1_scores/test_{}",
    "val_{}": "1_scores/val_{}",
    "shuffled_{}": "1_scores/test_{}_shuffled",
}
# By the name in the files; what is not listed belongs to training.
_NAMES = {
    file_name.format(score): name.format(score)
    for score in (*METRICS, *MULTILABEL_METRICS, *_CALIBRATION, "kl", "any_annotator")
    for file_name, name in _SCORES.items()
}
_NAMES |= {
    "ranks": "3_cost/ranks",
    "parameters": "3_cost/parameters",
    "trained_parameters": "3_cost/parameters_trained",
    "clips_per_second": "3_cost/clips_per_second",
    "data_wait_share": "3_cost/data_wait_share",
    "tflops": "3_cost/tflops",
    "mfu": "3_cost/mfu",
    "peak_memory_gib": "3_cost/peak_memory_gib",
    "device_hours": "3_cost/device_hours",
}
# Beginnings of names with their sections; the rest of the name stays.
_SECTIONS = {"recall/": "2_recall/", "system/": "system/"}
# Counts of what rarely happens: sent, from the first step on, once they are not zero.
_RARE = frozenset({"loss_spike", "skipped_steps", "lost_clips"})


@dataclass(frozen=True)
class MetricNames:
    """The names of a run's metrics in MLflow.

    ``version`` is that of the names with which the run began.
    """

    version: int = VERSION

    def of(self, name: str) -> str:
        """Return the name in MLflow of a metric with the name ``name`` in the files."""
        if self.version < VERSION:
            return name
        # test_uar, or test_uar/SET of another set
        score, *of_set = name.split("/", 1)
        if score in _NAMES:
            return "/".join([_NAMES[score], *of_set])
        for prefix, section in _SECTIONS.items():
            if name.startswith(prefix):
                return section + name.removeprefix(prefix)
        return f"{_TRAINING}/{name}"

    def is_rare(self, name: str) -> bool:
        """Return whether a metric is sent only once it was not zero."""
        return self.version == VERSION and name in _RARE


#: Those of a run that begins now.
CURRENT = MetricNames()


def metric_suffix(name: str) -> str:
    """Return the name of a class or set for a metric, in characters that MLflow takes."""
    return re.sub(r"[^\w -]", "_", name)


def recall_names(recall: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the recall of each class by a metric name."""
    named: dict[str, float | None] = {}
    for number, (class_name, value) in enumerate(recall.items(), 1):
        name = "recall/" + metric_suffix(class_name)
        named[f"{name}_{number}" if name in named else name] = value
    return named
