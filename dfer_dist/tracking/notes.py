"""Descriptions of runs and experiments in MLflow, and a saved view of an experiment's runs.

A description ends in a comment with its own hash, which MLflow does not show. One without it, or
with another, was edited in MLflow and is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.config.load import read_config
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import Provenance
from dfer_dist.runs.summary import RunCost, Summary
from dfer_dist.tracking.metric_names import CURRENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

#: The key of the saved view in the address of the page.
VIEW = "scores"
_VIEW_TAG, _VIEW_NAME = f"mlflow.sharedViewState.{VIEW}", "Runs by UAR"
_NOTE = "mlflow.note.content"
_MAX_TEXT = 4900  # characters; MLflow takes 5000
_MARK = "\n\n<!-- dfer "
_TEMPLATES = Path(__file__).parent / "templates"
# The columns of the saved view with their widths in pixels: a score has up to 17 characters.
_COLUMNS = {
    f"metrics.`{CURRENT.of('uar_mean')}`": 170,
    "tags.`folds_missing`": 110,
    f"metrics.`{CURRENT.of('ranks')}`": 110,
    "params.`model.backbone`": 170,
    "params.`model.image`": 110,
    f"metrics.`{CURRENT.of('war_mean')}`": 170,
    f"metrics.`{CURRENT.of('uar_ci95_low')}`": 170,
    f"metrics.`{CURRENT.of('uar_ci95_high')}`": 175,
}


def describe_run(run: RunDir, api: MlflowClient, parent: Run, summary: Summary) -> bool:
    """Set the description of a parent run; return whether it changed.

    One that was edited in MLflow is kept.
    """
    return set_description(api, parent, run_text(run, summary))


def set_description(api: MlflowClient, at: Run, text: str) -> bool:
    """Set the description of an MLflow run as :func:`describe_run` does; a long one is cut."""
    run_id, old = at.info.run_id, at.data.tags.get(_NOTE)
    new = signed(text[:_MAX_TEXT])
    if old == new:
        return False
    if old is not None and not is_signed(old):
        logger.info(f"the description of the MLflow run {run_id} was edited there and is kept")
        return False
    api.set_tag(run_id, _NOTE, new)
    return True


def describe_experiment(api: MlflowClient, experiment_id: str) -> None:
    """Set the description of an experiment, unless it was edited, and its saved view."""
    tags = api.get_experiment(experiment_id).tags
    old, new = tags.get(_NOTE), signed((_TEMPLATES / "experiment.md").read_text(encoding="utf-8"))
    if old is None or (is_signed(old) and old != new):
        api.set_experiment_tag(experiment_id, _NOTE, new)
    if _VIEW_TAG not in tags:
        api.set_experiment_tag(experiment_id, _VIEW_TAG, _saved_view())


def signed(text: str) -> str:
    """Return a description with the comment that distinguishes it from an edited one."""
    return f"{text}{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def is_signed(note: str) -> bool:
    """Return whether a description is as it was sent."""
    return note == signed(note.rpartition(_MARK)[0])


def run_text(run: RunDir, summary: Summary) -> str:
    """Return the scores of a run and its folds, its cost and its command, as Markdown."""
    from jinja2 import Template

    command = Provenance.read(run.provenance).command
    template = Template((_TEMPLATES / "run.md").read_text(encoding="utf-8"))
    return template.render(
        summary=summary,
        # Summaries of older runs have none.
        cost=summary.cost or RunCost(None, None, None),
        model=read_config(run.config).model,
        command=command and shlex.join(["dfer", *command[1:]]),
    )


def _saved_view() -> str:
    """Return a view for MLflow's page of runs: parent runs with scores, the best one first."""
    uar = CURRENT.of("uar_mean")
    state = {
        "searchFilter": f'metrics."{uar}" >= 0',
        "orderByKey": f"metrics.`{uar}`",
        "orderByAsc": False,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
    }
    return json.dumps({"name": _VIEW_NAME, "createdAt": 0, "state": json.dumps(state)})
